"""Instructor: objects from tool calls and from schemas."""

from typing import Any

import instructor
from feature import MODEL, SEA, TOOL, Clock, run
from openai import OpenAI


def create(url: str, mode: instructor.Mode) -> Any:
    client = instructor.from_openai(OpenAI(base_url=f"{url}/v1", api_key="none"), mode=mode)
    return client.chat.completions.create(model=MODEL, messages=SEA, response_model=Clock)


def tools(url: str) -> Any:
    return TOOL, create(url, instructor.Mode.TOOLS).model_dump()  # Instructor parses the call


def parsed(url: str) -> Any:
    return create(url, instructor.Mode.JSON_SCHEMA)


run(tools=tools, json=parsed)
