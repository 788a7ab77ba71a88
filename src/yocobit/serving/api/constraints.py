"""Constraints: the fields of a request that restrict its output to a grammar.

They come in the spellings of OpenAI (response_format), vLLM (structured_outputs, guided_*) and
llama.cpp (grammar, json_schema). Each becomes one Grammar; a request has at most one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from yocobit.serving import limits
from yocobit.serving.api.field_names import FieldNames
from yocobit.serving.api.protocol import Name, Sampling
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.errors import APIError
from yocobit.serving.runtime.request import Request
from yocobit.serving.runtime.structured_output import CheckedGrammar, Grammar, Kind

DROPPED_HEADER = "x-yocobit-dropped-schema-keywords"
_MAX_HEADER = 1000  # characters

JSONSchemaValue = dict[str, Any] | bool
Alternatives = Annotated[list[str], Meta(min_length=1, max_length=limits.CONSTRAINT_CHOICES)]


class JSONSchema(Struct, kw_only=True):
    name: Name | None = None
    description: str | None = None
    schema: JSONSchemaValue | None = None
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None
    schema: JSONSchemaValue | None = None  # as in llama.cpp


class StructuredOutputs(Struct, kw_only=True):
    """vLLM's constraint: one of these fields."""

    json: JSONSchemaValue | str | None = None
    regex: str | None = None
    choice: Alternatives | None = None
    grammar: str | None = None
    json_object: bool | None = None
    # Refused:
    structural_tag: Any = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None


class Constrained(Sampling, kw_only=True):
    """The fields that constrain an output."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JSONSchemaValue | str | None = None
    guided_regex: str | None = None
    guided_choice: Alternatives | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None  # refused
    grammar: str | None = None
    json_schema: JSONSchemaValue | None = None

    @property
    def is_constrained(self) -> bool:
        """Whether a grammar must be compiled."""
        response = self.response_format
        return (response is not None and response.type != "text") or any(
            (self.structured_outputs, *(getattr(self, name) is not None for name, _ in _FIELDS))
        )


# The other fields whose value is a grammar, and its kind.
_FIELDS: Sequence[tuple[str, Kind]] = (
    ("guided_json", "json"),
    ("guided_regex", "regex"),
    ("guided_choice", "choice"),
    ("guided_grammar", "cfg"),
    ("grammar", "cfg"),
    ("json_schema", "json"),
)
_STRUCTURED_OUTPUTS: Sequence[tuple[str, Kind]] = (
    ("json", "json"),
    ("regex", "regex"),
    ("choice", "choice"),
    ("grammar", "cfg"),
)
_REFUSED = (
    "structural_tag",
    "whitespace_pattern",
    "disable_any_whitespace",
    "disable_additional_properties",
)


@dataclasses.dataclass(frozen=True)
class Source:
    """A schema of a request, within the schema of a grammar."""

    pointer: str  # JSON pointer in the request's body
    is_strict: bool = False  # whether keywords that cannot be enforced are errors
    within: str = ""  # JSON pointer in the grammar's schema


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A grammar that an output has to follow."""

    param: str  # the request's field
    grammar: Grammar
    sources: Sequence[Source] = ()

    def check(self, model: ServedModel, max_tokens: int, names: FieldNames) -> CheckedGrammar:
        """Return the grammar, checked; APIError 400 if it cannot be followed."""
        grammars, limit = model.grammars_for(self.param), names["max_tokens"]
        checked = grammars.check(self.grammar, self.param, max_tokens, limit)
        dropped = tuple(map(self._in_request, checked.dropped))
        return dataclasses.replace(checked, dropped=dropped)

    def _in_request(self, pointer: str) -> str:
        """Return a dropped keyword's pointer in the request; APIError 400 if that is strict."""
        source = next(each for each in self.sources if pointer.startswith(each.within + "/"))
        found = source.pointer + pointer.removeprefix(source.within)
        if source.is_strict:
            raise APIError(
                400,
                f"{self.param}: the keyword at {found} cannot be enforced, which strict requires; "
                "remove it, or leave strict out",
                param=self.param,
            )
        return found


