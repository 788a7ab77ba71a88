"""OpenAI's client: responses."""

import json
from typing import Any

from feature import DESCRIPTION, MODEL, N_TOKENS, PROMPT, TOOL, Clock, run
from openai import OpenAI


def client(url: str) -> Any:
    return OpenAI(base_url=f"{url}/v1", api_key="none").responses


def text(url: str) -> Any:
    first = client(url).create(model=MODEL, input=PROMPT, max_output_tokens=N_TOKENS)
    second = client(url).create(
        model=MODEL, input="More.", previous_response_id=first.id, max_output_tokens=N_TOKENS
    )
    return second.output_text


def stream(url: str) -> Any:
    with client(url).stream(model=MODEL, input=PROMPT, max_output_tokens=N_TOKENS) as events:
        return [event.delta for event in events if event.type == "response.output_text.delta"]


def tools(url: str) -> Any:
    parameters = Clock.model_json_schema()
    tool = {"type": "function", "name": TOOL, "description": DESCRIPTION, "parameters": parameters}
    answer = client(url).create(model=MODEL, input=PROMPT, tools=[tool], tool_choice="required")
    call = next(item for item in answer.output if item.type == "function_call")
    return call.name, json.loads(call.arguments)


def parsed(url: str) -> Any:
    return client(url).parse(model=MODEL, input=PROMPT, text_format=Clock).output_parsed


run(text=text, stream=stream, tools=tools, json=parsed)
