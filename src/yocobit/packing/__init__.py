"""Packed models: written from checkpoints, read by the engine. Only pack() needs torch."""

from yocobit.packing.file_format import PackedModelError, TensorInfo, is_packed
from yocobit.packing.formats import pack_sign, pack_ternary, unpack_sign, unpack_ternary
from yocobit.packing.layout import quantize_rows
from yocobit.packing.pack import pack
from yocobit.packing.reader import PackedModel, read_model
from yocobit.packing.stored_parameters import expected_tensors
from yocobit.packing.verify import verify
from yocobit.renamed import aliases

__all__ = [
    "PackedModel",
    "PackedModelError",
    "TensorInfo",
    "expected_tensors",
    "is_packed",
    "pack",
    "pack_sign",
    "pack_ternary",
    "quantize_rows",
    "read_model",
    "unpack_sign",
    "unpack_ternary",
    "verify",
]

__getattr__ = aliases(
    __name__,
    {
        "Summary": "yocobit.costs:Summary",
        "describe": "yocobit.costs:describe",
        "import_bitnet": "yocobit.importers:import_model",
        "summarize": "yocobit.costs:summarize",
    },
)
