"""Names of Hugging Face tensors: the tensor that holds a parameter of ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

_TABLES = {"embedding": "embed_tokens", "norm": "norm"}
_BLOCK = {
    "mixer_norm": "input_layernorm",
    "mixer.q_proj": "self_attn.q_proj",
    "mixer.k_proj": "self_attn.k_proj",
    "mixer.v_proj": "self_attn.v_proj",
    "mixer.out_proj": "self_attn.o_proj",
    "mixer.q_norm": "self_attn.q_norm",
    "mixer.k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
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
HEAD = "lm_head"


@dataclass(frozen=True)
class Names:
    """The tensor names of one checkpoint."""

    prefix: str  # "model.", or "" in a checkpoint without a head
    block: Mapping[str, str]
    has_sub_norms: bool
    projection_norm: str | None  # RMSNorm before each projection: "norm" or "rms_norm"

    @classmethod
    def of(cls, stored: Collection[str], block: Mapping[str, str], uses_rms_norm: bool) -> Names:
        """Return the names in a checkpoint with the tensors `stored`.

        `block` has the names of its family that differ. `uses_rms_norm`: transformers computes an
        RMSNorm before each quantised projection.
        """
        prefix = "" if "embed_tokens.weight" in stored else "model."
        first = f"{prefix}layers.0."
        found = [each for each in _SUB_NORMS if f"{first}{each['mixer.sub_norm']}.weight" in stored]
        own = {**_BLOCK, **(found[0] if found else _SUB_NORMS[0]), **block}
        norm = "norm" if f"{first}mlp.up_proj.norm.weight" in stored else None
        return cls(prefix, own, bool(found), "rms_norm" if uses_rms_norm else norm)

    @property
    def are_of_bitnet(self) -> bool:
        """Whether the norms occur only in models with ternary weights."""
        return self.has_sub_norms or self.projection_norm is not None

    def of_parameter(self, name: str) -> str:
        """Return the tensor that holds the parameter `name`."""
        if name.startswith("head."):
            return f"{HEAD}.{self._with_norm(name.removeprefix('head.'))}"
        if not name.startswith("layers."):
            module, kind = name.split(".", 1)
            return f"{self.prefix}{_TABLES[module]}.{kind}"
        _, layer, part = name.split(".", 2)
        module, _, kind = part.rpartition(".")
        if module.endswith("_proj.norm"):
            module, kind = module.removesuffix(".norm"), self._with_norm("norm.weight")
        return f"{self.prefix}layers.{layer}.{self.block[module]}.{kind}"

    def _with_norm(self, kind: str) -> str:
        """Return the part of a tensor name after the module."""
        if kind.startswith("norm.") and self.projection_norm:
            return kind.replace("norm", self.projection_norm, 1)
        return kind
