"""The model's states in a transformers Cache: taken out before a call, put back after it.

Layers of a DynamicCache made for the model hold them: recurrent states of retention, the window of
sliding-window attention, keys and values of full attention, and those that the cross-decoder
shares with its first "cross". Reordering for beams is theirs; so is cropping, where there is no
recurrent state.
"""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache

from yocobit.config import CROSS_DECODER
from yocobit.hf.configuration import YocobitConfig
from yocobit.model import Cache
from yocobit.model.attention import KeysValues


def take(cache: DynamicCache, config: YocobitConfig) -> Cache:
    """Return the states in a transformers cache; ValueError if it is of another kind."""
    if not isinstance(cache, DynamicCache) or len(cache.layers) != config.num_hidden_layers:
        raise ValueError(
            "past_key_values must be a DynamicCache with a layer for each of the model's but is "
            f"{type(cache).__name__} with {len(cache.layers)}; make it with "
            "DynamicCache(config=model.config)"
        )
    if any(getattr(layer, "record_past", False) for layer in cache.layers):
        raise ValueError(
            "past_key_values must not record the past, which windows and states cannot give back; "
            "use a decoding method that never takes tokens back"
        )
    states: list[Any] = []
    for layer, mixer in zip(cache.layers, config.layers, strict=True):
        if mixer == "retention":
            states.append(layer.recurrent_states[0])
        elif mixer not in CROSS_DECODER:
            states.append(_keys_values(layer))
    has_cross = "cross" in config.layers
    shared = _keys_values(cache.layers[config.layers.index("cross")]) if has_cross else None
    return Cache(cache.get_seq_length(), states, shared)


def put(cache: DynamicCache, states: Cache, config: YocobitConfig) -> None:
    """Store the states that a call left behind."""
    n_new = states.position - cache.get_seq_length()
    for i, state in enumerate(states.layers):
        if config.layers[i] == "retention":
            cache.update_recurrent_state(state, i)
        else:
            _store(cache.layers[i], state, n_new)
    if states.shared is not None:
        _store(cache.layers[config.layers.index("cross")], states.shared, n_new)
    if config.layer_types[0] == "hybrid_sliding":
        empty = states.layers[0].new_empty(len(states.layers[0]), 1, 0, 0)
        _store(cache.layers[0], (empty, empty), n_new)


def _keys_values(layer: Any) -> KeysValues | None:
    is_empty = layer.keys is None or layer.get_seq_length() == 0
    return None if is_empty else (layer.keys, layer.values)


def _store(layer: Any, keys_values: KeysValues, n_new: int) -> None:
    # Not by its update(), which would append them once more.
    if not layer.is_initialized:
        layer.lazy_initialization(*keys_values)
    layer.keys, layer.values = keys_values
    if layer.is_sliding:
        layer.cumulative_length += n_new
