"""The names of a protocol for the fields of a ChatRequest, in errors and headers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class FieldNames:
    """The names of fields; those that are not listed have the same name."""

    own: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # JSON pointers to schemas; {} is the index of a tool.
    response_schema: str = "/response_format/json_schema/schema"
    tool_schema: str = "/tools/{}/function/parameters"

    def __getitem__(self, field: str) -> str:
        return self.own.get(field, field)

    def path(self, path: str) -> str:
        """Return a path that starts with a field, such as stop[0]."""
        field = path.replace("[", ".").partition(".")[0]
        return self[field] + path[len(field) :]


OPENAI_NAMES = FieldNames()
