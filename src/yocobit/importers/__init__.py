"""Importers: convert published checkpoints of other projects to the packed format."""

from yocobit.importers.bitnet import import_bitnet

__all__ = ["import_bitnet"]
