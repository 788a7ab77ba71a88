"""Anthropic's client."""

from typing import Any

from anthropic import Anthropic
from feature import DESCRIPTION, MODEL, N_TOKENS, SEA, TOOL, Clock, run


def client(url: str) -> Any:
    return Anthropic(base_url=url, api_key="none").messages


def text(url: str) -> Any:
    answer = client(url).create(model=MODEL, messages=SEA, max_tokens=N_TOKENS, system="Be brief.")
    return answer.content[0].text


def stream(url: str) -> Any:
    with client(url).stream(model=MODEL, messages=SEA, max_tokens=N_TOKENS) as events:
        return list(events.text_stream)


def tools(url: str) -> Any:
    tool = {"name": TOOL, "description": DESCRIPTION, "input_schema": Clock.model_json_schema()}
    answer = client(url).create(
        model=MODEL, messages=SEA, max_tokens=512, tools=[tool], tool_choice={"type": "any"}
    )
    call = next(block for block in answer.content if block.type == "tool_use")
    return call.name, call.input


def parsed(url: str) -> Any:
    answer = client(url).parse(model=MODEL, messages=SEA, max_tokens=512, output_format=Clock)
    return answer.parsed_output


run(text=text, stream=stream, tools=tools, json=parsed)
