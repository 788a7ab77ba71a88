"""Memory traffic and multiply-adds: the minimum that any implementation of the model needs.

Counted from the packed tensors. A KV cache counts once per layer that reads it: every cross layer
reads the shared KV cache. The index is read once. Activations, logits and workspaces do not count.

Letters: C d_model   S cached positions   T positions
"""

from __future__ import annotations

import math

from yocobit._native import BLOCK_POSITIONS
from yocobit.config import ModelConfig
from yocobit.costs.memory import (
    bounds_bytes,
    candidate_blocks,
    is_of_experts,
    parameter_bytes,
    position_bytes,
    recurrent_bytes,
    step_weight_bytes,
)
from yocobit.mixers import MIXERS, MixerSpec, layer_mixers, model_parameters
from yocobit.packing import PackedModel

# ---- bytes ----


def decode_bytes(model: PackedModel, cache: str, depth: int, n_tokens: int, batch: int) -> int:
    """Return the memory traffic of n_tokens decode steps of a batch at a depth.

    A step reads the weights once, but those of the active experts only, and, for each session, one
    row of the embedding and the caches.
    """
    embedding_row = parameter_bytes(model, "embedding.weight") // model.config.vocab_size
    each = n_tokens * embedding_row + session_traffic(model.config, cache, depth, n_tokens)
    return n_tokens * step_weight_bytes(model, batch) + batch * each


def session_traffic(config: ModelConfig, cache: str, depth: int, n_tokens: int) -> int:
    """Return the memory traffic of a session that decodes n_tokens at a depth.

    It is that of KV caches, index and recurrent states.
    """
    states = 2 * recurrent_bytes(config)  # read and written
    return kv_traffic(config, cache, depth, n_tokens) + n_tokens * states


def kv_traffic(
    config: ModelConfig, cache: str, depth: int, n_tokens: int, selection: bool = True
) -> int:
    """Return the bytes of KV caches that decoding n_tokens at a depth reads.

    With `selection`, those of the index count too.
    """
    end = depth + n_tokens
    attended = sum(
        position_bytes(mixer, config, cache) * _attended(mixer, config, depth, end)
        for mixer in layer_mixers(config)
    )
    if not selection:
        return attended
    candidates = _shared_position_bytes(config, cache) * _candidate_positions(config, depth, end)
    return attended + candidates + bounds_bytes(config) * _scored_blocks(config, depth, end)


def unique_kv_bytes(config: ModelConfig, cache: str, n_tokens: int, selection: bool = True) -> int:
    """Return the distinct bytes of KV caches that decoding the last of n_tokens reads.

    With `selection`, those of the index count too.
    """
    last = n_tokens - 1
    own = sum(
        position_bytes(mixer, config, cache) * _attended(mixer, config, last, n_tokens)
        for mixer in layer_mixers(config)
        if mixer.kv_cache != "shared"
    )
    if not config.has_cross_decoder:
        return own
    shared, bounds = _attended(MIXERS["cross"], config, last, n_tokens), 0
    if selection:  # the candidates include the selected blocks
        shared = max(shared, _candidate_positions(config, last, n_tokens))
        bounds = bounds_bytes(config) * _scored_blocks(config, last, n_tokens)
    return own + shared * _shared_position_bytes(config, cache) + bounds


def _shared_position_bytes(config: ModelConfig, cache: str) -> int:
    return position_bytes(MIXERS["cross"], config, cache)


# ---- multiply-adds ----


def multiply_adds(config: ModelConfig, n_tokens: int, n_logits: int) -> int:
    """Return the multiply-adds with weights for n_tokens, of which n_logits need logits.

    Early exit: the cross-decoder and the head run for these only.
    """
    early, late = 0, 0  # per token
    for name, parameter in model_parameters(config).items():
        if len(parameter.shape) != 2 or parameter.role == "embedding":
            continue
        size = math.prod(parameter.shape)
        if is_of_experts(config, name):
            size = size // config.n_experts * config.n_active_experts
        if _is_after_exit(name, config):
            late += size
        else:
            early += size
    if config.tie_embeddings:
        late += config.vocab_size * config.d_model
    return n_tokens * early + n_logits * late


def attention_multiply_adds(
    config: ModelConfig, depth: int, n_tokens: int, n_logits: int, selection: bool = True
) -> int:
    """Return the float multiply-adds of attention, and of the index if `selection`."""
    end = depth + n_tokens
    total = 0
    for mixer in layer_mixers(config):
        begin = end - n_logits if mixer.decoder == "cross" else depth
        total += mixer.attention_multiply_adds(config) * _attended(mixer, config, begin, end)
    if not selection:
        return total
    # An index multiplies the query by both bounds of each block and attends to the candidates.
    begin = end - n_logits
    scored = _scored_blocks(config, begin, end) + _candidate_positions(config, begin, end)
    return total + MIXERS["cross"].attention_multiply_adds(config) * scored


def recurrent_multiply_adds(config: ModelConfig) -> int:
    """Return the float multiply-adds with recurrent states, per token."""
    return sum(mixer.state_multiply_adds(config) for mixer in layer_mixers(config))


def mixer_multiply_adds(config: ModelConfig, depth: int, n_tokens: int, n_logits: int) -> int:
    """Return the float multiply-adds of attention and of recurrent states."""
    attention = attention_multiply_adds(config, depth, n_tokens, n_logits)
    return attention + n_tokens * recurrent_multiply_adds(config)


def _is_after_exit(name: str, config: ModelConfig) -> bool:
    """Return whether a weight belongs to the cross-decoder or the head."""
    part, _, rest = name.partition(".")
    if part == "layers":
        return MIXERS[config.layers[int(rest.split(".")[0])]].decoder == "cross"
    return part == "head"


# ---- positions ----


def _attended(mixer: MixerSpec, config: ModelConfig, begin: int, end: int) -> int:
    """Return the sum over tokens [begin, end) of the positions that a layer attends to."""
    if mixer.kv_cache == "none":
        return 0
    if mixer.kv_cache == "ring":
        return _visible(begin, end, config.window)
    if mixer.kv_cache == "shared" and config.cross_attention != "full":
        # The last of the selected blocks is half full, on average.
        return _visible(begin, end, config.cross_positions - BLOCK_POSITIONS // 2)
    return _visible(begin, end)


def _scored_blocks(config: ModelConfig, begin: int, end: int) -> int:
    """Return the sum over tokens [begin, end) of the blocks that the index scores.

    These are 0 for a token that attends to all positions.
    """
    if not config.has_index:
        return 0
    return _visible(_first_selecting(config, begin, end), end) // BLOCK_POSITIONS


def _candidate_positions(config: ModelConfig, begin: int, end: int) -> int:
    """Return the sum over tokens [begin, end) of the positions in candidate blocks.

    These are 0 for a token that attends to all positions.
    """
    if not config.has_index:
        return 0
    first = _first_selecting(config, begin, end)
    return _visible(first, end, candidate_blocks(config) * BLOCK_POSITIONS - BLOCK_POSITIONS // 2)


def _first_selecting(config: ModelConfig, begin: int, end: int) -> int:
    """Return the first token of [begin, end) that sees more positions than it attends to."""
    return min(max(begin, config.cross_positions), end)


def _visible(begin: int, end: int, window: int | None = None) -> int:
    """Return the sum over tokens [begin, end) of the positions in a causal window."""
    full = max(begin, min(end, end if window is None else window))  # first token with a full window
    growing = (full * (full + 1) - begin * (begin + 1)) // 2
    return growing + (end - full) * (window or 0)
