"""Names of Hugging Face tensors: the tensors that hold a parameter of ours.

Letters: D head size   E experts   F width of an expert
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from yocobit.config import ModelConfig
from yocobit.packing.layout import Array

_BLOCK = {
    "mixer_norm": "input_layernorm",
    "mixer.q_proj": "self_attn.q_proj",
    "mixer.k_proj": "self_attn.k_proj",
    "mixer.v_proj": "self_attn.v_proj",
    "mixer.out_proj": "self_attn.o_proj",
    "mixer.q_norm": "self_attn.q_norm",
    "mixer.k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn.router": "mlp.gate",
    "ffn.gate_proj": "mlp.gate_proj",
    "ffn.up_proj": "mlp.up_proj",
    "ffn.down_proj": "mlp.down_proj",
}
POST_NORMS = {  # of Gemma
    "mixer_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}
HUNYUAN_NORMS = {
    "mixer.q_norm": "self_attn.query_layernorm",
    "mixer.k_norm": "self_attn.key_layernorm",
}
_SUB_NORMS = (
    {"mixer.sub_norm": "self_attn.attn_sub_norm", "ffn.sub_norm": "mlp.ffn_sub_norm"},
    {"mixer.sub_norm": "self_attn.inner_attn_ln", "ffn.sub_norm": "mlp.ffn_layernorm"},  # 1bitLLM
)
_QKV = ("q_proj", "k_proj", "v_proj")
_FUSED_QKV, _STACKED_EXPERTS, _FUSED_UP_GATE = "qkv_proj", "switch_mlp", "up_gate_proj"  # of MLX
HEAD = "lm_head"
EMBEDDING = "embed_tokens"


class TensorPart(NamedTuple):
    """The tensors of a module, or slices of them, that hold a parameter or some of its rows."""

    module: str
    rows: tuple[slice, ...] = ()  # of the first axes

    def take(self, values: Array, n_axes: int) -> Array:
        """Return the part of a tensor with `n_axes`: the axes of experts and rows are merged.

        A tensor with too few axes is returned as it is, for the caller to refuse.
        """
        if values.ndim < max(n_axes, len(self.rows)):
            return values
        taken = values[self.rows]
        return taken.reshape(-1, *taken.shape[taken.ndim - n_axes + 1 :])


@dataclass(frozen=True)
class Names:
    """The tensor names of one checkpoint."""

    embedding: str  # module
    prefix: str  # "model.", or "" in a checkpoint without a head
    block: Mapping[str, str]
    has_sub_norms: bool
    projection_norm: str | None  # RMSNorm before each projection: "norm" or "rms_norm"

    @classmethod
    def of(
        cls,
        stored: Collection[str],
        block: Mapping[str, str],
        uses_rms_norm: bool,
        embedding: str = EMBEDDING,
    ) -> Names:
        """Return the names in a checkpoint with the tensors `stored`.

        `block` and `embedding` are those of its family. `uses_rms_norm`: transformers computes an
        RMSNorm before each quantised projection.
        """
        prefix = "" if f"{embedding}.weight" in stored else "model."
        first = f"{prefix}layers.0."
        found = [each for each in _SUB_NORMS if f"{first}{each['mixer.sub_norm']}.weight" in stored]
        own = {**_BLOCK, **(found[0] if found else _SUB_NORMS[0]), **block}
        norm = "norm" if f"{first}mlp.up_proj.norm.weight" in stored else None
        norm = "rms_norm" if uses_rms_norm else norm
        return cls(embedding, prefix, own, bool(found), norm)

    @property
    def are_of_bitnet(self) -> bool:
        """Whether the norms occur only in models with ternary weights."""
        return self.has_sub_norms or self.projection_norm is not None

    def of_parameter(self, name: str) -> str:
        """Return the tensor that holds the parameter `name`, unless it has several parts."""
        if name.startswith("head."):
            return f"{HEAD}.{self._with_norm(name.removeprefix('head.'))}"
        if not name.startswith("layers."):
            module, kind = name.split(".", 1)
            return f"{self.prefix}{self.embedding if module == 'embedding' else module}.{kind}"
        _, layer, part = name.split(".", 2)
        module, _, kind = part.rpartition(".")
        if module.endswith("_proj.norm"):
            module, kind = module.removesuffix(".norm"), self._with_norm("norm.weight")
        return f"{self.prefix}layers.{layer}.{self.block[module]}.{kind}"

    def parts(self, name: str, stored: Collection[str], config: ModelConfig) -> list[TensorPart]:
        """Return the modules with the weight of a matrix, in the order of its rows.

        Each expert is a module, or all are one module with an axis of experts. MLX checkpoints may
        have Q, K and V, or W_up and W_gate of experts, in one module.
        """
        module = self.of_parameter(name).removesuffix(".weight")
        folder, _, matrix = module.rpartition(".")
        if config.n_experts and ".ffn." in name:
            return _experts(folder, matrix, stored, config)
        if f"{folder}.{_FUSED_QKV}.weight" in stored and matrix in _QKV:
            heads = [config.n_heads, config.n_kv_heads, config.n_kv_heads]
            first, D = _QKV.index(matrix), config.head_dim
            start, width = D * sum(heads[:first]), D * heads[first]
            return [TensorPart(f"{folder}.{_FUSED_QKV}", (slice(start, start + width),))]
        return [TensorPart(module)]

    def _with_norm(self, kind: str) -> str:
        """Return the part of a tensor name after the module."""
        if kind.startswith("norm.") and self.projection_norm:
            return kind.replace("norm", self.projection_norm, 1)
        return kind


def _experts(
    folder: str, matrix: str, stored: Collection[str], config: ModelConfig
) -> list[TensorPart]:
    E, F = config.n_experts, config.d_ff
    stacked = f"{folder}.{_STACKED_EXPERTS}"
    if f"{stacked}.{matrix}.weight" in stored:
        return [TensorPart(f"{stacked}.{matrix}")]
    if f"{stacked}.{_FUSED_UP_GATE}.weight" in stored and matrix in ("up_proj", "gate_proj"):
        start = 0 if matrix == "up_proj" else F
        return [TensorPart(f"{stacked}.{_FUSED_UP_GATE}", (slice(None), slice(start, start + F)))]
    return [TensorPart(f"{folder}.experts.{e}.{matrix}") for e in range(E)]
