"""Clients of OpenAI's and Groq's SDKs, and the requests that the tests send.

The clients are strict: a response that does not match the SDK's types raises
APIResponseValidationError. The packaged model writes nonsense, so no test depends on the meaning of
a text.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, Literal

import groq
import openai
from pydantic import BaseModel, ConfigDict, Field
from servers import Server, wait_for

MODEL = "tiny"
SEA = [{"role": "user", "content": "Tell me about the sea."}]
KING = "The king of the island"
KEYS = ("the first key", "the second key")


class Day(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weekday: Literal["Monday", "Tuesday"]
    degrees: int = Field(ge=-40, le=50)


class Forecast(BaseModel):
    """A schema of structured output with short values."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Oslo", "Rome", "Lima"]
    windy: bool
    days: list[Day] = Field(min_length=1, max_length=2)


class Clock(BaseModel):
    model_config = ConfigDict(extra="forbid")

    zone: Literal["UTC", "CET"]


def connect(sdk: ModuleType, url: str, kind: str = "", **options: Any) -> Any:
    """Return a strict client of the server at url; kind is "" or "Async"."""
    base_url = f"{url}/v1" if sdk is openai else url  # Groq's client appends /openai/v1
    options = {"api_key": "none", "max_retries": 0, "_strict_response_validation": True, **options}
    return getattr(sdk, kind + {openai: "OpenAI", groq: "Groq"}[sdk])(base_url=base_url, **options)


def chat(client: Any, **body: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": SEA, **body})


def complete(client: openai.OpenAI, **body: Any) -> Any:
    return client.completions.create(**{"model": MODEL, "prompt": KING, **body})


def tool(name: str, arguments: type[BaseModel]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "parameters": arguments.model_json_schema()},
    }


def named(name: str) -> dict[str, Any]:
    """Return the tool_choice that requires a tool."""
    return {"type": "function", "function": {"name": name}}


def text(completion: Any, index: int = 0) -> str:
    return completion.choices[index].message.content


def joined(chunks: Iterable[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def details(error: Any) -> dict[str, Any]:
    """Return the error object of a response; OpenAI's client has already unwrapped it."""
    return error.body.get("error", error.body)


@contextlib.contextmanager
def cancelling(server: Server) -> Iterator[None]:
    """Wait, after the block, until one more request is cancelled and the server is idle."""

    def n_cancelled() -> float:
        metrics = server.client.get("/metrics").text
        return float(re.search(r"^yocobit:request_cancelled_total (\S+)$", metrics, re.M)[1])

    before = n_cancelled()
    yield
    wait_for(lambda: n_cancelled() > before)
    server.wait_until_idle()
