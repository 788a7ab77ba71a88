"""A client that costs little: streams of completions over plain sockets, each event timed.

It shares the CPUs with the server that it measures, so it parses no more than it must.
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

    asked_at: float
    times: list[float]
    usage: dict[str, Any]

    @property
    def first_s(self) -> float:
        return self.times[0] - self.asked_at

    @property
    def gaps_s(self) -> list[float]:
        return [b - a for a, b in itertools.pairwise(self.times)]


async def stream(
    host: str, port: int, body: dict[str, Any], path: str = "/v1/completions"
) -> Stream:
    """Ask for a completion and take its events; RuntimeError if the server refuses."""
    content = json.dumps({**body, "stream": True}).encode()
    reader, writer = await asyncio.open_connection(host, port)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    asked_at, times, usage = time.perf_counter(), [], {}
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
    return Stream(asked_at, times, usage)


async def streams(host: str, port: int, bodies: list[dict[str, Any]]) -> list[Stream]:
    """Ask for several at once."""
    return await asyncio.gather(*(stream(host, port, body) for body in bodies))
