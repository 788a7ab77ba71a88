"""A set of 16-byte digests: at most 43 bytes per digest, 64 while it grows."""

from __future__ import annotations

_SIZE = 16
_EMPTY = bytes(_SIZE)
_SMALLEST = 1 << 10


class DigestSet:
    """A hash table with open addressing in one bytearray; a Python set has 110 bytes per digest."""

    def __init__(self) -> None:
        self.n_slots = _SMALLEST
        self.slots = bytearray(self.n_slots * _SIZE)
        self.n_digests = 0

    def add(self, digest: bytes) -> bool:
        """Insert a digest; return whether it was new."""
        if digest == _EMPTY:
            digest = b"\1" * _SIZE
        if self.n_digests >= self.n_slots * 3 // 4:
            self._grow()
        slot = self._find(digest)
        if self.slots[slot : slot + _SIZE] == digest:
            return False
        self.slots[slot : slot + _SIZE] = digest
        self.n_digests += 1
        return True

    def _find(self, digest: bytes) -> int:
        """Return the offset of the slot of a digest, occupied or empty."""
        slots, size = self.slots, self.n_slots * _SIZE
        at = int.from_bytes(digest[:8], "little") % self.n_slots * _SIZE
        while (found := slots[at : at + _SIZE]) != digest and found != _EMPTY:
            at = (at + _SIZE) % size
        return at

    def _grow(self) -> None:
        before = self.slots
        self.n_slots *= 2
        self.slots = bytearray(self.n_slots * _SIZE)
        for at in range(0, len(before), _SIZE):
            if (digest := before[at : at + _SIZE]) != _EMPTY:
                slot = self._find(bytes(digest))
                self.slots[slot : slot + _SIZE] = digest
