"""BitNet quantisation of Hugging Face checkpoints: quant_method "bitnet" of a config.json.

Linear class "bitlinear" divides by the stored scale, "autobitlinear" multiplies. Mode "offline"
stores ternary weights, four rows per uint8, "online" master weights (arXiv:2402.17764,
arXiv:2504.12285). Equal to transformers' integrations/bitnet.py.

Letters: M output features   K input features
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from yocobit.errors import ConfigError, shown
from yocobit.importers.checkpoint import IntegerMatrix
from yocobit.importers.huggingface.floats import checked, read_floats
from yocobit.packing.file_format import scale_name
from yocobit.packing.formats import TERNARY
from yocobit.packing.tensor_source import SafetensorsDirectory
from yocobit.settings import Settings

_METHOD = "bitnet"
_SMALLEST = 1e-30  # scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitNetQuantization(Settings):
    """The fields of `quantization_config`."""

    quant_method: Literal["bitnet"] = "bitnet"
    linear_class: Literal["bitlinear", "autobitlinear"] = "bitlinear"
    quantization_mode: Literal["offline", "online"] = "offline"
    modules_to_not_convert: tuple[str, ...] | None = None  # None: the head
    use_rms_norm: bool = False  # RMSNorm before each quantised projection
    rms_norm_eps: Annotated[float, Meta(ge=1e-20, le=1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.modules_to_not_convert or ():
            rule = "must be names of modules, without wildcards,"
            self.require(re.fullmatch(r"[\w.]+", name) is not None, "modules_to_not_convert", rule)

    @property
    def divides_by_scales(self) -> bool:
        """Whether a weight is integer / scale."""
        return self.linear_class == "bitlinear"

    @property
    def has_master_weights(self) -> bool:
        """Whether the quantised projections are stored as master weights."""
        return self.quantization_mode == "online"

    def quantises(self, module: str) -> bool:
        """Whether a linear layer such as "model.layers.0.mlp.up_proj" is quantised."""
        excluded = self.modules_to_not_convert
        if excluded is None:
            return module != "lm_head"
        return not any(
            module == name or module.startswith(f"{name}.") or module.endswith(name)
            for name in excluded
        )


# Of published master weights without a quantization_config.
MASTER_WEIGHTS = BitNetQuantization(linear_class="autobitlinear", quantization_mode="online")


def quantization_of(fields: Mapping[str, Any] | None, subject: str) -> BitNetQuantization | None:
    """Return the quantisation that a `quantization_config` describes; None without one.

    Ignored keys have no effect: transformers does not read them either.
    """
    if fields is None:
        return None
    if (method := fields.get("quant_method", _METHOD)) != _METHOD:
        raise ConfigError(
            f"{subject}: quant_method must be 'bitnet' but is {shown(method)}; import a checkpoint "
            "in bfloat16, or a GGUF file"
        )
    known = fields.keys() - ignored_keys(fields)
    return BitNetQuantization.from_dict({name: fields[name] for name in known}, subject)


def ignored_keys(fields: Mapping[str, Any] | None) -> list[str]:
    """Return the keys that have no effect in transformers, such as "bits", which tools add."""
    known = {field.name for field in dataclasses.fields(BitNetQuantization)}
    return sorted((fields or {}).keys() - known)


def read_trits(
    tensors: SafetensorsDirectory,
    name: str,
    shape: tuple[int, ...],
    quantization: BitNetQuantization,
) -> IntegerMatrix:
    """Read weights (M, K) in {-1, 0, +1} and their scale; ConfigError names an invalid tensor."""
    M, K = shape
    stored = tensors.read(name)
    scale = np.array([read_scale(tensors, name, quantization)], dtype=np.float32)
    if stored.dtype.kind == "f":
        values = checked(tensors, name, stored, shape)
        if not (is_valid := np.isin(values, TERNARY.values)).all():
            raise ConfigError(
                f"{tensors.path}: tensor '{name}' must hold -1, 0 and 1, as it has a scale, but "
                f"has {values[~is_valid][0]}"
            )
        return IntegerMatrix(values.astype(np.int8), scale)
    if stored.dtype != np.uint8 or stored.shape != (-(-M // 4), K):
        raise ConfigError(
            f"{tensors.path}: tensor '{name}' must be uint8 of shape {[-(-M // 4), K]} but is "
            f"{stored.dtype} of {list(stored.shape)}"
        )
    # A byte holds rows i, i + M/4, i + M/2 and i + 3M/4, the first in its lowest bits.
    rows = np.concatenate([stored >> shift & 3 for shift in (0, 2, 4, 6)])[:M]
    if rows.max() > 2:
        raise ConfigError(f"{tensors.path}: tensor '{name}' must hold codes 0 to 2 but has 3")
    return IntegerMatrix(rows.astype(np.int8) - np.int8(1), scale)


def read_scale(tensors: SafetensorsDirectory, name: str, quantization: BitNetQuantization) -> float:
    """Return the scale of the matrix `name`: weight = integer * scale."""
    own = scale_name(name)
    value = float(read_floats(tensors, own, (1,))[0])
    if not _SMALLEST <= value <= 1 / _SMALLEST:
        raise ConfigError(
            f"{tensors.path}: tensor '{own}' must be between {_SMALLEST:g} and {1 / _SMALLEST:g} "
            f"but is {value:g}"
        )
    return 1 / value if quantization.divides_by_scales else value
