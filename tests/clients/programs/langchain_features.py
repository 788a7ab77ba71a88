"""The features of a LangChain chat model."""

from collections.abc import Callable
from typing import Any

from feature import DESCRIPTION, PROMPT, TOOL, Clock
from langchain_core.tools import StructuredTool


def features(connect: Callable[..., Any]) -> dict[str, Callable[[str], Any]]:
    def text(url: str) -> Any:
        return connect(url).invoke(PROMPT).content

    def stream(url: str) -> Any:
        return [chunk.content for chunk in connect(url).stream(PROMPT)]

    def tools(url: str) -> Any:
        tool = StructuredTool.from_function(
            lambda **arguments: "", name=TOOL, description=DESCRIPTION, args_schema=Clock
        )
        model = connect(url, n_tokens=512).bind_tools([tool], tool_choice="required")
        call = model.invoke(PROMPT).tool_calls[0]
        return call["name"], call["args"]

    def parsed(url: str) -> Any:
        model = connect(url, n_tokens=512).with_structured_output(Clock, method="json_schema")
        return model.invoke(PROMPT)

    return {"text": text, "stream": stream, "tools": tools, "json": parsed}
