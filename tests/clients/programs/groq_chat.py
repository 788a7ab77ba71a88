"""Groq's client."""

import json
from typing import Any

from feature import DESCRIPTION, MODEL, N_TOKENS, SEA, TOOL, Clock, run
from groq import Groq


def create(url: str, **body: Any) -> Any:
    completions = Groq(base_url=url, api_key="none").chat.completions
    return completions.create(model=MODEL, messages=SEA, **body)


def text(url: str) -> Any:
    return create(url, seed=1, max_completion_tokens=N_TOKENS).choices[0].message.content


def stream(url: str) -> Any:
    chunks = create(url, seed=1, max_completion_tokens=N_TOKENS, stream=True)
    return [chunk.choices[0].delta.content or "" for chunk in chunks]


def tools(url: str) -> Any:
    function = {"name": TOOL, "description": DESCRIPTION, "parameters": Clock.model_json_schema()}
    tool = {"type": "function", "function": function}
    answer = create(url, tools=[tool], tool_choice="required")
    call = answer.choices[0].message.tool_calls[0].function
    return call.name, json.loads(call.arguments)


def parsed(url: str) -> Any:
    schema = {"name": "clock", "schema": Clock.model_json_schema()}
    answer = create(url, response_format={"type": "json_schema", "json_schema": schema})
    return json.loads(answer.choices[0].message.content)


run(text=text, stream=stream, tools=tools, json=parsed)
