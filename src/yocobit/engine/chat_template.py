"""Chat templates: Jinja templates that render messages as a prompt, as Hugging Face stores them.

Templates come with downloaded models, so they run in a sandbox.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from yocobit.config import ConfigError

Message = Mapping[str, Any]  # "role", "content", and other keys that the template reads


class ChatTemplate:
    """The chat template of one model."""

    def __init__(self, source: str, name: str) -> None:
        self._name = name
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _reject
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"{name}: is not a Jinja template ({error})") from None

    @classmethod
    def read(cls, path: Path) -> ChatTemplate:
        """Read a template; ConfigError if the file is missing or not a valid template."""
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            raise ConfigError(
                f"{path}: is missing: the model was not trained on conversations; use generate, or "
                "train it on .jsonl files of messages"
            ) from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: is not UTF-8 (byte {error.start})") from None

    def render(self, messages: Sequence[Message], **variables: Any) -> str:
        """Render messages as a prompt that ends where the assistant's reply starts.

        ConfigError, with the template's own message, for messages that it rejects.
        """
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **variables)
        except (
            TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            RecursionError,
        ) as error:
            raise ConfigError(f"{self._name}: rejects these messages ({error})") from None


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """Return JSON; Jinja's own filter would escape it for HTML."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


def _reject(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
