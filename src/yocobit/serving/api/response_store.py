"""Stored responses of the Responses API, in memory, with a bound in bytes.

A response that continues another one shares its conversation: the bytes of a turn are kept, and
counted, until the last response that needs them is gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from yocobit.errors import shown
from yocobit.serving.errors import APIError

_OVERHEAD_BYTES = 2048  # of a turn's objects and of its place in the index


@dataclasses.dataclass(eq=False)
class Turn:
    """One stored response and the input that it answers, as JSON."""

    owner: str  # the API key's client
    id: str
    response: bytes
    input: bytes  # a list of items
    item_ids: tuple[str, ...]  # of the output
    previous: Turn | None
    n_users: int = 0  # the index, later turns, and requests in progress

    @property
    def n_bytes(self) -> int:
        return len(self.response) + len(self.input) + _OVERHEAD_BYTES

    def conversation(self) -> list[Turn]:
        """Return all turns up to this one, the first one first."""
        return list(_chain(self))[::-1]


class ResponseStore:
    """Responses by owner and id; the least recently used is dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self.n_bytes = 0
        self._max_bytes = max_bytes
        self._turns: dict[tuple[str, str], Turn] = {}  # the least recently used first
        self._by_item: dict[tuple[str, str], Turn] = {}

    def add(self, turn: Turn) -> None:
        """Store a response; others are dropped if the memory is exceeded."""
        if turn.previous is not None:
            turn.previous.n_users += 1
        self.n_bytes += turn.n_bytes
        turn.n_users = 1
        self._turns[turn.owner, turn.id] = turn
        self._by_item.update({(turn.owner, item): turn for item in turn.item_ids})
        while self.n_bytes > self._max_bytes and self._turns:
            self._remove(next(iter(self._turns.values())))

    def get(self, owner: str, response_id: str, param: str | None = None) -> Turn:
        """Return a response; APIError 404 if its owner has none with this id."""
        turn = self._turns.pop((owner, response_id), None)
        if turn is None:
            raise _not_found("response", response_id, param)
        self._turns[owner, response_id] = turn
        return turn

    def get_by_item(self, owner: str, item_id: str, param: str) -> Turn:
        """Return the response that has an output item; APIError 404 if the owner has none."""
        turn = self._by_item.get((owner, item_id))
        if turn is None:
            raise _not_found("item", item_id, param)
        return self.get(owner, turn.id)

    def delete(self, owner: str, response_id: str) -> None:
        """Delete a response; APIError 404 if its owner has none with this id.

        Responses that continue it stay complete.
        """
        self._remove(self.get(owner, response_id))

    def hold(self, turn: Turn) -> None:
        """Keep a turn, whatever is dropped or deleted, until `release`."""
        turn.n_users += 1

    def release(self, turn: Turn) -> None:
        """Drop one use of a turn; without any, free it and its use of the turn before it."""
        for each in _chain(turn):
            each.n_users -= 1
            if each.n_users:
                return
            self.n_bytes -= each.n_bytes

    def _remove(self, turn: Turn) -> None:
        del self._turns[turn.owner, turn.id]
        for item in turn.item_ids:
            del self._by_item[turn.owner, item]
        self.release(turn)


def _chain(turn: Turn | None) -> Iterator[Turn]:
    while turn is not None:
        yield turn
        turn = turn.previous


def _not_found(kind: str, found_id: str, param: str | None) -> APIError:
    return APIError(
        404,
        f"the {kind} {shown(found_id)} does not exist: it was not stored, was deleted or dropped, "
        "or belongs to another API key; send the whole conversation as input",
        param=param,
        code="previous_response_not_found" if param == "previous_response_id" else "not_found",
    )
