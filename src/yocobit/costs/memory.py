"""Memory of a model in bytes: weights, KV caches, recurrent states and block index.

All functions iterate over the tables of mixers and weight formats. `session_bytes` equals the bytes
that the engine reserves; a test compares it with Session.memory().

Letters: H query heads   G KV heads   D head size   S cached positions
"""

from __future__ import annotations

import dataclasses
import mmap

from yocobit._native import (
    BLOCK_POSITIONS,
    CANDIDATES_PER_BLOCK,
    FIRST_BLOCKS,
    LANES,
    LAST_BLOCKS,
    PARTIAL_EXTRA,
    cache_types,
)
from yocobit.config import ModelConfig
from yocobit.mixers import FEED_FORWARDS, MixerSpec, layer_mixers
from yocobit.packing import PackedModel
from yocobit.packing.file_format import scale_name

PAGE_BYTES = mmap.PAGESIZE
_PARTIAL_PAGES = 3  # of a region of a growing cache


@dataclasses.dataclass(frozen=True)
class CacheFormat:
    """Storage of the K, or the V, of one head and position in a KV cache type."""

    bits: int  # per value
    row_values: int  # a row is padded to a multiple of this
    scale_bytes: int  # per row

    def row_bytes(self, D: int) -> int:
        """Return the bytes of D values."""
        return round_up(D, self.row_values) * self.bits // 8 + self.scale_bytes


CACHE_FORMATS = {
    record["name"]: CacheFormat(record["bits"], record["row_values"], record["scale_bytes"])
    for record in cache_types()
}


