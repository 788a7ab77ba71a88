"""The prefix cache: a prompt that starts like an earlier one is not prefilled again.

The KV cache of a sequence is kept in blocks of BLOCK positions, each under a hash of all tokens up
to its end, so sequences with a common prefix share blocks. Recurrent states and sliding windows are
kept where a later request is likely to resume: at the end of a prompt, at the end of a response,
and at the branch point of two sequences. A model without them can resume after any block. A hit
copies both into a session; by the engine's contract, what follows is bit-identical to a miss.

Letters: T positions
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from yocobit.engine import Session
from yocobit.serving.runtime.prefix_store import PrefixStore, StateLocation

BLOCK = 64  # positions

Bytes = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Hit:
    """The cached prefix of a prompt: a session that is restored from it resumes there."""

    position: int = 0  # tokens
    state: Bytes | None = None
    pieces: tuple[Bytes, ...] = ()
    branch_point: int = 0  # tokens shared with another sequence, if more: worth a checkpoint


class Chain:
    """The keys of a sequence's blocks: each hashes all tokens up to the block's end."""

    def __init__(self, *keys: bytes) -> None:
        self.keys = list(keys)

    def copy(self) -> Chain:
        return Chain(*self.keys)

    def extend(self, tokens: NDArray[np.int32]) -> None:
        """Add the keys of the whole blocks of tokens (T,), which start with the earlier ones."""
        for start in range(BLOCK * (len(self.keys) - 1), len(tokens) - BLOCK + 1, BLOCK):
            self.keys.append(_hash(self.keys[-1], tokens[start : start + BLOCK]))


class PrefixCache:
    """Blocks and states of up to `capacity` bytes; the least recently used are evicted first."""

    def __init__(
        self,
        capacity: int,
        model: str,
        bytes_per_position: int,
        store: PrefixStore | None = None,
        salts: Mapping[str, bytes] | None = None,
    ) -> None:
        """Start empty. `model` identifies the model, its numerics and its cache type.

        Entries are also read from `store`, and written to it. Clients with different salts share
        no entries: hits, and the time they save, would tell one what another requested.
        """
        self.size = 0  # bytes
        self._capacity = capacity
        self._root = hashlib.blake2b(model.encode(), digest_size=32).digest()
        self._salts = salts or {}
        self._bytes_per_position = bytes_per_position
        # Using an entry also uses all that precede it, so entries are evicted last block first.
        self._entries: OrderedDict[bytes, Bytes] = OrderedDict()
        self._locations: dict[bytes, StateLocation] = {}  # of states in memory or in the store
        self._tails: dict[bytes, Counter[int]] = {}  # number of states by tail length, by block
        self._is_stateless = False  # set by the first stored session
        self._store = store
        if store is not None:
            for key, location in store.locations().items():
                self._register(key, location)

    def __len__(self) -> int:
        return len(self._entries)

    def chain(self, client: str = "", own_salt: str = "") -> Chain:
        """Return the chain of a client's empty sequence; requests with other salts have others."""
        salt = self._salts.get(client, b"")
        if own_salt:
            salt += hashlib.sha256(own_salt.encode()).digest()
        if not salt:
            return Chain(self._root)
        return Chain(hashlib.blake2b(self._root + salt, digest_size=32, person=b"salt").digest())

    def find(self, tokens: NDArray[np.int32], chain: Chain) -> Hit:
        """Return the longest cached prefix of a prompt (T,) without its last token, whose logits
        are needed. `chain` is that of the prompt so far.
        """
        if self._store is not None:
            for key, location in self._store.refresh().items():
                self._register(key, location)
        chain.extend(tokens)
        hit = self._find(tokens[:-1], chain)
        self._evict()
        return hit

    def store(self, session: Session, chain: Chain) -> None:
        """Cache a session's blocks and state; `chain` is that of its tokens so far."""
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
            location = StateLocation(chain.keys[n], tail)
            self._register(key, location)
            self._put(key, np.concatenate([state, rest]), location)
        self._touch([key, *chain.keys[n:0:-1]])
        self._evict()

    def discard(self, tokens: NDArray[np.int32], chain: Chain) -> None:
        """Remove the state and the blocks of tokens (T,), which no session accepts."""
        n = len(tokens) // BLOCK
        for key in (*chain.keys[1 : n + 1], _state_key(chain.keys[n], tokens[BLOCK * n :])):
            if (entry := self._entries.pop(key, None)) is not None:
                self.size -= entry.nbytes
            if self._store is not None:
                self._store.drop(key)
            if not self._holds(key):
                self._unregister(key)

    def _find(self, tokens: NDArray[np.int32], chain: Chain) -> Hit:
        blocks: list[Bytes] = []
        keys = chain.keys[1 : len(tokens) // BLOCK + 1]
        for i, key in enumerate(keys):
            was_stored = self._holds(key)
            if (block := self._get(key, BLOCK)) is None:
                if was_stored:  # damage is seldom alone: this request stores all of it again
                    self._read_all(tokens, chain, i + 1)
                break
            blocks.append(block)
        for n in range(len(blocks), -1, -1):
            for tail in sorted(self._tails.get(chain.keys[n], ()), reverse=True):
                position = BLOCK * n + tail
                key = _state_key(chain.keys[n], tokens[BLOCK * n : position])
                entry = self._get(key, tail, has_state=True) if position <= len(tokens) else None
                if entry is None:
                    continue
                self._touch([key, *chain.keys[n:0:-1]])
                state, rest = np.split(entry, [len(entry) - tail * self._bytes_per_position])
                branch_point = BLOCK * len(blocks) if n < len(blocks) else 0
                return Hit(position, state, (*blocks[:n], rest), branch_point)
            if self._is_stateless and n > 0:
                self._touch(chain.keys[n:0:-1])
                return Hit(BLOCK * n, np.empty(0, dtype=np.uint8), tuple(blocks))
        return Hit(branch_point=BLOCK * len(blocks))

    def _read_all(self, tokens: NDArray[np.int32], chain: Chain, first: int) -> None:
        """Read the blocks and states of tokens (T,) from the block with that number on."""
        for n in range(first, len(tokens) // BLOCK + 1):
            self._get(chain.keys[n], BLOCK)
            for tail in tuple(self._tails.get(chain.keys[n], ())):
                position = BLOCK * n + tail
                if position <= len(tokens):
                    key = _state_key(chain.keys[n], tokens[BLOCK * n : position])
                    self._get(key, tail, has_state=True)

    def _holds(self, key: bytes) -> bool:
        return key in self._entries or (self._store is not None and key in self._store)

    def _get(self, key: bytes, n_positions: int, has_state: bool = False) -> Bytes | None:
        """Return an entry of `n_positions`, read from the store if it is not in memory."""
        entry = self._entries.get(key)
        if entry is None and self._store is not None:
            entry = self._store.read(key)
            if entry is None:
                return None
            state_bytes = entry.nbytes - n_positions * self._bytes_per_position
            if state_bytes < 0 or (state_bytes > 0 and not has_state):
                self._store.drop(key)  # written by another build of the engine
                return None
            self._entries[key] = entry
            self.size += entry.nbytes
        return entry

    def _put(self, key: bytes, entry: Bytes, location: StateLocation | None = None) -> None:
        self._entries[key] = entry
        self.size += entry.nbytes
        if self._store is not None:
            self._store.write(key, entry, location)

    def _touch(self, keys: list[bytes]) -> None:
        """Mark a state and its blocks, last block first, as recently used."""
        for key in keys:
            if key in self._entries:
                self._entries.move_to_end(key)

    def _evict(self) -> None:
        while self.size > self._capacity:
            key, entry = self._entries.popitem(last=False)
            self.size -= entry.nbytes
            if self._store is None or key not in self._store:
                self._unregister(key)
        for key in self._store.take_dropped() if self._store is not None else ():
            if not self._holds(key):
                self._unregister(key)

    def _register(self, key: bytes, location: StateLocation) -> None:
        if key in self._locations:
            return
        self._locations[key] = location
        self._tails.setdefault(location.block, Counter())[location.tail] += 1

    def _unregister(self, key: bytes) -> None:
        """Stop looking up a state that is gone."""
        if (location := self._locations.pop(key, None)) is None:
            return
        tails = self._tails[location.block]
        tails[location.tail] -= 1
        if tails[location.tail] == 0:
            del tails[location.tail]
        if not tails:
            del self._tails[location.block]


def _hash(key: bytes, tokens: NDArray[np.int32], kind: bytes = b"block") -> bytes:
    data = np.ascontiguousarray(tokens, dtype="<i4").tobytes()
    return hashlib.blake2b(key + data, digest_size=32, person=kind).digest()


def _state_key(block: bytes, tail: NDArray[np.int32]) -> bytes:
    return _hash(block, tail, b"state")
