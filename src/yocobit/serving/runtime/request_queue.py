"""The queue of waiting requests, round-robin over the clients.

The scheduler guards it with its lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator

from yocobit.serving.runtime.sequence import SequenceGroup


class RequestQueue:
    """Waiting requests by client, in round-robin order."""

    def __init__(self) -> None:
        self._by_client: dict[str, deque[SequenceGroup]] = {}

    def __len__(self) -> int:
        return sum(len(groups) for groups in list(self._by_client.values()))

    def __iter__(self) -> Iterator[SequenceGroup]:
        for groups in list(self._by_client.values()):
            yield from groups

    @property
    def first(self) -> SequenceGroup | None:
        """The next request, or None if none waits."""
        groups = next(iter(self._by_client.values()), None)
        return groups[0] if groups else None

    def append(self, group: SequenceGroup) -> None:
        """Add a request behind those of its client."""
        self._by_client.setdefault(group.request.client, deque()).append(group)

    def put_first(self, group: SequenceGroup) -> None:
        """Add a request before all others, including those of its own client."""
        client = group.request.client
        groups = self._by_client.pop(client, deque())
        groups.appendleft(group)
        self._by_client = {client: groups, **self._by_client}

    def remove_first(self) -> None:
        """Remove the next request; the other requests of its client go behind the other clients."""
        client = next(iter(self._by_client))
        groups = self._by_client.pop(client)
        groups.popleft()
        if groups:
            self._by_client[client] = groups

    def remove(self, removed: Collection[SequenceGroup]) -> None:
        """Remove the requests that are among these."""
        for client, groups in list(self._by_client.items()):
            self._by_client[client] = deque(each for each in groups if each not in removed)
            if not self._by_client[client]:
                del self._by_client[client]

    def clear(self) -> None:
        self._by_client.clear()