def constraint_of(body: Constrained) -> Constraint | None:
    """Return the constraint of a request's output; APIError 400 if it has several."""
    found = list(_constraints(body))
    if len(found) > 1:
        raise APIError(
            400,
            f"{found[0].param} and {found[1].param} both constrain the output; leave one out",
            param=found[1].param,
        )
    return found[0] if found else None


def constrained(
    model: ServedModel, constraint: Constraint | None, body: Sampling, requests: list[Request]
) -> tuple[CheckedGrammar | None, list[Request]]:
    """Return the checked grammar of requests, and the requests, which end only with it.

    APIError 400 if the grammar cannot be followed.
    """
    if constraint is None:
        return None, requests
    for name in ("ignore_eos", "min_tokens"):
        if getattr(body, name):
            raise APIError(
                400,
                f"{name}: structured output ends when it is complete; leave {name} out",
                param=name,
            )
    checked = constraint.check(model, min(each.max_tokens for each in requests), body.names)
    return checked, [each.until_complete() for each in requests]


def dropped_header(checked: CheckedGrammar | None) -> dict[str, str]:
    """Return the response header that lists the keywords of schemas that are not enforced."""
    pointers = [quote(each, safe="/$~") for each in checked.dropped] if checked else []
    if not pointers:
        return {}
    shown = pointers
    while len(", ".join(shown)) > _MAX_HEADER:
        shown = shown[: len(shown) * 3 // 4]
    more = [] if shown == pointers else [f"and {len(pointers) - len(shown)} more"]
    return {DROPPED_HEADER: ", ".join([*shown, *more])}


def _constraints(body: Constrained) -> Iterator[Constraint]:
    if body.response_format is not None and body.response_format.type != "text":
        yield _of_response_format(body.response_format, body.names)
    if body.structured_outputs is not None:
        yield from _of_structured_outputs(body.structured_outputs)
    _refuse(body, "guided_whitespace_pattern")
    for name, kind in _FIELDS:
        yield from _of_field(getattr(body, name), kind, name)


def _of_response_format(response: ResponseFormat, names: FieldNames) -> Constraint:
    param, schema, is_strict = names["response_format"], response.schema, False
    pointer = "/response_format/schema"
    if schema is None and response.json_schema is not None:
        schema, pointer = response.json_schema.schema, names.response_schema
        is_strict = bool(response.json_schema.strict)
    if schema is None and response.type == "json_object":
        schema = {"type": "object"}
    if schema is None:
        raise APIError(400, f"{param}: json_schema.schema is missing", param=param)
    grammar = Grammar.from_json("json", schema, param)
    return Constraint(param, grammar, [Source(pointer, is_strict)])


def _of_structured_outputs(outputs: StructuredOutputs) -> Iterator[Constraint]:
    prefix = "structured_outputs"
    for name in _REFUSED:
        _refuse(outputs, name, f"{prefix}.")
    found = [
        each
        for name, kind in _STRUCTURED_OUTPUTS
        for each in _of_field(getattr(outputs, name), kind, f"{prefix}.{name}")
    ]
    if outputs.json_object:
        found += _of_field({"type": "object"}, "json", f"{prefix}.json_object")
    if not found:
        raise APIError(
            400,
            f"{prefix} has no constraint; give json, regex, choice, grammar or json_object",
            param=prefix,
        )
    yield from found


def _of_field(value: Any, kind: Kind, param: str) -> Iterator[Constraint]:
    """Yield the constraint of a field whose value is a grammar; an empty text is ignored."""
    if value is None or value == "":
        return
    if kind in ("json", "choice"):
        if isinstance(value, str):
            try:
                value = msgspec.json.decode(value, type=JSONSchemaValue)
            except (msgspec.DecodeError, RecursionError) as error:
                raise APIError(400, f"{param} is not a JSON schema: {error}", param=param) from None
        grammar = Grammar.from_json(kind, value, param)
    else:
        grammar = Grammar(kind, value)
    yield Constraint(param, grammar, [Source("/" + param.replace(".", "/"))])


def _refuse(fields: Struct, name: str, prefix: str = "") -> None:
    """APIError 400 if a field is set."""
    if getattr(fields, name):
        raise APIError(
            400, f"{prefix}{name} is not supported; leave it out", param=f"{prefix}{name}"
        )
