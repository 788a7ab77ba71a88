"""OpenAI's published types as strict schemas: the generated types of its Python package.

The package itself reads answers leniently. Here a wrong type, a missing field, and a field that the
type does not have are errors.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import pydantic

# Additions of this server to OpenAI's objects, by their names.
ADDITIONS = {
    "x_groq",
    *("queue_time", "prompt_time", "completion_time", "total_time"),  # of Groq's usage
    "service_tier",  # of completions, as of chat completions
    "store",  # of responses, as OpenAI's server sends it
    "name",  # of response.function_call_arguments.done: required in other versions of the types
    *("active", "context_window", "max_completion_tokens", "max_model_len", "yocobit"),  # models
}


def validate(kind: Any, value: Any) -> None:
    """Raise ValidationError unless JSON is of a type of the package."""
    found = _adapter(kind).validate_json(json.dumps(value), strict=True)
    unknown = set(extras(found)) - ADDITIONS
    assert not unknown, f"{kind}: unknown fields {sorted(unknown)}"


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    """Return the validator of a type; the one of all events is slow to build."""
    return pydantic.TypeAdapter(kind)


def extras(value: Any) -> list[str]:
    """Return the names of fields that the types of a validated value do not have."""
    if isinstance(value, pydantic.BaseModel):
        own = [name for name in value.model_extra or () if name not in ADDITIONS]
        known = (getattr(value, name) for name in type(value).model_fields)
        return own + [name for field in known for name in extras(field)]
    if isinstance(value, dict):
        return [name for each in value.values() for name in extras(each)]
    if isinstance(value, list):
        return [name for each in value for name in extras(each)]
    return []
