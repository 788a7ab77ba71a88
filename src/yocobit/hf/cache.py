"""The model's states in a transformers Cache: loaded before a call, stored after it.

The layers of a DynamicCache made for the model hold them: recurrent states, KV caches of windows
and of full attention, and the cross-decoder's shared K and V in its first attention layer.
transformers reorders them for beam search, and crops them where there is no recurrent state.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache

from yocobit.config import ModelConfig
from yocobit.mixers import layer_mixers
from yocobit.model import Cache
from yocobit.model.attention import KeysValues


def load(cache: DynamicCache, config: ModelConfig) -> Cache:
    """Return the states in a transformers cache; ValueError for a cache of another kind."""
    specs = layer_mixers(config)
    if not isinstance(cache, DynamicCache) or len(cache.layers) != len(specs):
        raise ValueError(
            f"past_key_values must be a DynamicCache with {len(specs)} layers but is a "
            f"{type(cache).__name__} with {len(cache.layers)}; create it with "
            "DynamicCache(config=model.config)"
        )
    for layer, spec in zip(cache.layers, specs, strict=True):
        if spec.state_shape is not None and not hasattr(layer, "recurrent_states"):
            raise ValueError(
                f"past_key_values must have the recurrent state of '{spec.name}' layers but has a "
                f"{type(layer).__name__}; create it with DynamicCache(config=model.config)"
            )
    if any(getattr(layer, "record_past", False) for layer in cache.layers):
        raise ValueError(
            "past_key_values must not record the past, which windows and states cannot restore; "
            "use a decoding method that never discards tokens"
        )
    states: list[Any] = []
    for layer, spec in zip(cache.layers, specs, strict=True):
        if spec.decoder == "cross":
            break
        if spec.state_shape is not None:
            states.append(layer.recurrent_states[0])
        else:
            states.append(None if spec.kv_cache == "none" else _keys_values(layer))
    has_shared = config.has_cross_decoder
    shared = _keys_values(cache.layers[_shared_layer(config)]) if has_shared else None
    return Cache(cache.get_seq_length(), states, shared)


def store(cache: DynamicCache, states: Cache, config: ModelConfig, hidden: Tensor) -> None:
    """Store the states after a call that returned hidden (B, T, C)."""
    n_new = states.position - cache.get_seq_length()
    specs = layer_mixers(config)
    for i, state in enumerate(states.layers):
        if specs[i].state_shape is not None:
            cache.update_recurrent_state(state, i)
        elif specs[i].kv_cache != "none":
            _store(cache.layers[i], state, n_new)
    if states.shared is not None:
        _store(cache.layers[_shared_layer(config)], states.shared, n_new)
    if counts_tokens(config):
        empty = hidden.new_empty(hidden.shape[0], 1, 0, 0)
        _store(cache.layers[0], (empty, empty), n_new)


def counts_tokens(config: ModelConfig) -> bool:
    """Return whether no layer has a KV cache: layer 0 then counts tokens in an empty window."""
    return all(spec.kv_cache == "none" for spec in layer_mixers(config))


def _shared_layer(config: ModelConfig) -> int:
    """Return the layer that stores the shared K and V."""
    return [spec.kv_cache for spec in layer_mixers(config)].index("shared")


def _keys_values(layer: Any) -> KeysValues | None:
    is_empty = layer.keys is None or layer.get_seq_length() == 0
    return None if is_empty else (layer.keys, layer.values)


def _store(layer: Any, keys_values: KeysValues, n_new: int) -> None:
    # Not with layer.update(), which would append all of them again.
    if not layer.is_initialized:
        layer.lazy_initialization(*keys_values)
    layer.keys, layer.values = keys_values
    if layer.is_sliding:
        layer.cumulative_length += n_new
