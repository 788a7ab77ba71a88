"""Pydantic AI."""

from typing import Any

from feature import DESCRIPTION, MODEL, N_TOKENS, PROMPT, TOOL, Clock, run
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def agent(url: str, **options: Any) -> Agent:
    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    return Agent(OpenAIChatModel(MODEL, provider=provider), **options)


def text(url: str) -> Any:
    short: Any = {"seed": 1, "max_tokens": N_TOKENS}
    return agent(url, model_settings=short).run_sync(PROMPT).output


def stream(url: str) -> Any:
    short: Any = {"seed": 1, "max_tokens": N_TOKENS}
    result = agent(url, model_settings=short).run_stream_sync(PROMPT)
    return list(result.stream_text(delta=True, debounce_by=None))


def tools(url: str) -> Any:
    output = ToolOutput(Clock, name=TOOL, description=DESCRIPTION)
    result = agent(url, output_type=output).run_sync(PROMPT)
    parts = [part for message in result.all_messages() for part in message.parts]
    call = next(part for part in parts if part.part_kind == "tool-call")
    return call.tool_name, call.args_as_dict()


def parsed(url: str) -> Any:
    return agent(url, output_type=NativeOutput(Clock)).run_sync(PROMPT).output


run(text=text, stream=stream, tools=tools, json=parsed)
