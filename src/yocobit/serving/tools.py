"""Tools: functions that a model may ask the client to call.

The chat template tells the model of them, and how it calls one depends on the model; understood
are `<tool_call>{...}</tool_call>`, as Hermes and Qwen write, and an answer that is such JSON as a
whole, as Llama 3 writes. The JSON has a name and "arguments" or "parameters".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec

from yocobit.engine.detokenizer import partial_match
from yocobit.serving.errors import APIError
from yocobit.serving.protocol import Tool

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclasses.dataclass(frozen=True)
class Call:
    """A function that the model asks for; `arguments` are JSON."""

    name: str
    arguments: str


class ToolCallReader:
    """Takes an answer piece by piece, and tells text from calls."""

    def __init__(self, names: Sequence[str], is_call: bool = False) -> None:
        """`is_call` says that the answer is a call as a whole: then markers in it mean nothing."""
        self._names = frozenset(names)
        self._is_call = is_call
        self._held = ""
        self._has_text = False
        self._n_calls = 0

    def add(self, piece: str) -> tuple[str, list[Call]]:
        """Return what is text for certain, and the calls that are complete."""
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
        return self._shown(text), self._count(calls)

    def finish(self) -> tuple[str, list[Call]]:
        """Return the rest of the text, and the call that it may be."""
        rest, self._held = self._held, ""
        body = rest.strip()
        call = self._parse(body[len(OPEN) :] if body.startswith(OPEN) else body)
        if call is not None and not self._has_text:
            return "", self._count([call])
        return (self._shown(rest) if body or self._n_calls == 0 else ""), []

    def _certain(self) -> str:
        """Take from what is held back that which cannot begin a call."""
        if (at := self._held.find(OPEN)) < 0:
            at = len(self._held) - partial_match(self._held, [OPEN])
        text = self._held[:at]
        if not self._has_text and (not text.strip() or text.lstrip().startswith("{")):
            return ""  # blanks before a call, or an answer that may be one as a whole
        self._held = self._held[at:]
        return text

    def _shown(self, text: str) -> str:
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
    """Return the JSON schema of a call of one of the tools; APIError 400 if it is too deep."""
    definitions: dict[str, Any] = {}
    calls = []
    for i, tool in enumerate(tools):
        # Without parameters, OpenAI says, a function has none.
        parameters = tool.function.parameters or {"type": "object", "additionalProperties": False}
        try:
            definitions[f"tool_{i}"] = _moved(parameters, f"#/$defs/tool_{i}")
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


# What keywords of a schema hold: values, and schemas by names that are no keywords.
_OF_VALUES = {"const", "enum", "default", "examples"}
_OF_NAMES = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}


def _moved(schema: Any, place: str) -> Any:
    """Return a schema that stands in another, at that place: what it refers to is there, too.

    What it refers to by a name ($id, $anchor) is found wherever it stands.
    """
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict) or isinstance(schema.get("$id"), str):
        return schema
    moved: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _OF_NAMES and isinstance(value, dict):
            moved[key] = {name: _moved(each, place) for name, each in value.items()}
        else:
            moved[key] = value if key in _OF_VALUES else _moved(value, place)
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = place + reference[1:]
    return moved


def to_template(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return tools as chat templates take them; APIError 400 if one is too deep."""
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
        f"tools: the parameters of {name!r} are nested too deep; make them flatter",
        param="tools",
    )
