"""OpenAI's client: chat completions."""

import json
from typing import Any

from feature import DESCRIPTION, MODEL, N_TOKENS, SEA, TOOL, Clock, run
from openai import OpenAI


def client(url: str) -> Any:
    return OpenAI(base_url=f"{url}/v1", api_key="none").chat.completions


def text(url: str) -> Any:
    answer = client(url).create(model=MODEL, messages=SEA, seed=1, max_tokens=N_TOKENS)
    return answer.choices[0].message.content


def stream(url: str) -> Any:
    with client(url).stream(model=MODEL, messages=SEA, seed=1, max_tokens=N_TOKENS) as events:
        return [event.delta for event in events if event.type == "content.delta"]


def tools(url: str) -> Any:
    function = {"name": TOOL, "description": DESCRIPTION, "parameters": Clock.model_json_schema()}
    answer = client(url).create(
        model=MODEL,
        messages=SEA,
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
    )
    call = answer.choices[0].message.tool_calls[0].function
    return call.name, json.loads(call.arguments)


def parsed(url: str) -> Any:
    answer = client(url).parse(model=MODEL, messages=SEA, response_format=Clock)
    return answer.choices[0].message.parsed


run(text=text, stream=stream, tools=tools, json=parsed)
