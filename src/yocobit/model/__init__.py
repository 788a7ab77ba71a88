"""The model in PyTorch: what training runs, and the reference of the native engine."""

from yocobit.model.decoder import Cache, Decoder

__all__ = ["Cache", "Decoder"]
