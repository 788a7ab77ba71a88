"""Per-sequence state: KV caches, recurrent states and the bounds of the block index.

Letters: T positions   C model width   V vocabulary   H heads   G K/V heads   D head size
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from yocobit import _native
from yocobit.errors import ConfigError
from yocobit.settings import whole_number

MAX_TOKENS = 1 << 40  # of a session
_MAX_LAYER = (1 << 31) - 1  # the limit of the bindings
CacheType = Literal["f32", "f16", "int8", "int4"]
DEFAULT_CACHE: CacheType = "int8"  # of every command, of the server and of Engine
Tokens = Sequence[int] | NDArray[np.integer[Any]]
Logits = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class SessionMemory:
    """Bytes reserved by a session, by purpose."""

    shared_kv: int  # the KV cache that all cross layers share; grows with the sequence
    full: int  # one KV cache per full-attention layer; grow with the sequence
    window: int  # ring buffers of sliding-window layers
    retention: int  # recurrent states of retention layers
    index: int  # Quest min/max bounds per block, and workspace of the top-k selection
    shared_kv_per_token: int
    full_per_token: int

    @property
    def total(self) -> int:
        """Bytes reserved in total."""
        return self.shared_kv + self.full + self.window + self.retention + self.index

    @property
    def per_token(self) -> int:
        """Bytes of KV cache per token, without the index."""
        return self.shared_kv_per_token + self.full_per_token


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A position that a session can be truncated to."""

    tokens: NDArray[np.int32]  # (T,) consumed before it
    state: NDArray[np.uint8]  # bytes of recurrent states and sliding-window caches


class Session:
    """Consumes tokens and returns logits. Created by Engine.session; its capacity is fixed.

    Logits are a pure function of model and tokens: independent of thread count, prefill chunking
    and batch composition.
    """

    def __init__(self, engine: _native.Engine, max_tokens: int, cache: CacheType) -> None:
        max_tokens = whole_number("max_tokens", max_tokens, 1, MAX_TOKENS)
        if cache not in get_args(CacheType):
            raise ConfigError(f"cache must be {' or '.join(get_args(CacheType))} but is {cache!r}")
        self.cache: CacheType = cache
        self._engine = engine
        self._native = _native.Session(engine, max_tokens, cache)
        self._logits: Logits | None = None

    @property
    def position(self) -> int:
        """Number of tokens consumed so far."""
        return int(self._native.position)

    @property
    def max_tokens(self) -> int:
        """Capacity in tokens."""
        return int(self._native.max_tokens)

    @property
    def logits(self) -> Logits:
        """Logits (V,) after the last token; ValueError before the first."""
        if self._logits is None:
            raise ValueError("session: has no logits; feed it a token first")
        return self._logits

    def feed(self, tokens: Tokens, out: Logits | None = None) -> Logits:
        """Consume tokens (T,) and return the logits (V,) after the last one, in `out` if given.

        Early exit: the cross-decoder runs for the last token only. ValueError, with nothing
        changed, if a token is not in the vocabulary, the capacity is exceeded or `out` is not a
        float32 array of that shape. After KeyboardInterrupt the session holds the tokens that were
        consumed before it, and remains usable.
        """
        tokens = as_tokens(tokens)
        logits = as_out(out, (self._engine.vocab_size,))
        with self._consuming():
            self._engine.feed(self._native, tokens, "last", logits)
        self._logits = logits
        return logits

    def step(self, token: int, out: Logits | None = None) -> Logits:
        """Consume one token; return its logits (V,), in `out` if given."""
        return self.feed([token], out)

    def feed_all(self, tokens: Tokens, out: Logits | None = None) -> Logits:
        """Consume tokens (T,) and return the logits after each, (T, V), in `out` if given."""
        tokens = as_tokens(tokens)
        logits = as_out(out, (len(tokens), self._engine.vocab_size))
        with self._consuming():
            self._engine.feed(self._native, tokens, "all", logits)
        self._logits = logits[-1]
        return logits

    def hidden_states(self, tokens: Tokens) -> NDArray[np.float32]:
        """Consume tokens (T,) and return their hidden states after the final norm, (T, C)."""
        tokens = as_tokens(tokens)
        hidden = np.empty((len(tokens), self._engine.d_model), dtype=np.float32)
        with self._consuming():
            self._engine.hidden_states(self._native, tokens, hidden)
        self._logits = None
        return hidden

    @contextmanager
    def _consuming(self) -> Iterator[None]:
        """Drop the logits if an exception leaves the session at another position.

        A prompt is consumed in batches, and Ctrl-C is handled between two of them.
        """
        before = self.position
        try:
            yield
        except BaseException:
            if self.position != before:
                self._logits = None
            raise

    def memory(self) -> SessionMemory:
        """Return the bytes reserved for this session, without its token ids (4 bytes each)."""
        return SessionMemory(**self._native.memory())

    @property
    def tokens(self) -> NDArray[np.int32]:
        """The tokens consumed so far, (T,)."""
        tokens = np.empty(self.position, dtype=np.int32)
        self._native.copy_tokens(tokens)
        return tokens

    def snapshot(self) -> Snapshot:
        """Return the current position; does not copy the growing KV caches."""
        return Snapshot(self.tokens, self.copy_state())

    def truncate(self, snapshot: Snapshot) -> None:
        """Drop all tokens after a snapshot of this session or of one with the same prefix.

        ValueError, with nothing changed, if this session does not start with the snapshot's tokens.
        """
        self.restore(snapshot.tokens, snapshot.state, kept=len(snapshot.tokens))

    def fork(self, max_tokens: int | None = None) -> Session:
        """Return a copy of this session; its capacity is `max_tokens`, by default the same."""
        room = self.max_tokens if max_tokens is None else max_tokens
        other = Session(self._engine, room, self.cache)
        if self.position > 0:
            other.restore(self.tokens, self.copy_state(), [self.copy_positions(0, self.position)])
            other._logits = None if self._logits is None else self._logits.copy()
        return other

    def saved_bytes(self, n_tokens: int) -> tuple[int, int]:
        """Return the sizes of copy_state and copy_positions after that many tokens."""
        per_position = int(self._native.bytes_per_position)
        return int(self._native.state_bytes(n_tokens)), n_tokens * per_position

    def is_finite(self) -> bool:
        """Whether no recurrent state, cached value or scale is NaN or infinite."""
        return bool(self._native.is_finite())

    def copy_state(self) -> NDArray[np.uint8]:
        """Return the bytes of recurrent states and sliding-window caches."""
        state = np.empty(self._native.state_bytes(self.position), dtype=np.uint8)
        self._engine.copy_state(self._native, state)
        return state

    def copy_positions(self, begin: int, end: int) -> NDArray[np.uint8]:
        """Return the bytes of positions [begin, end) in the growing KV caches."""
        begin = whole_number("begin", begin, -MAX_TOKENS, MAX_TOKENS)
        end = whole_number("end", end, -MAX_TOKENS, MAX_TOKENS)
        size = max(0, min(end, self.position) - begin) * self._native.bytes_per_position
        positions = np.empty(size, dtype=np.uint8)
        self._engine.copy_positions(self._native, begin, end, positions)
        return positions

    def restore(
        self,
        tokens: Tokens,
        state: NDArray[np.uint8],
        positions: Sequence[NDArray[np.uint8]] = (),
        kept: int = 0,
    ) -> None:
        """Restore the state after tokens (T,) from bytes of a session of the same cache type.

        `state` is the state after the last token. `positions` are the growing KV caches from
        position `kept` on, in consecutive pieces; this session keeps its first `kept` positions.
        ValueError, with nothing changed, if sizes or tokens do not match.
        """
        pieces = [_as_bytes("positions", piece) for piece in positions]
        kept = whole_number("kept", kept, -MAX_TOKENS, MAX_TOKENS)
        state = _as_bytes("state", state)
        self._engine.restore(self._native, as_tokens(tokens), state, kept, pieces)
        self._logits = None

    def retention_state(self, layer: int) -> NDArray[np.float32] | None:
        """Return a retention layer's state (H, D, D), key by value; None for other layers."""
        layer = whole_number("layer", layer, -_MAX_LAYER, _MAX_LAYER)
        state: NDArray[np.float32] | None = self._native.retention_state(layer)
        return state

    def keys_values(self, layer: int, begin: int, end: int) -> tuple[Logits, Logits] | None:
        """Return cached keys and values, each (G, end - begin, D); None if the layer has none.

        A cross layer returns the shared KV cache. IndexError for positions that are not cached.
        """
        layer = whole_number("layer", layer, -_MAX_LAYER, _MAX_LAYER)
        begin = whole_number("begin", begin, -MAX_TOKENS, MAX_TOKENS)
        end = whole_number("end", end, -MAX_TOKENS, MAX_TOKENS)
        found: tuple[Logits, Logits] | None = self._native.keys_values(layer, begin, end)
        return found


