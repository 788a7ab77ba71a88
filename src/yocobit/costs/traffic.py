"""What a token must touch: the bytes and multiply-adds that no implementation can do without.

Counted from the packed tensors that run. Caches count as often as they are read: a cross layer
reads the shared keys and values anew, an index of them is read once. Activations, logits and work
space count for nothing.

Letters: C d_model   M output features   K input features   D head size   T positions
"""

from __future__ import annotations

import math

from yocobit.config import BLOCK, CANDIDATES_PER_BLOCK, FIRST_BLOCKS, LAST_BLOCKS, ModelConfig
from yocobit.costs.summary import position_bytes, retention_bytes, ring_bytes
from yocobit.mixers import parameter_shapes
from yocobit.packing import PackedModel

_LANES, _PARTIAL_EXTRA = 8, 8  # of the float rows of an index's scratch


def weight_bytes(model: PackedModel) -> int:
    """Return the bytes of every tensor that a decode step reads: all but the embedding.

    A head that is tied to the embedding reads all of that.
    """
    is_tied = "head.weight" not in model.tensors
    return sum(
        tensor.end - tensor.begin
        for name, tensor in model.tensors.items()
        if is_tied or not name.startswith("embedding.")
    )


def cache_bytes(config: ModelConfig, cache: str, depth: int, n_tokens: int) -> int:
    """Return the bytes that decoding `n_tokens` after `depth` others reads and writes of the caches
    of their session.

    Keys and values are read of every position that each layer sees, the token's own included;
    retention states are read and written. Gated memory units read no cache.
    """
    end = depth + n_tokens
    shared = position_bytes(config.n_kv_heads, config.head_dim, cache)
    ring = position_bytes(config.n_self_kv_heads, config.self_head_dim, cache)
    by_mixer = {
        "full": shared * _positions(depth, end),
        "cross": shared * _cross_positions(config, depth, end),
        "window": ring * _positions(depth, end, config.window),
        "retention": 0,
        "gmu": 0,
    }
    states = 2 * retention_bytes(config) * n_tokens
    tried = shared * _tried_positions(config, depth, end)
    read = sum(by_mixer[mixer] for mixer in config.layers)
    return states + read + tried + _bounds_bytes(config, depth, end)


def touched_bytes(config: ModelConfig, cache: str, n_tokens: int) -> int:
    """Return the bytes of keys and values that the last of so many tokens reads, each counted once:
    all of them, unless cross layers attend to some blocks only."""
    last = n_tokens - 1
    caches = config.layers.count("full") * n_tokens
    if config.has_cross_decoder:  # what an index tries has all that it chooses
        chosen = _cross_positions(config, last, n_tokens)
        caches += max(chosen, _tried_positions(config, last, n_tokens))
    shared = position_bytes(config.n_kv_heads, config.head_dim, cache)
    ring = position_bytes(config.n_self_kv_heads, config.self_head_dim, cache)
    rings = config.layers.count("window") * min(n_tokens, config.window) * ring
    return shared * caches + rings + _bounds_bytes(config, last, n_tokens)


def selection_bytes(config: ModelConfig, cache: str, n_tokens: int) -> tuple[int, int]:
    """Return what an index reads to select blocks for the last of so many tokens: the bytes of
    bounds and candidates, and those among them that attention does not read."""
    last = n_tokens - 1
    shared = position_bytes(config.n_kv_heads, config.head_dim, cache)
    bounds = _bounds_bytes(config, last, n_tokens)
    candidates = _tried_positions(config, last, n_tokens)
    others = max(candidates - _cross_positions(config, last, n_tokens), 0)
    return bounds + shared * candidates, bounds + shared * others


def session_bytes(config: ModelConfig, cache: str, n_tokens: int) -> int:
    """Return the memory that a session of so many tokens needs, but for rounding."""
    shared = position_bytes(config.n_kv_heads, config.head_dim, cache)
    return (
        config.layers.count("full") * shared * n_tokens
        + config.has_cross_decoder * shared * n_tokens
        + ring_bytes(config, cache)
        + retention_bytes(config)
        + _index_bytes(config, n_tokens)
    )


