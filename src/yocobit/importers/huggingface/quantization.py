"""BitNet quantisation of Hugging Face checkpoints: quant_method "bitnet" of a config.json.

Linear class "bitlinear" divides by the stored scale, "autobitlinear" multiplies. Mode "offline"
stores ternary weights, "online" master weights. Equal to transformers' integrations/bitnet.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta

from yocobit.errors import ConfigError, shown
from yocobit.settings import Settings

_METHOD = "bitnet"


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


# Of published masters without a quantization_config.
MASTER_WEIGHTS = BitNetQuantization(linear_class="autobitlinear", quantization_mode="online")


def quantization_of(fields: Mapping[str, Any] | None, subject: str) -> BitNetQuantization | None:
    """Return the quantisation that a `quantization_config` describes; None without one."""
    if fields is None:
        return None
    if (method := fields.get("quant_method", _METHOD)) != _METHOD:
        raise ConfigError(
            f"{subject}: quant_method must be 'bitnet' but is {shown(method)}; import a checkpoint "
            "in bfloat16, or a GGUF file"
        )
    return BitNetQuantization.from_dict(fields, subject)
