"""Ollama's client."""

import json
from typing import Any

from feature import MODEL, N_TOKENS, SEA, Clock, run
from ollama import Client

SHORT = {"seed": 1, "num_predict": N_TOKENS}


def text(url: str) -> Any:
    return Client(url).chat(MODEL, SEA, options=SHORT).message.content


def stream(url: str) -> Any:
    parts = Client(url).chat(MODEL, SEA, options=SHORT, stream=True)
    return [part.message.content for part in parts]


def parsed(url: str) -> Any:
    return json.loads(
        Client(url).chat(MODEL, SEA, format=Clock.model_json_schema()).message.content
    )


run(text=text, stream=stream, json=parsed)
