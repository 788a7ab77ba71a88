"""The queue of waiting requests, round-robin over the clients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from yocobit.serving.runtime.request_queue import RequestQueue


def group_of(client: str, number: int) -> Any:
    return SimpleNamespace(request=SimpleNamespace(client=client), name=f"{client}{number}")


def filled(*names: str) -> RequestQueue:
    queue = RequestQueue()
    for name in names:
        queue.append(group_of(name[0], int(name[1:])))
    return queue


def drained(queue: RequestQueue) -> list[str]:
    """Remove all requests; return their names in that order."""
    found = []
    while (group := queue.first) is not None:
        found.append(group.name)
        queue.remove_first()
    return found


def test_queue_is_round_robin_over_clients_and_keeps_the_order_of_their_requests():
    queue = filled("a1", "a2", "a3", "b1", "c1", "c2")

    assert drained(queue) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_queue_counts_and_iterates_over_its_requests():
    queue = filled("a1", "a2", "b1")

    assert len(queue) == 3
    assert {group.name for group in queue} == {"a1", "a2", "b1"}
    queue.clear()
    assert len(queue) == 0 and queue.first is None and list(queue) == []


def test_request_that_is_put_first_precedes_all_others():
    queue = filled("a1", "b1", "b2")

    queue.put_first(group_of("b", 0))

    assert drained(queue) == ["b0", "a1", "b1", "b2"]
    queue.put_first(group_of("d", 0))  # of a client without others
    assert drained(queue) == ["d0"]


def test_order_of_the_other_requests_is_kept_if_some_are_removed():
    queue = filled("a1", "a2", "b1", "c1", "c2")
    removed = [group for group in queue if group.name in ("a1", "b1", "c2")]

    queue.remove([*removed, group_of("z", 1)])

    assert len(queue) == 2
    assert drained(queue) == ["a2", "c1"]
