"""Soak test of the server: no error but 429, no leak, responses equal to those of an idle server.

    python benchmarks/soak.py [--minutes 10] [--clients 64] [--seed 0] [--out FILE]

Many concurrent clients repeat REQUESTS requests of mixed lengths, streamed or not. A fraction
DISCONNECTING of their requests has a new prefix and disconnects midway. The server is a separate
process; its memory is sampled each second. Memory is flat if the median of the last quarter is
within FLAT of the median of the quarter after warm-up. A run must last at least four minutes, in
which the prefix cache fills. The exit status is 1 if there are problems.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yocobit.hardware.host import provenance
from yocobit.pretrained import TINY

REQUESTS, DISCONNECTING, WARM_UP, FLAT = 64, 0.2, 0.25, 0.02
PROMPT, RESPONSE = (1, 600), (1, 300)  # bounds: words, tokens
TIMEOUT_S = 300  # a slower response is an error
# Limits low enough that some requests wait, some are rejected, and prefixes are evicted.
OPTIONS = ["--threads", "2", "--max-sequences", "40", "--max-waiting", "20"]
OPTIONS += ["--prefix-mb", "64", "--prefix-dir-mb", "64"]
WORDS = (
    "the",
    "king",
    "said",
    "let",
    "there",
    "be",
    "light",
    "upon",
    "deep",
    "waters",
    "and",
    "so",
)
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


@dataclasses.dataclass(frozen=True)
class Request:
    """A request and the response to it when the server is idle."""

    path: str
    body: dict[str, Any]
    response: str | None = None  # None: unknown
    n_tokens: int = 0


@dataclasses.dataclass
class Record:
    """Outcomes, problems and memory samples of a run."""

    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    problems: list[str] = dataclasses.field(default_factory=list)
    n_tokens: int = 0  # of complete responses
    # Seconds, resident bytes, bytes of the prefix cache.
    samples: list[tuple[float, int, int]] = dataclasses.field(default_factory=list)


class RejectedError(Exception):
    """The server returned a status other than 200."""

    def __init__(self, status: int, content: bytes) -> None:
        super().__init__(f"{status} {content[-300:]!r}")
        self.status = status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, server(Path(directory)) as (process, port):
        record = asyncio.run(soak(process.pid, port, arguments))
        process.terminate()
        if status := process.wait(timeout=60):
            record.problems.append(f"the server ended with status {status}")
        log = (Path(directory) / "log").read_text()
        if failures := log.count("Traceback"):
            record.problems.append(f"{failures} tracebacks in the log, the first: ")
            record.problems += log[log.index("Traceback") :].splitlines()[:40]
    result = summary(record) | {
        **provenance(),
        "minutes": arguments.minutes,
        "clients": arguments.clients,
        "seed": arguments.seed,
    }
    for name, value in result.items():
        print(f"{name:28} {value}")
    for problem in record.problems:
        print(problem, file=sys.stderr)
    if arguments.out:
        content = {**result, "problems": record.problems, "samples": record.samples}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(1 if record.problems else 0)


async def soak(pid: int, port: int, arguments: argparse.Namespace) -> Record:
    """Send each request to the idle server, then start all clients; return the record."""
    rng = random.Random(arguments.seed)
    requests = [await with_response(port, make_request(rng, i)) for i in range(REQUESTS)]
    idle_files = n_files(pid)
    record, started = Record(), time.monotonic()
    end = started + 60 * arguments.minutes
    watching = asyncio.create_task(watch(pid, port, record))
    seeds = [rng.getrandbits(32) for _ in range(arguments.clients)]
    await asyncio.gather(*(client(port, requests, s, end, record) for s in seeds))
    watching.cancel()
    await check_idle(pid, port, idle_files, record)
    check_memory(record)
    return record


def make_request(rng: random.Random, i: int) -> Request:
    """Return a request of log-uniform lengths; every fourth has the same prefix."""
    n_words, n_tokens = (
        round(least * (most / least) ** rng.random()) for least, most in (PROMPT, RESPONSE)
    )
    words = random.Random(0 if i % 4 == 0 else i).choices(WORDS, k=n_words)
    text = " ".join([*words, rng.choice(WORDS)])
    body = {"max_tokens": n_tokens, "seed": i, "temperature": 1.0}
    if i % 2:
        return Request(CHAT, {"messages": [{"role": "user", "content": text}], **body})
    return Request(TEXT, {"prompt": text, **body})


def new_request(request: Request, rng: random.Random) -> Request:
    """Return a request of the same length with a new prefix: its cache must be evicted, too."""
    prefix, body = f"{rng.getrandbits(64)} ", dict(request.body)
    if "prompt" in body:
        body["prompt"] = prefix + body["prompt"]
    else:
        body["messages"] = [{"role": "user", "content": prefix + body["messages"][0]["content"]}]
    return dataclasses.replace(request, body=body, response=None)


async def with_response(port: int, request: Request) -> Request:
    """Return the request with its response."""
    text, n_tokens = await send(port, request, streams=False)
    return dataclasses.replace(request, response=text, n_tokens=n_tokens)


async def client(port: int, requests: list[Request], seed: int, end: float, record: Record) -> None:
    """Send requests until the end."""
    rng = random.Random(seed)
    whole_s = 1.0  # time of the last complete response
    while time.monotonic() < end:
        request, streams = rng.choice(requests), rng.random() < 0.5
        disconnects = rng.random() < DISCONNECTING
        if disconnects:
            request = new_request(request, rng)
        n_events = rng.randrange(request.n_tokens + 1) if disconnects and streams else None
        wait_s = 0.5 * rng.random() * whole_s if disconnects and not streams else TIMEOUT_S
        started = time.monotonic()
        try:
            found = await asyncio.wait_for(send(port, request, streams, n_events), wait_s)
        except (TimeoutError, asyncio.TimeoutError):
            record.outcomes["disconnected" if disconnects else "failed"] += 1
            if not disconnects:
                record.problems.append(f"no response within {TIMEOUT_S} s: {request.body}")
        except RejectedError as error:
            record.outcomes[str(error.status)] += 1
            if error.status != 429:
                record.problems.append(f"{error}: {request.body}")
            await asyncio.sleep(rng.random())
        except (OSError, ValueError, EOFError) as error:
            record.outcomes["failed"] += 1
            record.problems.append(f"{type(error).__name__} {error}: {request.body}")
        else:
            if found is None:
                record.outcomes["disconnected"] += 1
                continue
            record.outcomes["streamed" if streams else "whole"] += 1
            record.n_tokens += request.n_tokens
            whole_s = time.monotonic() - started
            if request.response is not None and found != (request.response, request.n_tokens):
                expected = (request.response, request.n_tokens)
                record.problems.append(f"{found} instead of {expected}: {request.body}")


async def send(
    port: int, request: Request, streams: bool, n_events: int | None = None
) -> tuple[str, int] | None:
    """Send a request; return text and number of tokens, None after disconnecting at n_events."""
    body = dict(request.body)
    if streams:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    content = json.dumps(body).encode()
    head = (
        f"POST {request.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + content)
        status = int((await reader.readline()).split()[1])
        if status != 200:
            raise RejectedError(status, await reader.read())
        if streams:
            return await read_events(reader, n_events)
        lines = (await reader.read()).splitlines()
        whole = json.loads(
            next(line for line in lines if line.startswith(b"{"))
        )  # skips the sizes of chunks
        return text_of(whole), whole["usage"]["completion_tokens"]
    finally:
        writer.transport.abort()


async def read_events(reader: asyncio.StreamReader, n: int | None) -> tuple[str, int] | None:
    """Return text and number of tokens of a stream, None after n events.

    EOFError if the stream ends early.
    """
    text, n_tokens, n_seen = "", 0, 0
    while n is None or n_seen < n:
        line = await reader.readline()
        if not line:
            raise EOFError("the stream ended without [DONE]")
        if line.startswith(b"data: [DONE]"):
            return text, n_tokens
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            n_seen += 1
            if "error" in event:
                raise ValueError(f"{event}")
            text += text_of(event)
            n_tokens = (event.get("usage") or {}).get("completion_tokens", n_tokens)
    return None


def text_of(response: dict[str, Any]) -> str:
    """Return the text of a response or of a stream event."""
    return "".join(
        choice["text"]
        if "text" in choice
        else (choice.get("message") or choice["delta"]).get("content") or ""
        for choice in response["choices"]
    )


async def watch(pid: int, port: int, record: Record) -> None:
    """Sample the memory each second."""
    started = time.monotonic()
    while True:
        prefixes = round((await metrics(port))["yocobit:prefix_cache_bytes"])
        record.samples.append((round(time.monotonic() - started, 1), resident(pid), prefixes))
        await asyncio.sleep(1)


def resident(pid: int) -> int:
    """Return the resident bytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1])


