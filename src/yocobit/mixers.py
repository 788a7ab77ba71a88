"""The closed tables of token mixers and FFN kinds: one record each.

A record holds everything about its kind except the arithmetic: parameters, place in the stack, KV
cache, recurrent state. Code that counts, lays out, validates or loads parameters iterates over the
records. The arithmetic of mixer NAME is model/mixers/NAME.py and native/engine/mixers/NAME.cpp.

Letters: T positions   C d_model   H query heads   G KV heads   D head size   F d_ff
E n_experts   V vocab_size
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from yocobit.config import FeedForwardKind, Mixer, ModelConfig, RopeKind

# The role of a parameter. A "projection" is a matrix that ModelConfig.weights quantises; "norm",
# "bias" and "float" stay in float32 in every model.
Role = Literal["embedding", "head", "projection", "norm", "bias", "float"]

# The KV cache that a layer attends to: one of all positions, a ring buffer of the last `window`
# positions, the shared cache of the cross-decoder, or none.
KvCacheKind = Literal["per_token", "ring", "shared", "none"]


class Parameter(NamedTuple):
    """Shape and role of one trained parameter."""

    shape: tuple[int, ...]
    role: Role


class Heads(NamedTuple):
    """The heads of a mixer."""

    n_heads: int  # H
    n_kv_heads: int  # G
    head_dim: int  # D

    @property
    def width(self) -> int:
        """Width of Q, and of the attention's output: H D."""
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of K, and of V: G D."""
        return self.n_kv_heads * self.head_dim


Parameters = dict[str, Parameter]  # by name, in model order


@dataclass(frozen=True)
class MixerSpec:
    """One kind of token mixer: a function of x (T, C) to y (T, C)."""

    name: Mixer
    decoder: Literal["self", "cross"]  # its half of the stack
    # By the NAME in layers.I.mixer.NAME.weight, or in layers.I.mixer.NAME for biases.
    parameters: Callable[[ModelConfig], Parameters]
    heads: Callable[[ModelConfig], Heads] | None = None
    rope_field: str | None = None  # the field of ModelConfig that selects its RoPE
    kv_cache: KvCacheKind = "none"
    state_shape: Callable[[ModelConfig], tuple[int, ...]] | None = None  # float32, per sequence
    reads_memory: bool = False  # the mixer output of the last self-decoder layer

    @property
    def keeps_own_cache(self) -> bool:
        """Whether each layer of the kind has its own recurrent state or KV cache."""
        return self.state_shape is not None or self.kv_cache in ("per_token", "ring")

    def rope(self, config: ModelConfig) -> RopeKind:
        """Return the RoPE of its queries and keys."""
        kind: RopeKind = getattr(config, self.rope_field) if self.rope_field else "none"
        return kind

    def state_values(self, config: ModelConfig) -> int:
        """Return the number of values in the recurrent state of one sequence."""
        return math.prod(self.state_shape(config)) if self.state_shape else 0

    def state_bytes(self, config: ModelConfig) -> int:
        """Return the bytes of the recurrent state of one sequence."""
        return 4 * self.state_values(config)

    def state_multiply_adds(self, config: ModelConfig) -> int:
        """Return the multiply-adds per token on the recurrent state: one update and one read."""
        return 2 * self.state_values(config)

    def attention_multiply_adds(self, config: ModelConfig) -> int:
        """Return the multiply-adds per token and attended position: scores and weighted values."""
        if self.kv_cache == "none" or self.heads is None:
            return 0
        heads = self.heads(config)
        return 2 * heads.n_heads * heads.head_dim


@dataclass(frozen=True)
class FeedForwardSpec:
    """One kind of FFN: a function of x (T, C) to y (T, C) with F hidden features.

    The matrices of experts are one matrix each: expert e has the rows from e F (gate_proj and
    up_proj) or e C (down_proj) on.
    """

    name: FeedForwardKind
    has_gate: bool  # act(W_gate x) * (W_up x), not act(W_up x)
    has_sub_norm: bool  # before W_down, if the model has SubLN; experts share its weight
    has_experts: bool = False  # config.n_experts, chosen for each token by a router
    max_batch_tokens: int = 128  # of one forward pass of the engine

    def parameters(self, config: ModelConfig) -> Parameters:
        """Return the parameters by the NAME in layers.I.ffn.NAME.weight."""
        C, F = config.d_model, config.d_ff
        E = config.n_experts if self.has_experts else 1
        parameters: Parameters = {}
        if self.has_experts:
            parameters["router"] = Parameter((E, C), "float")
        if self.has_gate:
            parameters["gate_proj"] = Parameter((E * F, C), "projection")
        parameters["up_proj"] = Parameter((E * F, C), "projection")
        if self.has_sub_norm and config.sub_norm:
            parameters["sub_norm"] = Parameter((F,), "norm")
        parameters["down_proj"] = Parameter((E * C, F), "projection")
        return _with_extras(config, parameters)


def _self_heads(config: ModelConfig) -> Heads:
    """Return the heads of sliding-window attention."""
    return Heads(config.n_self_heads, config.n_self_kv_heads, config.self_head_dim)


def _retention_heads(config: ModelConfig) -> Heads:
    return Heads(config.n_self_heads, config.n_self_heads, config.self_head_dim)


def _heads(config: ModelConfig) -> Heads:
    """Return the heads of full and cross attention."""
    return Heads(config.n_heads, config.n_kv_heads, config.head_dim)


def _projections(config: ModelConfig, *names: str) -> Parameters:
    C = config.d_model
    return {name: Parameter((C, C), "projection") for name in names}


def _keys_values(config: ModelConfig, heads: Heads) -> Parameters:
    shape = heads.kv_width, config.d_model
    return {name: Parameter(shape, "projection") for name in ("k_proj", "v_proj")}


def _output(config: ModelConfig, width: int | None = None) -> Parameters:
    """Return the output projection from `width` values, C by default, and the SubLN before it."""
    C = config.d_model
    width = width or C
    norm = {"sub_norm": Parameter((width,), "norm")} if config.sub_norm else {}
    return norm | {"out_proj": Parameter((C, width), "projection")}


def _with_extras(
    config: ModelConfig, parameters: Parameters, biased: tuple[str, ...] = ()
) -> Parameters:
    """Return parameters with the bias and the RMSNorm of each projection that the model has."""
    result: Parameters = {}
    for name, parameter in parameters.items():
        result[name] = parameter
        if config.qkv_bias and name in biased:
            result[f"{name}.bias"] = Parameter(parameter.shape[:1], "bias")
        if config.projection_norms and parameter.role == "projection":
            result[f"{name}.norm"] = Parameter(parameter.shape[1:], "norm")
    return result


def _self_attention(config: ModelConfig, heads: Heads) -> Parameters:
    query = {"q_proj": Parameter((heads.width, config.d_model), "projection")}
    parameters = query | _keys_values(config, heads)
    biased = tuple(parameters)
    if config.qk_norm != "none":
        norm = Parameter((heads.head_dim,), "norm")
        parameters |= {"q_norm": norm, "k_norm": norm}
    return _with_extras(config, parameters | _output(config, heads.width), biased)


def _retention(config: ModelConfig) -> Parameters:
    decay = {"decay_proj": Parameter((config.n_self_heads, config.d_model), "float")}
    projections = _projections(config, "q_proj", "k_proj", "v_proj", "g_proj")
    return projections | decay | _output(config)


def _window(config: ModelConfig) -> Parameters:
    return _self_attention(config, _self_heads(config))


def _full(config: ModelConfig) -> Parameters:
    return _self_attention(config, _heads(config))


def _cross(config: ModelConfig) -> Parameters:
    return _projections(config, "q_proj") | _output(config)


def _gmu(config: ModelConfig) -> Parameters:
    return _projections(config, "g_proj") | _output(config)


def _gate(config: ModelConfig) -> Parameters:
    return _projections(config, "gate_proj")


def _retention_state(config: ModelConfig) -> tuple[int, ...]:
    H, D = config.n_self_heads, config.self_head_dim
    return H, D, D


_MIXERS = (
    MixerSpec(
        "retention",
        decoder="self",
        parameters=_retention,
        heads=_retention_heads,
        rope_field="retention_rope",
        state_shape=_retention_state,
    ),
    MixerSpec(
        "window",
        decoder="self",
        parameters=_window,
        heads=_self_heads,
        rope_field="window_rope",
        kv_cache="ring",
    ),
    MixerSpec(
        "full",
        decoder="self",
        parameters=_full,
        heads=_heads,
        rope_field="full_rope",
        kv_cache="per_token",
    ),
    MixerSpec(
        "cross",
        decoder="cross",
        parameters=_cross,
        heads=_heads,
        rope_field="cross_rope",
        kv_cache="shared",
    ),
    MixerSpec("gmu", decoder="cross", parameters=_gmu, reads_memory=True),
    MixerSpec("gate", decoder="self", parameters=_gate),
)
MIXERS: dict[Mixer, MixerSpec] = {spec.name: spec for spec in _MIXERS}

_FEED_FORWARDS = (
    FeedForwardSpec("swiglu", has_gate=True, has_sub_norm=True),
    FeedForwardSpec("geglu", has_gate=True, has_sub_norm=True),
    FeedForwardSpec("relu2", has_gate=True, has_sub_norm=True),
    # Its activations are -1 or +1, which need no norm.
    FeedForwardSpec("sign", has_gate=False, has_sub_norm=False),
    FeedForwardSpec(
        "moe", has_gate=True, has_sub_norm=True, has_experts=True, max_batch_tokens=256
    ),
)
FEED_FORWARDS: dict[FeedForwardKind, FeedForwardSpec] = {spec.name: spec for spec in _FEED_FORWARDS}


def layer_mixers(config: ModelConfig) -> list[MixerSpec]:
    """Return the mixer of each layer, from input to output."""
    return [MIXERS[name] for name in config.layers]


def model_parameters(config: ModelConfig) -> Parameters:
    """Return shape and role of every trained parameter, in model order."""
    C, V = config.d_model, config.vocab_size
    norm = Parameter((C,), "norm")
    parameters: Parameters = {"embedding.weight": Parameter((V, C), "embedding")}
    for i, mixer in enumerate(layer_mixers(config)):
        block = {"mixer_norm": norm}
        block |= {f"mixer.{name}": p for name, p in mixer.parameters(config).items()}
        if config.post_norms:
            block["mixer_post_norm"] = norm
        block["ffn_norm"] = norm
        feed_forward = FEED_FORWARDS[config.ffn].parameters(config)
        block |= {f"ffn.{name}": p for name, p in feed_forward.items()}
        if config.post_norms:
            block["ffn_post_norm"] = norm
        for name, parameter in block.items():
            suffix = "" if parameter.role == "bias" else ".weight"
            parameters[f"layers.{i}.{name}{suffix}"] = parameter
    if config.has_cross_decoder:
        shared = {"norm": norm} | _keys_values(config, _heads(config))
        parameters |= {f"shared_kv.{name}.weight": p for name, p in shared.items()}
    parameters["norm.weight"] = norm
    if not config.tie_embeddings:
        parameters["head.weight"] = Parameter((V, C), "head")
    if config.head_norm:
        parameters["head.norm.weight"] = norm
    return parameters


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every trained parameter, in model order."""
    return {name: parameter.shape for name, parameter in model_parameters(config).items()}
