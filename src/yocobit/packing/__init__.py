"""The packed model: written from a checkpoint, read by the engine. Only pack() and
import_bitnet() need torch."""

from yocobit.packing.bitnet import import_bitnet
from yocobit.packing.layout import (
    pack_sign,
    pack_ternary,
    quantize_rows,
    unpack_sign,
    unpack_ternary,
)
from yocobit.packing.pack import pack
from yocobit.packing.reader import (
    PackedModel,
    PackedModelError,
    TensorInfo,
    expected_tensors,
    is_packed,
    read_model,
)
from yocobit.packing.summary import Summary, describe, summarize
from yocobit.packing.verify import verify

__all__ = [
    "PackedModel",
    "PackedModelError",
    "Summary",
    "TensorInfo",
    "describe",
    "expected_tensors",
    "import_bitnet",
    "is_packed",
    "pack",
    "pack_sign",
    "pack_ternary",
    "quantize_rows",
    "read_model",
    "summarize",
    "unpack_sign",
    "unpack_ternary",
    "verify",
]
