"""The features of LiteLLM for any of its providers."""

import json
from collections.abc import Callable
from typing import Any

import litellm
from feature import DESCRIPTION, MODEL, N_TOKENS, SEA, TOOL, Clock


def features(provider: str, path: str) -> dict[str, Callable[[str], Any]]:
    def complete(url: str, **body: Any) -> Any:
        return litellm.completion(
            model=f"{provider}/{MODEL}",
            messages=SEA,
            api_base=url + path,
            api_key="none",
            seed=1,
            **body,
        )

    def text(url: str) -> Any:
        return complete(url, max_tokens=N_TOKENS).choices[0].message.content

    def stream(url: str) -> Any:
        chunks = complete(url, max_tokens=N_TOKENS, stream=True)
        return [chunk.choices[0].delta.content or "" for chunk in chunks]

    def tools(url: str) -> Any:
        schema = Clock.model_json_schema()
        function = {"name": TOOL, "description": DESCRIPTION, "parameters": schema}
        tool = {"type": "function", "function": function}
        answer = complete(url, tools=[tool], tool_choice="required")
        call = answer.choices[0].message.tool_calls[0].function
        return call.name, json.loads(call.arguments)

    def parsed(url: str) -> Any:
        schema = {"name": "clock", "schema": Clock.model_json_schema(), "strict": True}
        # Of itself, LiteLLM turns the schema into a tool for models that it does not know.
        answer = complete(
            url,
            response_format={"type": "json_schema", "json_schema": schema},
            allowed_openai_params=["response_format"],
        )
        return json.loads(answer.choices[0].message.content)

    return {"text": text, "stream": stream, "tools": tools, "json": parsed}
