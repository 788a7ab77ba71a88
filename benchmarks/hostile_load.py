"""Hostile load: a well-behaved client's latency, and the server's memory, while others attack.

    python benchmarks/hostile_load.py [--minutes 20] [--attackers 2] [--seed 0] [--out FILE]

A server process is measured quiet, then under random ATTACKS from several processes. These have a
low priority, as they represent other machines. About a third of the attacks disconnect at a random
moment. The last line is the verdict. The exit status is 1 if there are problems: a response of
status 500, a p99 over MAX_RATIO times that of the quiet server, too much memory, few attacks, or a
SIGTERM that takes longer than the drain and a second.

Memory is proportional (PSS), includes the worker processes, and is sampled until SIGTERM. If a run
takes at least 4 minutes, the median of the last quarter may exceed that of the second by FLAT, and
the server process alone may grow by its caches and WORK_MB since the start. The second limit
detects growth that is slow or happens early.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yocobit.hardware.host import provenance

MAX_RATIO, FLAT = 3.0, 0.10
PREFIX_MB, SCHEMAS_MB = 64, 128  # caches: --prefix-mb, and that of compiled schemas
WORK_MB = 64  # requests in flight, and freed memory between them
QUIET_SHARE, MAX_QUIET_S, SAMPLE_S = 0.1, 60.0, 1.0
DISCONNECTING = 0.3
THREADS = 16  # of each attacking process; more than may wait for a worker of the server
NICENESS = 10  # of the attackers
MIN_ATTACKS_PER_S = 2.0
MAX_PROBLEMS = 20  # printed
DRAIN_S = 2.0
GOOD, BAD = "key-of-a-good-client", "key-of-a-bad-client"
OPTIONS = [
    "--threads",
    "1",
    "--context",
    "2048",
    "--max-sequences",
    "16",
    "--prefix-mb",
    str(PREFIX_MB),
]
OPTIONS += ["--api-key", GOOD, "--api-key", BAD, "--drain", str(DRAIN_S), "--timeout", "60"]
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"

Post = Callable[[str, Any], int | None]  # path and body; returns the status


# ---- attacks ----


def schema(post: Post, rng: random.Random) -> int | None:
    nested: dict[str, Any] = {"type": "integer"}
    for _ in range(rng.randrange(400)):
        nested = {"type": "array", "items": nested}
    found = rng.choice(
        [
            {"type": "integer", "multipleOf": rng.randrange(10**4, 10**8)},
            {"type": "number", "multipleOf": rng.random()},
            {"type": "string", "minLength": 10 ** rng.randrange(10)},
            {"type": "array", "items": {"type": "integer"}, "minItems": 10 ** rng.randrange(10)},
            {
                "type": "string",
                "pattern": f"^(([a-z]+)*)*([0-9a-z]{{1,{rng.randrange(999)}}}x){{9}}$",
            },
            {"enum": [f"{rng.random()}" for _ in range(rng.randrange(9000))]},
            {"properties": {f"p{i}": {"type": "string"} for i in range(rng.randrange(6000))}},
            {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 9}}},
            {"type": "object"},
            nested,
        ]
    )
    form = {"type": "json_schema", "json_schema": {"schema": found}}
    messages = [{"role": "user", "content": "a"}]
    return post(CHAT, {"messages": messages, "response_format": form, "max_tokens": 50})


def tools(post: Post, rng: random.Random) -> int | None:
    function = {"name": "f", "parameters": {"type": "integer", "multipleOf": rng.randrange(10**7)}}
    tool = {"type": "function", "function": function}
    messages = [{"role": "user", "content": "a"}]
    body = {"messages": messages, "tools": [tool] * rng.randrange(200), "tool_choice": "required"}
    return post(CHAT, body)


def long_text(post: Post, rng: random.Random) -> int | None:
    text = rng.choice(["a ", "aaaa", "\u00e9\U0001f600", "\n"]) * rng.randrange(10**6)
    return rng.choice(
        [
            lambda: post("/tokenize", {"prompt": text}),
            lambda: post(CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 1}),
            lambda: post(TEXT, {"prompt": [text, text], "max_tokens": 1}),
            lambda: post("/v1/embeddings", {"input": text}),
        ]
    )()


def many_messages(post: Post, rng: random.Random) -> int | None:
    messages = [{"role": "user", "content": "a"}] * rng.randrange(6000)
    return post(CHAT, {"messages": messages, "max_tokens": 1})


def large_body(post: Post, rng: random.Random) -> int | None:
    n = rng.randrange(10**6)
    return post(
        *rng.choice(
            [
                (TEXT, b'{"prompt":[' + b"[]," * n + b"[]]}"),
                (TEXT, b'{"prompt":"a","logit_bias":{' + b'"1":1,' * n + b'"1":1}}'),
                (TEXT, b'{"prompt":"a","x":' + b"[" * n + b"]" * n + b"}"),
                (CHAT, b'{"messages":[' + b"{}," * n + b"{}]}"),
                ("/detokenize", b'{"tokens":[' + b"1," * n + b"1]}"),
                (TEXT, b'{"prompt":"' + b"\xff" * n + b'"}'),
            ]
        )
    )


def small_nonsense(post: Post, rng: random.Random) -> int | None:
    return post(
        *rng.choice(
            [
                (TEXT, {"prompt": "a", "stop": ["a" * rng.randrange(1200)] * rng.randrange(20)}),
                (
                    TEXT,
                    {
                        "prompt": "a",
                        "max_tokens": 40,
                        "stop": ["ab" * 400 + str(i) for i in range(16)],
                    },
                ),
                (
                    TEXT,
                    {"prompt": "a", "logit_bias": {str(i): 1 for i in range(rng.randrange(1500))}},
                ),
                (TEXT, {"prompt": "a", "seed": 10**400, "top_k": -7}),
                (TEXT, {"prompt": 5, "n": "x"}),
                (TEXT, {"prompt": "a", "n": 16, "max_tokens": 8, "logprobs": 20}),
                (CHAT, {"messages": "\ud800"}),
                (CHAT, b'{"messages":[{"role":"user","content":"\\ud800"}]}'),
                (TEXT, b"\x00\xff"),
                ("/v1/" + "a" * 5000, b"{}"),
            ]
        )
    )


def head_flood(connect: Callable[[], socket.socket], rng: random.Random) -> int | None:
    with connect() as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        for _ in range(rng.randrange(64)):
            client.sendall(b"X-A: " + b"a" * rng.randrange(1 << 16) + rng.choice([b"\r\n", b""]))
    return None


def pipelined(connect: Callable[[], socket.socket], rng: random.Random) -> int | None:
    with connect() as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" * rng.randrange(2000))
    return None


def slow_request(connect: Callable[[], socket.socket], rng: random.Random) -> int | None:
    request = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
    request += BAD.encode() + b"\r\nContent-Type: application/json\r\nContent-Length: 9000000\r\n"
    request += b"\r\n" + b" " * 9_000_000
    with connect() as client:
        for i in range(0, rng.randrange(len(request)), 1 << 16):
            client.sendall(request[i : i + (1 << 16)])
        time.sleep(rng.random())
    return None


POSTS = (schema, tools, long_text, many_messages, large_body, small_nonsense)
CONNECTIONS = (head_flood, pipelined, slow_request)
ATTACKS = (*POSTS, *CONNECTIONS)


def attack(port: int, seed: int, end: float, results: Any) -> None:
    """Attack the server from several threads until the end; put the outcomes into a queue."""
    os.nice(NICENESS)
    outcomes: collections.Counter[str] = collections.Counter()
    threads = [
        threading.Thread(target=_attack, args=(port, 1000 * seed + i, end, outcomes))
        for i in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(outcomes)


def _attack(port: int, seed: int, end: float, outcomes: collections.Counter[str]) -> None:
    rng = random.Random(seed)

    def post(path: str, body: Any) -> int | None:
        timeout_s = rng.random() ** 3 if rng.random() < DISCONNECTING else 90
        return send(port, path, body, BAD, timeout_s)[0]

    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=30)

    while time.monotonic() < end:
        each = rng.choice(ATTACKS)
        try:
            status = each(post if each in POSTS else connect, rng)
        except OSError:
            status = None
        outcomes[f"{each.__name__} {status or 'disconnected'}"] += 1


# ---- the well-behaved client ----


def send(
    port: int, path: str, body: Any, key: str, timeout_s: float = 120
) -> tuple[int | None, bytes]:
    """Return status and body of a response; the status is None after a timeout or an error."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", path, content, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()


