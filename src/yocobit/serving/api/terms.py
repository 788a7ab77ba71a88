"""The terms of a protocol: its names of what a ChatRequest has, in errors and headers."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec

from yocobit.serving.api.chat import PreparedChat
from yocobit.serving.errors import APIError

P = ParamSpec("P")

_LIMITS = ("max_tokens", "max_completion_tokens")  # named anywhere in a message


@dataclasses.dataclass(frozen=True)
class Terms:
    """How a protocol calls the fields of a ChatRequest, and where it has their schemas."""

    fields: Mapping[str, str]
    # Patterns of JSON pointers to schemas, and their replacements.
    pointers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Raise errors in chat's terms as errors in these."""
        try:
            yield
        except APIError as error:
            raise APIError(
                error.status,
                self._message(str(error)),
                param=error.param and self.fields.get(error.param, error.param),
                code=error.code,
                retry_after=error.retry_after,
            ) from None

    def prepare(
        self, prepare: Callable[P, PreparedChat], *args: P.args, **kwargs: P.kwargs
    ) -> PreparedChat:
        """Return what a function prepares, with its errors and dropped keywords in these terms."""
        with self.translated():
            prepared = prepare(*args, **kwargs)
        if prepared.grammar is None:
            return prepared
        dropped = tuple(map(self._pointers, prepared.grammar.dropped))
        grammar = dataclasses.replace(prepared.grammar, dropped=dropped)
        return dataclasses.replace(prepared, grammar=grammar)

    def _message(self, text: str) -> str:
        """Return a message that starts with a field's name, or names the limit of tokens."""
        text = self._pointers(text)
        for name, own in self.fields.items():
            pattern = rf"\b{name}\b" if name in _LIMITS else rf"\A{name}\b(?=[:.\[]| is | must )"
            text = re.sub(pattern, own, text)
        return text

    def _pointers(self, text: str) -> str:
        for pattern, own in self.pointers.items():
            text = re.sub(pattern, own, text)
        return text
