"""The kernel families that tests compare: those that this CPU supports, and the emulated ones.

Emulated families are slow. A test of a whole model runs them where kernels get other shapes than
in tests/native, and leaves them out otherwise.
"""

from yocobit import _native

KERNELS = (*_native.supported_kernels(), *_native.emulated_kernels())
# Of which a test may leave out settings that do not depend on kernels, such as threads.
SLOW = ("scalar", *_native.emulated_kernels())