def n_files(pid: int) -> int:
    """Return the number of open files and sockets of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def check_idle(pid: int, port: int, idle_files: int, record: Record) -> None:
    """Record a problem if requests, caches or files remain after all clients have ended."""
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_bytes")
    for _ in range(100):
        text = await metrics(port)
        busy = {name: value for name in names if (value := text[f"yocobit:{name}"]) != 0}
        files = n_files(pid) - idle_files
        if not busy and files <= 0:
            return
        await asyncio.sleep(0.1)
    record.problems.append(f"10 s after the end, {busy} and {files} more files are open")


async def metrics(port: int) -> dict[str, float]:
    """Return the server's metrics without labels."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return {name: float(v) for name, v in re.findall(r"^([\w:]+) ([-+.\de]+)$", text, re.MULTILINE)}


def check_memory(record: Record) -> None:
    """Record a problem if memory grows after warm-up."""
    if (growth := memory(record)["growth"]) > FLAT:
        record.problems.append(f"memory grew by {growth:.1%} after warm-up")


def memory(record: Record) -> dict[str, float]:
    """Return medians after warm-up and at the end in MB, their growth, and MB per minute."""
    end = record.samples[-1][0]
    after = [(s, size / 2**20) for s, size, _ in record.samples if s >= WARM_UP * end]
    early = statistics.median(mb for s, mb in after if s < (WARM_UP + 0.25) * end)
    late = statistics.median(mb for s, mb in after if s >= 0.75 * end)
    slope = statistics.linear_regression(*zip(*after, strict=True)).slope * 60
    return {"early": early, "late": late, "growth": late / early - 1, "slope": slope}


