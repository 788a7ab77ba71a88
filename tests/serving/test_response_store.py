"""The store of responses: owners, order of removal, and the memory that it counts."""

from __future__ import annotations

import pytest

from yocobit.serving.api.response_store import ResponseStore, Turn
from yocobit.serving.errors import APIError

SIZE = Turn("", "", b"x" * 5000, b"[]", (), None).n_bytes


def turn(name: str, previous: Turn | None = None, owner: str = "") -> Turn:
    return Turn(owner, name, b"x" * 5000, b"[]", (f"item of {name}",), previous)


def stored(store: ResponseStore, *names: str) -> list[bool]:
    """Return which responses are stored, without using any."""
    return [("", name) in store._turns for name in names]


def test_least_recently_used_response_is_dropped_first():
    store = ResponseStore(3 * SIZE)
    for name in "abc":
        store.add(turn(name))
    store.get("", "a")
    store.get_by_item("", "item of b", "input")

    store.add(turn("d"))

    assert stored(store, "a", "b", "c", "d") == [True, True, False, True]
    assert store.n_bytes == 3 * SIZE
    with pytest.raises(APIError, match="'c' does not exist") as error:
        store.get("", "c", "previous_response_id")
    assert (error.value.status, error.value.param) == (404, "previous_response_id")
    with pytest.raises(APIError, match="item"):
        store.get_by_item("", "item of c", "input")


def test_response_larger_than_the_memory_is_not_kept():
    store = ResponseStore(SIZE - 1)

    store.add(turn("a"))

    assert stored(store, "a") == [False]
    assert store.n_bytes == 0


def test_responses_belong_to_their_owner():
    store = ResponseStore(9 * SIZE)
    store.add(turn("a", owner="key 0"))

    for find in (
        lambda: store.get("key 1", "a"),
        lambda: store.get_by_item("key 1", "item of a", "input"),
        lambda: store.delete("key 1", "a"),
    ):
        with pytest.raises(APIError) as error:
            find()
        assert error.value.status == 404
    assert store.get("key 0", "a").id == "a"


def test_deleted_turn_is_kept_for_the_responses_that_continue_it():
    store = ResponseStore(9 * SIZE)
    store.add(first := turn("a"))
    store.add(second := turn("b", first))
    store.add(turn("c", second))

    store.delete("", "a")
    store.delete("", "b")

    assert [each.id for each in store.get("", "c").conversation()] == ["a", "b", "c"]
    assert store.n_bytes == 3 * SIZE
    store.delete("", "c")
    assert store.n_bytes == 0


def test_branches_share_the_bytes_of_their_conversation():
    store = ResponseStore(9 * SIZE)
    store.add(first := turn("a"))
    store.add(turn("b", first))
    store.add(turn("c", first))
    assert store.n_bytes == 3 * SIZE

    store.delete("", "b")
    store.delete("", "a")

    assert store.n_bytes == 2 * SIZE
    assert [each.id for each in store.get("", "c").conversation()] == ["a", "c"]


def test_held_turn_survives_until_it_is_released():
    store = ResponseStore(9 * SIZE)
    store.add(first := turn("a"))
    store.hold(first)

    store.delete("", "a")
    assert store.n_bytes == SIZE
    store.add(turn("b", first))
    store.release(first)

    assert store.n_bytes == 2 * SIZE
    store.delete("", "b")
    assert store.n_bytes == 0


def test_long_conversation_is_dropped_without_recursion():
    store, last = ResponseStore(1 << 30), None
    for i in range(30_000):
        last = Turn("", str(i), b"", b"", (), last)
        store.add(last)

    for name in range(30_000):
        store.delete("", str(name))

    assert len(last.conversation()) == 30_000
    assert store.n_bytes == 0
