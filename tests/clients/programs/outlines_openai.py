"""Outlines."""

import json
from typing import Any

import outlines
from feature import MODEL, N_TOKENS, PROMPT, Clock, run
from openai import OpenAI


def model(url: str) -> Any:
    return outlines.from_openai(OpenAI(base_url=f"{url}/v1", api_key="none"), MODEL)


def text(url: str) -> Any:
    return model(url)(PROMPT, seed=1, max_tokens=N_TOKENS)


def stream(url: str) -> Any:
    return list(model(url).stream(PROMPT, seed=1, max_tokens=N_TOKENS))


def parsed(url: str) -> Any:
    return json.loads(model(url)(PROMPT, Clock))


run(text=text, stream=stream, json=parsed)