def round_up(n: int, multiple: int) -> int:
    """Return n rounded up to a multiple."""
    return -(-n // multiple) * multiple


# ---- weights ----


def parameter_bytes(model: PackedModel, name: str) -> int:
    """Return the bytes of a stored parameter, its scales included; 0 if it is not stored."""
    found = (model.tensors.get(name), model.tensors.get(scale_name(name)))
    return sum(tensor.end - tensor.begin for tensor in found if tensor)


def projection_bytes(model: PackedModel, of_experts: bool | None = None) -> dict[str, int]:
    """Return the bytes of the projections, their scales included, by format.

    `of_experts` selects those of experts or the others.
    """
    sizes: dict[str, int] = {}
    for name, stored in model.parameters.items():
        is_selected = of_experts in (None, is_of_experts(model.config, name))
        if stored.role == "projection" and is_selected:
            format = stored.format.name
            sizes[format] = sizes.get(format, 0) + parameter_bytes(model, name)
    return sizes


def is_of_experts(config: ModelConfig, name: str) -> bool:
    """Return whether a parameter is the matrix of all experts of a layer."""
    has_experts = FEED_FORWARDS[config.ffn].has_experts
    return has_experts and ".ffn." in name and name.endswith("_proj.weight")


def active_share(config: ModelConfig, batch: int) -> float:
    """Return the expected share of the experts that a step of a batch reads.

    k / E for one token. Assumes independent tokens and equally frequent experts.
    """
    if not config.n_experts:
        return 1.0
    E, k = config.n_experts, config.n_active_experts
    return float(1 - ((E - k) / E) ** batch)


def step_weight_bytes(model: PackedModel, batch: int = 1) -> int:
    """Return the bytes of weights that a decode step of a batch reads, of the active experts."""
    experts = sum(projection_bytes(model, of_experts=True).values())
    return weight_bytes(model) - round((1 - active_share(model.config, batch)) * experts)


def weight_bytes(model: PackedModel) -> int:
    """Return the bytes of all tensors that decode steps read: all but the embedding.

    A tied embedding counts, as the head reads it.
    """
    total = sum(tensor.end - tensor.begin for tensor in model.tensors.values())
    is_tied = "head.weight" not in model.tensors
    return total if is_tied else total - parameter_bytes(model, "embedding.weight")


# ---- sessions ----


def position_bytes(mixer: MixerSpec, config: ModelConfig, cache: str) -> int:
    """Return the bytes of one position in a layer's KV cache: K and V of G heads."""
    if mixer.kv_cache == "none" or mixer.heads is None:
        return 0
    heads = mixer.heads(config)
    return 2 * heads.n_kv_heads * CACHE_FORMATS[cache].row_bytes(heads.head_dim)


def kv_bytes_per_token(config: ModelConfig, cache: str) -> int:
    """Return the bytes of KV cache per token, without the index."""
    return sum(position_bytes(mixer, config, cache) for mixer in _owners(config, growing=True))


def window_bytes(config: ModelConfig, cache: str, n_tokens: int | None = None) -> int:
    """Return the bytes of all sliding-window caches for n_tokens; None: for any number.

    They are ring buffers of whole tiles, with room for the tokens of one forward pass, or for all
    tokens if these are fewer.
    """
    longest = config.window + FEED_FORWARDS[config.ffn].max_batch_tokens
    n_positions = round_up(longest if n_tokens is None else min(longest, n_tokens), BLOCK_POSITIONS)
    rings = _owners(config, growing=False)
    return n_positions * sum(position_bytes(mixer, config, cache) for mixer in rings)


def recurrent_bytes(config: ModelConfig) -> int:
    """Return the bytes of all recurrent states."""
    return sum(mixer.state_bytes(config) for mixer in layer_mixers(config))


def index_bytes(config: ModelConfig, n_tokens: int) -> int:
    """Return the bytes of the block index for a capacity of n_tokens, with its workspace."""
    if not config.has_index:
        return 0
    H, G, D = config.n_heads, config.n_kv_heads, config.head_dim
    n_blocks = -(-n_tokens // BLOCK_POSITIONS)
    n_scores = round_up(n_blocks, LANES)
    n_candidates = round_up(min(n_blocks, candidate_blocks(config)), LANES)
    per_query = 4 * (3 * D + PARTIAL_EXTRA + n_scores + 2 * n_candidates)
    return n_blocks * (bounds_bytes(config) + 4 * G) + H * per_query


def bounds_bytes(config: ModelConfig) -> int:
    """Return the bytes of one block's Quest bounds: minimum and maximum of its keys, in float16."""
    return 2 * 2 * config.n_kv_heads * config.head_dim


def candidate_blocks(config: ModelConfig) -> int:
    """Return the number of candidate blocks, from which the index selects by attention."""
    n_always = FIRST_BLOCKS + LAST_BLOCKS
    return n_always + CANDIDATES_PER_BLOCK * (config.cross_positions // BLOCK_POSITIONS - n_always)


def cache_bytes(config: ModelConfig, cache: str, n_tokens: int) -> int:
    """Return the bytes of KV caches and index for n_tokens."""
    growing = n_tokens * kv_bytes_per_token(config, cache)
    return growing + window_bytes(config, cache, n_tokens) + index_bytes(config, n_tokens)


def session_bytes(config: ModelConfig, cache: str, n_tokens: int) -> int:
    """Return the bytes that a session with a capacity of n_tokens reserves."""
    return cache_bytes(config, cache, round_up(n_tokens, BLOCK_POSITIONS)) + recurrent_bytes(config)


def committed_bytes(config: ModelConfig, cache: str, n_tokens: int, max_tokens: int) -> int:
    """Return an upper bound of the committed memory of a session of max_tokens after n_tokens.

    The system commits pages when they are first written. The keys, values and scales of each head
    take three pages more than their size: one shared with the adjacent region, a partial one, and
    one committed ahead.
    """
    n_regions = sum(
        2 * mixer.heads(config).n_kv_heads * (2 if CACHE_FORMATS[cache].scale_bytes else 1)
        for mixer in _owners(config, growing=True)
        if mixer.heads is not None
    )
    n_bytes = session_bytes(config, cache, n_tokens) + n_regions * _PARTIAL_PAGES * PAGE_BYTES
    return min(n_bytes, session_bytes(config, cache, max_tokens))


def _owners(config: ModelConfig, growing: bool) -> list[MixerSpec]:
    """Return one mixer per KV cache; the shared KV cache of all cross layers counts once."""
    mixers = layer_mixers(config)
    if not growing:
        return [mixer for mixer in mixers if mixer.kv_cache == "ring"]
    shared = [mixer for mixer in mixers if mixer.kv_cache == "shared"]
    return [mixer for mixer in mixers if mixer.kv_cache == "per_token"] + shared[:1]