def measure(port: int, until: Callable[[], bool], problems: list[str]) -> list[float]:
    """Return the seconds of a client's requests, one after another."""
    seconds = []
    while not until():
        for path, body in (
            (TEXT, {"prompt": "And God said", "max_tokens": 8, "seed": 1}),
            (
                CHAT,
                {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "seed": 1},
            ),
        ):
            started = time.perf_counter()
            status, content = send(port, path, body, GOOD)
            seconds.append(time.perf_counter() - started)
            if status != 200:
                problems.append(f"a good client got {status} {content[:200]!r}")
        time.sleep(0.05)
    return seconds


def percentiles(seconds: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return cuts[49], cuts[98]


# ---- the server ----


def start(log: Path) -> tuple[subprocess.Popen[bytes], int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "yocobit", "serve", "--port", str(port), *OPTIONS]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stderr=stream)
    while "serving at" not in log.read_text():
        if process.poll() is not None:
            sys.exit(log.read_text())
        time.sleep(0.05)
    return process, port


def memory(pid: int) -> tuple[int, int]:
    """Return the proportional bytes of a process, and of it and its descendants."""
    own = workers = 0
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        own = int(re.search(r"^Pss: +(\d+)", rollup, re.MULTILINE)[1]) << 10  # type: ignore[index]
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = map(int, (task / "children").read_text().split())
            workers += sum(memory(child)[1] for child in children)
    except (OSError, TypeError):  # it ended
        pass
    return own, own + workers


