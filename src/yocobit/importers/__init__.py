"""Published checkpoints of other projects, converted to the packed format."""

from yocobit.importers.bitnet import import_bitnet

__all__ = ["import_bitnet"]
