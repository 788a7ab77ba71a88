"""The PyTorch definition of the model: what training runs and the engine is held against."""

from yocobit.model.decoder import Cache, Decoder

__all__ = ["Cache", "Decoder"]