def summary(record: Record) -> dict[str, Any]:
    """Return the figures to print."""
    sizes, seconds = memory(record), record.samples[-1][0]
    n = sum(record.outcomes.values())
    n_accepted = n - record.outcomes["429"]
    return {
        "requests": n,
        "outcomes": dict(record.outcomes),
        "disconnected midway": f"{record.outcomes['disconnected'] / n_accepted:.1%}",
        "tokens/s of complete responses": round(record.n_tokens / seconds, 1),
        "MB at the start": round(record.samples[0][1] / 2**20, 1),
        "MB after warm-up": round(sizes["early"], 1),
        "MB in the last quarter": round(sizes["late"], 1),
        "MB of prefixes, at most": round(max(s[2] for s in record.samples) / 2**20, 1),
        "growth after warm-up": f"{sizes['growth']:.2%}",
        "slope after warm-up, MB/min": round(sizes["slope"], 2),
        "problems": len(record.problems),
    }


@contextlib.contextmanager
def server(directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run `yocobit serve` with its log in `directory`; yield process and port."""
    command = [sys.executable, "-m", "yocobit", "serve", str(TINY), "--port", "0", *OPTIONS]
    command += ["--prefix-dir", str(directory / "prefixes")]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        while not (found := re.search(r"http://\S+:(\d+)", (directory / "log").read_text())):
            if process.poll() is not None:
                sys.exit((directory / "log").read_text())
            time.sleep(0.05)
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
