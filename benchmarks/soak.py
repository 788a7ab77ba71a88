"""Many clients at once for minutes: no error but 429, no leak, the same answers as one at a time.

    python benchmarks/soak.py [--minutes 10] [--clients 64] [--seed 0] [--out FILE]

Each client repeats one of REQUESTS requests of mixed lengths, whole or streamed; a fraction LEAVING
of its requests is new and disconnects midway. The server is a process whose
memory is noted each second; it is flat if the median of the last quarter is within FLAT of the
median of the quarter after warm-up. In runs below four minutes warm-up is not over by then: known
prefixes still fill their memory.
Ends with status 1 if anything is not as it should be.
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

REQUESTS, LEAVING, WARM_UP, FLAT = 64, 0.2, 0.25, 0.02
PROMPT, ANSWER = (1, 600), (1, 300)  # least and most: words, tokens
TIMEOUT_S = 300  # an answer that takes longer is an error
# Few enough places that some must wait, a few are refused, and prefixes are let go.
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
class Question:
    """A request and the response to it when the server is idle."""

    path: str
    body: dict[str, Any]
    answer: str | None = None  # None: not known
    n_tokens: int = 0


@dataclasses.dataclass
class Record:
    """What happened."""

    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    problems: list[str] = dataclasses.field(default_factory=list)
    n_tokens: int = 0  # of complete answers
    # Seconds, bytes in memory, bytes of them that are known prefixes.
    samples: list[tuple[float, int, int]] = dataclasses.field(default_factory=list)


class RefusedError(Exception):
    """The server answered with another status than 200."""

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
    """Take the sequential answers, then let all clients ask."""
    rng = random.Random(arguments.seed)
    questions = [await answered(port, question(rng, i)) for i in range(REQUESTS)]
    idle_files = n_files(pid)
    record, begin = Record(), time.monotonic()
    end = begin + 60 * arguments.minutes
    watching = asyncio.create_task(watch(pid, port, record))
    seeds = [rng.getrandbits(32) for _ in range(arguments.clients)]
    await asyncio.gather(*(client(port, questions, s, end, record) for s in seeds))
    watching.cancel()
    await check_idle(pid, port, idle_files, record)
    check_memory(record)
    return record


def question(rng: random.Random, i: int) -> Question:
    """Return a request, its lengths as likely small as large; every fourth begins alike."""
    n_words, n_tokens = (
        round(least * (most / least) ** rng.random()) for least, most in (PROMPT, ANSWER)
    )
    words = random.Random(0 if i % 4 == 0 else i).choices(WORDS, k=n_words)
    text = " ".join([*words, rng.choice(WORDS)])
    body = {"max_tokens": n_tokens, "seed": i, "temperature": 1.0}
    if i % 2:
        return Question(CHAT, {"messages": [{"role": "user", "content": text}], **body})
    return Question(TEXT, {"prompt": text, **body})


def unheard(question: Question, rng: random.Random) -> Question:
    """Return one as long that nobody has asked: what is kept of each text must be let go, too."""
    begin, body = f"{rng.getrandbits(64)} ", dict(question.body)
    if "prompt" in body:
        body["prompt"] = begin + body["prompt"]
    else:
        body["messages"] = [{"role": "user", "content": begin + body["messages"][0]["content"]}]
    return dataclasses.replace(question, body=body, answer=None)


async def answered(port: int, question: Question) -> Question:
    """Return the question with its answer."""
    text, n_tokens = await ask(port, question, streams=False)
    return dataclasses.replace(question, answer=text, n_tokens=n_tokens)


async def client(
    port: int, questions: list[Question], seed: int, end: float, record: Record
) -> None:
    """Ask until the end."""
    rng = random.Random(seed)
    whole_s = 1.0  # how long an answer took
    while time.monotonic() < end:
        question, streams = rng.choice(questions), rng.random() < 0.5
        leaves = rng.random() < LEAVING
        if leaves:
            question = unheard(question, rng)
        n_events = rng.randrange(question.n_tokens + 1) if leaves and streams else None
        wait_s = 0.5 * rng.random() * whole_s if leaves and not streams else TIMEOUT_S
        begin = time.monotonic()
        try:
            found = await asyncio.wait_for(ask(port, question, streams, n_events), wait_s)
        except (TimeoutError, asyncio.TimeoutError):
            record.outcomes["left" if leaves else "failed"] += 1
            if not leaves:
                record.problems.append(f"no answer within {TIMEOUT_S} s: {question.body}")
        except RefusedError as error:
            record.outcomes[str(error.status)] += 1
            if error.status != 429:
                record.problems.append(f"{error}: {question.body}")
            await asyncio.sleep(rng.random())
        except (OSError, ValueError, EOFError) as error:
            record.outcomes["failed"] += 1
            record.problems.append(f"{type(error).__name__} {error}: {question.body}")
        else:
            if found is None:
                record.outcomes["left"] += 1
                continue
            record.outcomes["streamed" if streams else "whole"] += 1
            record.n_tokens += question.n_tokens
            whole_s = time.monotonic() - begin
            if question.answer is not None and found != (question.answer, question.n_tokens):
                expected = (question.answer, question.n_tokens)
                record.problems.append(f"{found} instead of {expected}: {question.body}")


async def ask(
    port: int, question: Question, streams: bool, n_events: int | None = None
) -> tuple[str, int] | None:
    """Return text and number of tokens; None if left, after that many events of the stream."""
    body = dict(question.body)
    if streams:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    content = json.dumps(body).encode()
    head = (
        f"POST {question.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + content)
        status = int((await reader.readline()).split()[1])
        if status != 200:
            raise RefusedError(status, await reader.read())
        if streams:
            return await read_events(reader, n_events)
        lines = (await reader.read()).splitlines()
        whole = json.loads(next(line for line in lines if line.startswith(b"{")))  # not its chunks
        return text_of(whole), whole["usage"]["completion_tokens"]
    finally:
        writer.transport.abort()


async def read_events(reader: asyncio.StreamReader, n: int | None) -> tuple[str, int] | None:
    """Return text and number of tokens of a stream; None after n events. EOFError if it is cut."""
    text, n_tokens, n_seen = "", 0, 0
    while n is None or n_seen < n:
        line = await reader.readline()
        if not line:
            raise EOFError("the stream was cut")
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


def text_of(answer: dict[str, Any]) -> str:
    """Return what an answer, or a part of it, says."""
    return "".join(
        choice["text"]
        if "text" in choice
        else (choice.get("message") or choice["delta"]).get("content") or ""
        for choice in answer["choices"]
    )


async def watch(pid: int, port: int, record: Record) -> None:
    """Note the memory each second."""
    begin = time.monotonic()
    while True:
        prefixes = round((await metrics(port))["yocobit:prefix_cache_bytes"])
        record.samples.append((round(time.monotonic() - begin, 1), resident(pid), prefixes))
        await asyncio.sleep(1)


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1])


def n_files(pid: int) -> int:
    """Files and sockets that a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def check_idle(pid: int, port: int, idle_files: int, record: Record) -> None:
    """Record what is still in flight once all clients have ended."""
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
    """Return the server's metrics that have no labels."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return {name: float(v) for name, v in re.findall(r"^([\w:]+) ([-+.\de]+)$", text, re.MULTILINE)}


def check_memory(record: Record) -> None:
    """Note as a problem if memory grows after warm-up."""
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
    """Return what to print."""
    sizes, seconds = memory(record), record.samples[-1][0]
    n = sum(record.outcomes.values())
    n_taken = n - record.outcomes["429"]
    return {
        "requests": n,
        "outcomes": dict(record.outcomes),
        "left midway": f"{record.outcomes['left'] / n_taken:.1%}",
        "tokens/s of complete answers": round(record.n_tokens / seconds, 1),
        "MB at the begin": round(record.samples[0][1] / 2**20, 1),
        "MB after warm-up": round(sizes["early"], 1),
        "MB in the last quarter": round(sizes["late"], 1),
        "MB of prefixes, at most": round(max(s[2] for s in record.samples) / 2**20, 1),
        "growth after warm-up": f"{sizes['growth']:.2%}",
        "slope after warm-up, MB/min": round(sizes["slope"], 2),
        "problems": len(record.problems),
    }


@contextlib.contextmanager
def server(directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run `yocobit serve`; give its process and port. Its log goes to a file there."""
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