def sample(pid: int, is_over: threading.Event, found: list[tuple[int, int]]) -> None:
    while not is_over.wait(SAMPLE_S):
        found.append(memory(pid))


def check(result: dict[str, Any], problems: list[str]) -> None:
    if result["p99_ratio"] > MAX_RATIO:
        problems.append(f"p99 is {result['p99_ratio']:.1f} times that of the quiet server")
    if errors := {k: n for k, n in result["outcomes"].items() if k.endswith(" 500")}:
        problems.append(f"internal errors: {errors}")
    early, late = result["memory_second_quarter"], result["memory_last_quarter"]
    if len(result["memory_samples"]) >= 240 and late > (1 + FLAT) * early:
        problems.append(f"memory grows: {early:,.0f} to {late:,.0f} bytes")
    growth = result["server_last_quarter"] - result["server_start"]
    if len(result["memory_samples"]) >= 240 and growth > PREFIX_MB + SCHEMAS_MB + WORK_MB << 20:
        problems.append(f"the server process takes {growth:,.0f} bytes more than at the start")
    if result["attacks_per_s"] < MIN_ATTACKS_PER_S:
        problems.append(f"only {result['attacks_per_s']:.1f} attacks per second")
    if result["exit_status"] != 0:
        problems.append(f"the server ended with status {result['exit_status']}")
    if result["sigterm_s"] > DRAIN_S + 1:
        problems.append(f"SIGTERM took {result['sigterm_s']:.1f} s, with --drain {DRAIN_S:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--attackers", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        process, port = start(log)
        try:
            result = run(process, port, arguments, problems)
        finally:
            process.kill()
        text = log.read_text()
        if "Traceback" in text:
            problems.append(text[text.index("Traceback") :][:3000])
    check(result, problems)
    for name, value in {**result, **provenance()}.items():
        if name != "memory_samples":
            print(f"{name:24} {value}")
    for problem in problems[:MAX_PROBLEMS]:
        print(problem, file=sys.stderr)
    if arguments.out:
        content = {**result, **provenance(), "problems": problems}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"verdict: {len(problems)} problems" if problems else "verdict: ok", flush=True)
    sys.exit(1 if problems else 0)


def run(
    process: subprocess.Popen[bytes], port: int, arguments: argparse.Namespace, problems: list[str]
) -> dict[str, Any]:
    quiet_s = min(MAX_QUIET_S, 60 * QUIET_SHARE * arguments.minutes)
    end = time.monotonic() + quiet_s
    send(port, CHAT, {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}, GOOD)
    quiet = percentiles(measure(port, lambda: time.monotonic() > end, problems))
    at_start, found, is_over = memory(process.pid), list[tuple[int, int]](), threading.Event()
    sampler = threading.Thread(target=sample, args=(process.pid, is_over, found))
    sampler.start()
    end = time.monotonic() + 60 * arguments.minutes
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    attackers = [
        context.Process(target=attack, args=(port, arguments.seed + i, end, results), daemon=True)
        for i in range(arguments.attackers)
    ]
    for each in attackers:
        each.start()
    hostile = percentiles(measure(port, lambda: time.monotonic() > end, problems))
    is_over.set()
    sampler.join()
    at_end = memory(process.pid)[1]
    started = time.perf_counter()  # attacks of up to 90 s are still in flight
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    sigterm_s = time.perf_counter() - started
    outcomes = sum((results.get(timeout=120) for _ in attackers), collections.Counter())
    own, samples = ([each[i] for each in found] for i in range(2))
    quarter = max(1, len(samples) // 4)
    return {
        "quiet_p50_ms": 1e3 * quiet[0],
        "quiet_p99_ms": 1e3 * quiet[1],
        "hostile_p50_ms": 1e3 * hostile[0],
        "hostile_p99_ms": 1e3 * hostile[1],
        "p99_ratio": hostile[1] / quiet[1],
        "server_start": at_start[0],
        "server_peak": max(own),
        "server_last_quarter": statistics.median(own[-quarter:]),
        "memory_start": at_start[1],
        "memory_peak": max(samples),
        "memory_end": at_end,
        "memory_second_quarter": statistics.median(samples[quarter : 2 * quarter] or samples),
        "memory_last_quarter": statistics.median(samples[-quarter:]),
        "sigterm_s": sigterm_s,
        "exit_status": process.returncode,
        "attacks_per_s": sum(outcomes.values()) / (60 * arguments.minutes),
        "outcomes": dict(sorted(outcomes.items())),
        "minutes": arguments.minutes,
        "memory_samples": samples,
    }


if __name__ == "__main__":
    main()