def session_memory_bytes(config: ModelConfig, cache: str, n_tokens: int) -> int:
    """Return the bytes that a session of `n_tokens` reserves: exactly its memory().total."""
    whole_blocks = session_bytes(config, cache, _round_up(n_tokens, BLOCK))
    if not config.has_index:
        return whole_blocks
    n_blocks = -(-n_tokens // BLOCK)
    n_candidates = min(n_blocks, _most_tried_blocks(config))
    parts_and_partials = 3 * config.head_dim + _PARTIAL_EXTRA
    scores = _round_up(n_blocks, _LANES) + 2 * _round_up(n_candidates, _LANES)
    scratch = 4 * (config.n_heads * (parts_and_partials + scores) + config.n_kv_heads * n_blocks)
    index = _block_bytes(config) * n_blocks + scratch  # native/engine/block_index.cpp
    return whole_blocks - _index_bytes(config, n_tokens) + index


def decode_bytes(model: PackedModel, cache: str, depth: int, n_tokens: int, batch: int) -> int:
    """Return the bytes of `n_tokens` decode steps of `batch` sessions after `depth` tokens each.

    A step reads the weights once, and of each session a row of the embedding and the caches.
    """
    embedding_row = sum(
        (tensor.end - tensor.begin) // tensor.shape[0]
        for name, tensor in model.tensors.items()
        if name.startswith("embedding.")
    )
    each = n_tokens * embedding_row + cache_bytes(model.config, cache, depth, n_tokens)
    return n_tokens * weight_bytes(model) + batch * each


def multiply_adds(config: ModelConfig, n_tokens: int, n_logits: int) -> int:
    """Return the products with weights for `n_tokens` tokens, `n_logits` of which get logits.

    The cross-decoder and the head run for those only.
    """
    early, late = 0, 0  # of one token: before the early exit, and after it
    for name, shape in parameter_shapes(config).items():
        if len(shape) != 2 or name == "embedding.weight":
            continue
        if _runs_late(name, config):
            late += math.prod(shape)
        else:
            early += math.prod(shape)
    if config.tie_embeddings:
        late += config.vocab_size * config.d_model
    return n_tokens * early + n_logits * late


def mixer_multiply_adds(config: ModelConfig, depth: int, n_tokens: int, n_logits: int) -> int:
    """Return the multiply-adds of attention and retention: of scores and of values, both float."""
    C = config.d_model
    end = depth + n_tokens
    by_mixer = {
        "full": 2 * C * _positions(depth, end),
        "cross": 2 * C * _cross_positions(config, end - n_logits, end),
        "window": 2 * C * _positions(depth, end, config.window),
        "retention": 0,
        "gmu": 0,
    }
    retention = retention_multiply_adds(config) * n_tokens
    # A query is multiplied with the largest and the smallest value of each block's keys, once, and
    # attends to the blocks that are tried.
    begin = end - n_logits
    index = 2 * C * (_indexed_blocks(config, begin, end) + _tried_positions(config, begin, end))
    return retention + sum(by_mixer[mixer] for mixer in config.layers) + index


def retention_multiply_adds(config: ModelConfig) -> int:
    """Return those of retention for a token: state += k v, o = q state."""
    return config.layers.count("retention") * 2 * config.d_model * config.self_head_dim


def _runs_late(name: str, config: ModelConfig) -> bool:
    """Say whether a weight is of the cross-decoder or the head."""
    part, _, rest = name.partition(".")
    if part == "layers":
        return int(rest.split(".")[0]) >= config.n_self_layers
    return part == "head"


def _block_bytes(config: ModelConfig) -> int:
    """Return the bytes that an index keeps of a block: the bounds of its keys, in float16."""
    return 2 * 2 * config.n_kv_heads * config.head_dim


def _bounds_bytes(config: ModelConfig, begin: int, end: int) -> int:
    """Return the bytes of the index that tokens [begin, end) read, once for all cross layers."""
    return _block_bytes(config) * _indexed_blocks(config, begin, end)


def _indexed_blocks(config: ModelConfig, begin: int, end: int) -> int:
    """Return the sum over tokens [begin, end) of the blocks that each chooses from; none while it
    can attend to all positions."""
    if not config.has_index:
        return 0
    return _positions(min(max(begin, config.cross_positions), end), end) // BLOCK


def _tried_positions(config: ModelConfig, begin: int, end: int) -> int:
    """Return the sum over tokens [begin, end) of the positions that each attends to in order to
    choose; none while it can attend to all."""
    if not config.has_index:
        return 0
    choosing = min(max(begin, config.cross_positions), end)
    return _positions(choosing, end, _most_tried_blocks(config) * BLOCK - BLOCK // 2)


def _most_tried_blocks(config: ModelConfig) -> int:
    n_anyway = FIRST_BLOCKS + LAST_BLOCKS
    return n_anyway + CANDIDATES_PER_BLOCK * (config.cross_positions // BLOCK - n_anyway)


def _index_bytes(config: ModelConfig, n_tokens: int) -> int:
    """Return the bytes of an index for so many tokens, with its work space."""
    if not config.has_index:
        return 0
    n_blocks = -(-n_tokens // BLOCK)
    scores_and_order = 4 * (config.n_heads + config.n_kv_heads)
    n_tried = min(n_blocks, _most_tried_blocks(config))
    of_a_query = 4 * (3 * config.head_dim + 2 * n_tried)
    return (_block_bytes(config) + scores_and_order) * n_blocks + config.n_heads * of_a_query


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _cross_positions(config: ModelConfig, begin: int, end: int) -> int:
    """Return the sum over tokens [begin, end) of the positions that each attends to."""
    if config.cross_attention == "full":
        return _positions(begin, end)
    window = config.cross_positions - BLOCK // 2  # the last block is half full, on average
    return _positions(begin, end, window)


def _positions(begin: int, end: int, window: int | None = None) -> int:
    """Return the sum over tokens [begin, end) of the positions that each sees, itself included."""
    whole = max(begin, min(end, end if window is None else window))  # from here on the window is
    growing = (whole * (whole + 1) - begin * (begin + 1)) // 2
    return growing + (end - whole) * (window or 0)
