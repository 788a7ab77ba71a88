"""Prefixes that were seen before, so that a prompt which begins alike is not computed again.

What a text leaves in the caches that grow is kept in blocks of BLOCK positions, each under a hash
of all tokens up to its end, so that texts which begin alike share blocks. What it leaves in
retention states and windows is kept at places where going on is likely: the end of a prompt, the
end of an answer, and where two texts part. A model that has neither can go on after any block. A
hit copies both into a session; by the engine's contract, what follows has the bits of a miss.

Letters: T positions
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, OrderedDict

import numpy as np
from numpy.typing import NDArray

from yocobit.engine import Session
from yocobit.serving.prefix_store import Place, PrefixStore

BLOCK = 64  # positions

Bytes = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Hit:
    """How much of a prompt is known; a session that is restored from it can go on there."""

    position: int = 0  # tokens
    state: Bytes | None = None
    pieces: tuple[Bytes, ...] = ()
    fork: int = 0  # tokens shared with another text, if more: a place worth keeping


class Chain:
    """The keys of a text's blocks, each of all tokens up to the block's end."""

    def __init__(self, *keys: bytes) -> None:
        self.keys = list(keys)

    def copy(self) -> Chain:
        return Chain(*self.keys)

    def extend(self, tokens: NDArray[np.int32]) -> None:
        """Know the keys of all whole blocks of tokens (T,), which begin as those before."""
        for begin in range(BLOCK * (len(self.keys) - 1), len(tokens) - BLOCK + 1, BLOCK):
            self.keys.append(_hash(self.keys[-1], tokens[begin : begin + BLOCK]))


class PrefixCache:
    """Keeps blocks and states up to a number of bytes; what was not used for longest goes first."""

    def __init__(
        self,
        capacity: int,
        model: str,
        bytes_per_position: int,
        store: PrefixStore | None = None,
    ) -> None:
        """Begin empty, for sessions of one model and cache type, which `model` tells from others.

        What `store` holds is found as well, and what is kept is written there, too.
        """
        self.size = 0  # bytes
        self._capacity = capacity
        self._root = hashlib.blake2b(model.encode(), digest_size=32).digest()
        self._bytes_per_position = bytes_per_position
        # An entry is used whenever one that follows it is, so those that follow it go before it.
        self._entries: OrderedDict[bytes, Bytes] = OrderedDict()
        self._places: dict[bytes, Place] = {}  # of states in memory or in the store
        self._tails: dict[bytes, Counter[int]] = {}  # how many have that tail, by block
        self._is_stateless = False  # until a session shows it
        self._store = store
        if store is not None:
            for key, place in store.places().items():
                self._know(key, place)

    def __len__(self) -> int:
        return len(self._entries)

    def chain(self) -> Chain:
        """Return the chain of an empty text."""
        return Chain(self._root)

    def find(self, tokens: NDArray[np.int32], chain: Chain) -> Hit:
        """Return what is known of a prompt (T,) but its last token, whose logits will be asked for.

        `chain` is that of the prompt so far.
        """
        chain.extend(tokens)
        hit = self._find(tokens[:-1], chain)
        self._shrink()
        return hit

    def keep(self, session: Session, chain: Chain) -> None:
        """Keep what a session holds; `chain` is that of its text so far."""
        tokens = session.tokens
        chain.extend(tokens)
        n, tail = divmod(len(tokens), BLOCK)
        for i in range(n):
            if not self._holds(chain.keys[i + 1]):
                self._put(chain.keys[i + 1], session.copy_positions(BLOCK * i, BLOCK * (i + 1)))
        key = _state_key(chain.keys[n], tokens[BLOCK * n :])
        if not self._holds(key):
            state, rest = session.copy_state(), session.copy_positions(BLOCK * n, len(tokens))
            self._is_stateless = len(tokens) > 0 and len(state) == 0
            place = Place(chain.keys[n], tail)
            self._know(key, place)
            self._put(key, np.concatenate([state, rest]), place)
        self._use([key, *chain.keys[n:0:-1]])
        self._shrink()

    def _find(self, known: NDArray[np.int32], chain: Chain) -> Hit:
        blocks: list[Bytes] = []
        for key in chain.keys[1 : len(known) // BLOCK + 1]:
            if (block := self._get(key, BLOCK)) is None:
                break
            blocks.append(block)
        for n in range(len(blocks), -1, -1):
            for tail in sorted(self._tails.get(chain.keys[n], ()), reverse=True):
                position = BLOCK * n + tail
                key = _state_key(chain.keys[n], known[BLOCK * n : position])
                entry = self._get(key, tail, has_state=True) if position <= len(known) else None
                if entry is None:
                    continue
                self._use([key, *chain.keys[n:0:-1]])
                state, rest = np.split(entry, [len(entry) - tail * self._bytes_per_position])
                fork = BLOCK * len(blocks) if n < len(blocks) else 0
                return Hit(position, state, (*blocks[:n], rest), fork)
            if self._is_stateless and n > 0:
                self._use(chain.keys[n:0:-1])
                return Hit(BLOCK * n, np.empty(0, dtype=np.uint8), tuple(blocks))
        return Hit(fork=BLOCK * len(blocks))

    def _holds(self, key: bytes) -> bool:
        return key in self._entries or (self._store is not None and key in self._store)

    def _get(self, key: bytes, n_positions: int, has_state: bool = False) -> Bytes | None:
        """Return an entry of so many positions, from the store if it must be."""
        entry = self._entries.get(key)
        if entry is None and self._store is not None:
            entry = self._store.read(key)
            if entry is None:
                return None
            state_bytes = entry.nbytes - n_positions * self._bytes_per_position
            if state_bytes < 0 or (state_bytes > 0 and not has_state):
                self._store.drop(key)  # as another build of the engine may have left it
                return None
            self._entries[key] = entry
            self.size += entry.nbytes
        return entry

    def _put(self, key: bytes, entry: Bytes, place: Place | None = None) -> None:
        self._entries[key] = entry
        self.size += entry.nbytes
        if self._store is not None:
            self._store.write(key, entry, place)

    def _use(self, keys: list[bytes]) -> None:
        """Note the use of a state and its blocks, last block first."""
        for key in keys:
            if key in self._entries:
                self._entries.move_to_end(key)

    def _shrink(self) -> None:
        while self.size > self._capacity:
            key, entry = self._entries.popitem(last=False)
            self.size -= entry.nbytes
            if self._store is None or key not in self._store:
                self._forget(key)
        for key in self._store.take_dropped() if self._store is not None else ():
            if not self._holds(key):
                self._forget(key)

    def _know(self, key: bytes, place: Place) -> None:
        if key in self._places:
            return
        self._places[key] = place
        self._tails.setdefault(place.block, Counter())[place.tail] += 1

    def _forget(self, key: bytes) -> None:
        """Look for a state no more."""
        if (place := self._places.pop(key, None)) is None:
            return
        tails = self._tails[place.block]
        tails[place.tail] -= 1
        if tails[place.tail] == 0:
            del tails[place.tail]
        if not tails:
            del self._tails[place.block]


def _hash(key: bytes, tokens: NDArray[np.int32], kind: bytes = b"block") -> bytes:
    data = np.ascontiguousarray(tokens, dtype="<i4").tobytes()
    return hashlib.blake2b(key + data, digest_size=32, person=kind).digest()


def _state_key(block: bytes, tail: NDArray[np.int32]) -> bytes:
    return _hash(block, tail, b"state")