def as_tokens(tokens: Tokens) -> NDArray[np.int32]:
    """Return tokens as a contiguous int32 array; ValueError unless they are a list of integers."""
    array = np.asarray(tokens)
    if array.ndim != 1 or (array.size > 0 and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(
            f"tokens must be a list of integers but are {array.dtype} of shape {array.shape}"
        )
    if array.size > 0 and not (array.min() >= -(1 << 31) and array.max() < 1 << 31):
        raise ValueError(f"tokens must fit 32 bits but reach from {array.min()} to {array.max()}")
    return np.ascontiguousarray(array, dtype=np.int32)


def _as_bytes(name: str, value: Any) -> NDArray[np.uint8]:
    """Return a contiguous uint8 array; ValueError for any other kind."""
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 1:
        is_array = isinstance(value, np.ndarray)
        actual = f"{value.dtype} of shape {value.shape}" if is_array else type(value).__name__
        raise ValueError(f"{name} must be a uint8 array of one dimension but is {actual}")
    return np.ascontiguousarray(value)


def as_out(out: Logits | None, shape: tuple[int, ...]) -> Logits:
    """Return `out`, or a new array of that shape; ValueError if `out` cannot hold such logits."""
    if out is None:
        return np.empty(shape, dtype=np.float32)
    if not isinstance(out, np.ndarray):
        actual = type(out).__name__
    elif out.dtype != np.float32 or out.shape != shape:
        actual = f"{out.dtype} of shape {out.shape}"
    elif not out.flags.c_contiguous:
        actual = f"not contiguous, with strides {out.strides}"
    elif not out.flags.writeable:
        actual = "read-only"
    else:
        return out
    raise ValueError(
        f"out must be a contiguous float32 array of shape {shape} that is writable but is "
        f"{actual}; make it with numpy.empty({shape}, numpy.float32)"
    )
