"""A lightweight client: streams completions over plain sockets and times each event.

It parses as little as possible, because it shares the CPUs with the measured server.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import time
from typing import Any


@dataclasses.dataclass
class Stream:
    """One streamed response: the times of its request and of each event."""

    sent_at: float
    times: list[float]
    usage: dict[str, Any]

    @property
    def first_s(self) -> float:
        """Time to first token."""
        return self.times[0] - self.sent_at

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies."""
        return [b - a for a, b in itertools.pairwise(self.times)]


async def stream(
    host: str, port: int, body: dict[str, Any], path: str = "/v1/completions"
) -> Stream:
    """Request a completion and read its events; RuntimeError if the server rejects it."""
    content = json.dumps({**body, "stream": True}).encode()
    reader, writer = await asyncio.open_connection(host, port)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    sent_at, times, usage = time.perf_counter(), [], {}
    writer.write(head.encode() + content)
    await writer.drain()
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status.decode()} {(await reader.read()).decode()}")
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        if b'"finish_reason":null' in line or b'"finish_reason": null' in line:
            times.append(time.perf_counter())
        elif b'"usage"' in line:
            usage = json.loads(line[6:]).get("usage") or usage
    writer.close()
    return Stream(sent_at, times, usage)


async def streams(host: str, port: int, bodies: list[dict[str, Any]]) -> list[Stream]:
    """Request several completions at once."""
    return await asyncio.gather(*(stream(host, port, body) for body in bodies))
