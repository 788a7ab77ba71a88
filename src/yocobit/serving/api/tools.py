"""Tool calling: functions that a model may request the client to call.

The chat template describes the tools to the model. Two formats of calls are parsed:
`<tool_call>{...}</tool_call>` (Hermes, Qwen), and an answer that is such JSON as a whole (Llama 3).
The JSON has a name and "arguments" or "parameters".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec

from yocobit.serving.api.protocol import Tool
from yocobit.serving.errors import APIError
from yocobit.text.stop_strings import partial_match

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that the model requests; `arguments` are JSON."""

    name: str
    arguments: str


class ToolCallParser:
    """Splits a streamed answer into content and tool calls."""

    def __init__(self, names: Sequence[str], is_call: bool = False) -> None:
        """With `is_call`, the whole answer is one call, and markers in it have no meaning."""
        self._names = frozenset(names)
        self._is_call = is_call
        self._held = ""
        self._has_text = False
        self._n_calls = 0

    def add(self, piece: str) -> tuple[str, list[Call]]:
        """Append a piece; return the content that is certain, and the calls that are complete."""
        self._held += piece
        if self._is_call:
            return "", []
        text, calls = "", []
        while True:
            at = self._held.find(OPEN)
            end = self._held.find(CLOSE, at) if at >= 0 else -1
            if end < 0:
                break
            before, inside = self._held[:at], self._held[at + len(OPEN) : end]
            self._held = self._held[end + len(CLOSE) :]
            call = self._parse(inside)
            if call is None:
                text += before + OPEN + inside + CLOSE
            else:
                text += before if before.strip() else ""
                calls.append(call)
        text += self._certain()
        return self._content(text), self._count(calls)

    def finish(self) -> tuple[str, list[Call]]:
        """Return the rest: content, or a call."""
        rest, self._held = self._held, ""
        body = rest.strip()
        call = self._parse(body[len(OPEN) :] if body.startswith(OPEN) else body)
        if call is not None and not self._has_text:
            return "", self._count([call])
        return (self._content(rest) if body or self._n_calls == 0 else ""), []

    def _certain(self) -> str:
        """Return the held text that cannot be the start of a call."""
        if (at := self._held.find(OPEN)) < 0:
            at = len(self._held) - partial_match(self._held, [OPEN])
        text = self._held[:at]
        if not self._has_text and (not text.strip() or text.lstrip().startswith("{")):
            return ""  # blanks before a call, or an answer that may be a call as a whole
        self._held = self._held[at:]
        return text

    def _content(self, text: str) -> str:
        self._has_text = self._has_text or bool(text.strip())
        return text

    def _count(self, calls: list[Call]) -> list[Call]:
        self._n_calls += len(calls)
        return calls

    def _parse(self, text: str) -> Call | None:
        try:
            value = msgspec.json.decode(text)
            name = value.get("name") if isinstance(value, dict) else None
            if not isinstance(name, str) or name not in self._names:
                return None
            arguments = value.get("arguments", value.get("parameters", {}))
            if not isinstance(arguments, str):
                arguments = msgspec.json.encode(arguments).decode()
        except (msgspec.DecodeError, RecursionError):
            return None
        return Call(name, arguments)


def schema_of_calls(tools: Sequence[Tool]) -> dict[str, Any]:
    """Return the JSON schema of a call of one of the tools; APIError 400 if it nests too deep."""
    definitions: dict[str, Any] = {}
    calls = []
    for i, tool in enumerate(tools):
        # OpenAI: a function without `parameters` takes none.
        parameters = tool.function.parameters or {"type": "object", "additionalProperties": False}
        try:
            definitions[f"tool_{i}"] = _embed(parameters, f"#/$defs/tool_{i}")
        except RecursionError:
            raise _too_deep(tool.function.name) from None
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.function.name},
                    "arguments": {"$ref": f"#/$defs/tool_{i}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"$defs": definitions, "anyOf": calls}


# Keywords whose values are data, and keywords that map names to schemas.
_DATA_KEYWORDS = {"const", "enum", "default", "examples"}
_NAME_KEYWORDS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}


def _embed(schema: Any, path: str) -> Any:
    """Return a schema with its local $refs rewritten for its new path within another schema.

    References by name ($id, $anchor) resolve unchanged.
    """
    if isinstance(schema, list):
        return [_embed(item, path) for item in schema]
    if not isinstance(schema, dict) or isinstance(schema.get("$id"), str):
        return schema
    embedded: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAME_KEYWORDS and isinstance(value, dict):
            embedded[key] = {name: _embed(each, path) for name, each in value.items()}
        else:
            embedded[key] = value if key in _DATA_KEYWORDS else _embed(value, path)
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        embedded["$ref"] = path + reference[1:]
    return embedded


def to_template(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return tools in the form of chat templates; APIError 400 if one is nested too deep."""
    found: list[dict[str, Any]] = []
    for tool in tools:
        try:
            builtins = msgspec.to_builtins(tool)
        except RecursionError:
            raise _too_deep(tool.function.name) from None
        function = {k: v for k, v in builtins["function"].items() if v is not None}
        found.append({**builtins, "function": function})
    return found


def _too_deep(name: str) -> APIError:
    return APIError(
        400,
        f"tools: the parameters of {name!r} are nested too deep; flatten them",
        param="tools",
    )
