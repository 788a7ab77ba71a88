"""OpenAI's Agents SDK, which uses responses."""

import asyncio
import json
from typing import Any

from agents import (
    Agent,
    FunctionTool,
    ModelSettings,
    OpenAIResponsesModel,
    Runner,
    set_tracing_disabled,
)
from feature import DESCRIPTION, MODEL, PROMPT, TOOL, Clock, run
from openai import AsyncOpenAI

set_tracing_disabled(True)


def agent(url: str, **options: Any) -> Agent:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
    return Agent(name="A", model=OpenAIResponsesModel(MODEL, client), **options)


def text(url: str) -> Any:
    return Runner.run_sync(agent(url), PROMPT).final_output


def stream(url: str) -> Any:
    async def pieces() -> list[str]:
        return [
            event.data.delta
            async for event in Runner.run_streamed(agent(url), PROMPT).stream_events()
            if event.type == "raw_response_event"
            and event.data.type == "response.output_text.delta"
        ]

    return asyncio.run(pieces())


def tools(url: str) -> Any:
    calls = []

    async def call(context: Any, arguments: str) -> str:
        calls.append((TOOL, json.loads(arguments)))
        return "shown"

    tool = FunctionTool(
        TOOL, DESCRIPTION, Clock.model_json_schema(), call, strict_json_schema=False
    )
    Runner.run_sync(
        agent(
            url,
            tools=[tool],
            model_settings=ModelSettings(tool_choice="required"),
            tool_use_behavior="stop_on_first_tool",
        ),
        PROMPT,
    )
    return calls[0]


def parsed(url: str) -> Any:
    return Runner.run_sync(agent(url, output_type=Clock), PROMPT).final_output


run(text=text, stream=stream, tools=tools, json=parsed)
