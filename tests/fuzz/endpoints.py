"""Fuzzing of requests: valid bodies of every endpoint with odd values, and odd headers.

`run(seconds, seed)` sends them to one server in this process. No response may be a server error, no
request may take long, no traceback may be logged, and memory stays bounded.

    python tests/fuzz/endpoints.py SEED NUMBER      # one request again
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import h11
import httpx

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import mutation  # noqa: E402
import native_build  # noqa: E402, F401
import servers  # noqa: E402

from yocobit.serving import ServerSettings  # noqa: E402

REQUEST_SECONDS = 30
MAX_BYTES = 1 << 30
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "7"},
    {"role": "user", "content": "And <|endoftext|>?"},
]
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 9, "multipleOf": 3},
        "b": {"type": "string", "pattern": "[a-z]{1,4}", "maxLength": 5, "format": "date"},
        "c": {"type": "array", "items": {"enum": ["x", 1, None]}, "minItems": 1, "maxItems": 2},
        "d": {"anyOf": [{"$ref": "#/$defs/d"}, {"type": "null"}]},
    },
    "$defs": {"d": {"type": "object", "properties": {"d": {"$ref": "#/$defs/d"}}}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "f", "description": "F.", "parameters": SCHEMA}}
SAMPLING = {
    "max_tokens": 4, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "seed": 1, "n": 2,
    "presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.1, "stop": ["x"],
    "logit_bias": {"5": -1.5}, "stream": False, "user": "u",
}  # fmt: skip
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
RESPONSES = "/v1/responses"
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
    {"type": "reasoning", "id": "rs_1", "summary": []},
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Hi", "annotations": []}],
    },
    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
    {"type": "function_call_output", "call_id": "c1", "output": "7"},
    {"type": "item_reference", "id": "msg_2"},
]
FUNCTION = {"type": "function", "name": "f", "description": "F.", "parameters": SCHEMA}
TEXT_FORMAT = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"model": "tiny", "messages": MESSAGES, **SAMPLING}),
    (CHAT, {"messages": MESSAGES[:2], "logprobs": True, "top_logprobs": 2, "max_tokens": 2}),
    (CHAT, {"messages": MESSAGES[:2], "response_format": FORMAT, "max_tokens": 60}),
    (CHAT, {"messages": MESSAGES[:2], "tools": [TOOL], "tool_choice": "auto", "max_tokens": 8}),
    (CHAT, {"messages": MESSAGES[:2], "stream": True, "stream_options": {"include_usage": True}}),
    (TEXT, {"prompt": "In the beginning", **SAMPLING, "logprobs": 2, "echo": True, "suffix": None}),
    (TEXT, {"prompt": [[1, 2, 3], [4, 5]], "max_tokens": 2, "best_of": 1}),
    (TEXT, {"prompt": "In", "max_tokens": 3, "stream": True}),
    (RESPONSES, {"model": "tiny", "input": ITEMS[:5], "instructions": "Be short.", **SAMPLING}),
    (RESPONSES, {"input": ITEMS, "max_output_tokens": 4, "metadata": {"a": "b"}, "store": False}),
    (RESPONSES, {"input": "a", "previous_response_id": "resp_1", "truncation": "auto", "n": 1}),
    (RESPONSES, {"input": "a", "truncation": "auto", "max_output_tokens": 4, "stream": True}),
    (RESPONSES, {"input": "a", "text": TEXT_FORMAT, "max_output_tokens": 60, "top_logprobs": 1}),
    (RESPONSES, {"input": "a", "tools": [FUNCTION], "tool_choice": {"type": "function"}}),
    ("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "base64", "dimensions": None}),
    ("/tokenize", {"prompt": "text", "add_special_tokens": True, "return_token_strs": True}),
    ("/tokenize", {"messages": MESSAGES[:2], "add_generation_prompt": True, "tools": [TOOL]}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
]
HEADERS = [
    *(
        "content-type",
        "accept",
        "authorization",
        "x-request-id",
        "host",
        "origin",
        "content-length",
    ),
    *("transfer-encoding", "expect", "connection", "content-encoding", "x-forwarded-for", "range"),
]


class Records(logging.Handler):
    """Keeps the log records that have a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.tracebacks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or "Traceback" in record.getMessage():
            self.tracebacks.append(self.format(record))


def run(seconds: float, seed: int) -> int:
    """Send requests for some time; return the number of failures."""
    records = Records()
    logging.getLogger().addHandler(records)
    end, number, n_failures = time.monotonic() + seconds, 0, 0
    statuses: Counter[int] = Counter()
    settings = ServerSettings(threads=1, context=256, max_body_mb=1, timeout_s=20)
    with servers.running(settings) as server:
        before = _peak_bytes()
        while time.monotonic() < end:
            problem = send(server, random.Random(f"requests {seed} {number}"), statuses)
            if records.tracebacks:
                problem = records.tracebacks[0].splitlines()[-1]
                records.tracebacks.clear()
            if problem is not None:
                n_failures += 1
                print(f"FAILED endpoints: {problem[:400]}")
                print(f"    python tests/fuzz/endpoints.py {seed} {number}", flush=True)
            number += 1
        if (grown := _peak_bytes() - before) > MAX_BYTES:
            n_failures += 1
            print(f"FAILED endpoints: {grown >> 20} MB more memory")
        assert server.client.get("/health").status_code == 200
    print(f"endpoints: {number} cases, {n_failures} failures, {dict(statuses)}", flush=True)
    return n_failures


def send(server: servers.Server, rng: random.Random, statuses: Counter[int]) -> str | None:
    """Send one request; return what is wrong with its response, or None."""
    path, body = rng.choice(BODIES)
    content = mutation.dump(mutation.mutate_json(body, rng), rng)[: 2 << 20]
    headers = {"content-type": "application/json"}
    if rng.random() < 0.1:
        odd = rng.choice(mutation.TEXTS).encode("utf-8", "surrogatepass").replace(b"\n", b"")
        headers[rng.choice(HEADERS)] = odd[:5000].decode("latin-1")
    started = time.monotonic()
    try:
        response = server.client.post(
            path, content=content, headers=headers, timeout=REQUEST_SECONDS
        )
    except httpx.TimeoutException:
        return f"{path}: no response after {REQUEST_SECONDS} s: {content[:200]!r}"
    except (httpx.HTTPError, h11.ProtocolError, ValueError):
        return None  # the client refuses it, or the server closes the connection
    statuses[response.status_code] += 1
    if response.status_code >= 500 and response.status_code != 503:
        return f"{path}: {response.status_code}: {response.text[:200]} for {content[:200]!r}"
    if response.status_code == 400:
        message = json.loads(response.content)["error"]["message"]
        if len(message) > 2200 or "Traceback" in message:
            return f"{path}: a message of {len(message)} characters for {content[:200]!r}"
    if time.monotonic() - started > REQUEST_SECONDS:
        return f"{path}: {time.monotonic() - started:.0f} s for {content[:200]!r}"
    return None


def _peak_bytes() -> int:
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


if __name__ == "__main__":
    with servers.running(ServerSettings(threads=1, context=256, max_body_mb=1)) as one:
        print(send(one, random.Random(f"requests {sys.argv[1]} {sys.argv[2]}"), Counter()) or "ok")
