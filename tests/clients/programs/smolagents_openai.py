"""smolagents' OpenAIModel, with the stop sequences that its agents send."""

import json
from typing import Any, ClassVar

from feature import DESCRIPTION, MODEL, N_TOKENS, SEA, TOOL, Clock, run
from smolagents import OpenAIModel, Tool

STOP = ["Observation:", "Calling tools:"]


class ShowClock(Tool):
    name = TOOL
    description = DESCRIPTION
    inputs: ClassVar = {
        "zone": {"type": "string", "description": "Zone.", "enum": ["UTC", "CET"]},
        "is_24_hours": {"type": "boolean", "description": "Hours to 24."},
    }
    output_type = "string"

    def forward(self, zone: str, is_24_hours: bool) -> str:
        return "shown"


def model(url: str, **options: Any) -> OpenAIModel:
    return OpenAIModel(MODEL, api_base=f"{url}/v1", api_key="none", seed=1, **options)


def text(url: str) -> Any:
    return model(url, max_tokens=N_TOKENS).generate(SEA, stop_sequences=STOP).content


def stream(url: str) -> Any:
    short = model(url, max_tokens=N_TOKENS)
    return [delta.content or "" for delta in short.generate_stream(SEA, stop_sequences=STOP)]


def tools(url: str) -> Any:
    answer = model(url).generate(SEA, stop_sequences=STOP, tools_to_call_from=[ShowClock()])
    call = answer.tool_calls[0].function
    arguments = call.arguments
    return call.name, json.loads(arguments) if isinstance(arguments, str) else arguments


def parsed(url: str) -> Any:
    schema = {"name": "clock", "schema": Clock.model_json_schema(), "strict": True}
    response_format: Any = {"type": "json_schema", "json_schema": schema}
    answer = model(url).generate(SEA, stop_sequences=STOP, response_format=response_format)
    return json.loads(answer.content)


run(text=text, stream=stream, tools=tools, json=parsed)
