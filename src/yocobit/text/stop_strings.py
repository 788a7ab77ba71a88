"""Stop strings: an Aho-Corasick automaton, whose cost per character does not depend on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopMatcher:
    """Matches stop strings in a text that comes in pieces."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]  # characters from the root, node 0
        self._found: list[str | None] = [None]  # the longest stop string that ends at a node
        for text in stop:
            self._insert(text)
        self._fallback = [0] * len(self._next)
        self._link()
        self._node = 0

    @property
    def n_matched(self) -> int:
        """Characters at the end of the text that are the start of a stop string."""
        return self._depth[self._node]

    def find(self, piece: str) -> tuple[int, str] | None:
        """Append a piece; return the stop string that starts first, and where.

        The position counts from the start of the piece, so it may be negative. Of stop strings with
        the same start, the shortest is found.
        """
        first: tuple[int, str] | None = None
        for i, character in enumerate(piece):
            self._node = self._step(self._node, character)
            found = self._found[self._node]
            if found is not None and (first is None or i + 1 - len(found) < first[0]):
                first = i + 1 - len(found), found
        return first

    def copy(self) -> StopMatcher:
        """Return a matcher with the same state; they share the automaton."""
        copy = StopMatcher.__new__(StopMatcher)
        copy.__dict__.update(self.__dict__)
        return copy

    def _step(self, node: int, character: str) -> int:
        while character not in self._next[node]:
            if node == 0:
                return 0
            node = self._fallback[node]
        return self._next[node][character]

    def _insert(self, text: str) -> None:
        node = 0
        for character in text:
            if character not in self._next[node]:
                self._next[node][character] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[node] + 1)
                self._found.append(None)
            node = self._next[node][character]
        self._found[node] = text

    def _link(self) -> None:
        """Set each node's fallback: the longest suffix of its text that is another node's text."""
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            for character, child in self._next[node].items():
                self._fallback[child] = self._step(self._fallback[node], character)
                if self._found[child] is None:
                    self._found[child] = self._found[self._fallback[child]]
                queue.append(child)


def partial_match(text: str, markers: Sequence[str]) -> int:
    """Return the length of the longest suffix of a text that is a proper prefix of a marker."""
    longest = 0
    for marker in markers:
        for length in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:length]):
                longest = length
                break
    return longest
