"""Low-bit matmuls, RMSNorm and gating as PyTorch operators.

native.py calls the kernels of _native, reference.py is their twin in plain PyTorch for any device
and precision, dispatch.py selects one of the two.
"""
