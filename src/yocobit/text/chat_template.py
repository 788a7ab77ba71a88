"""Chat templates: Jinja templates that render messages as a prompt, in the dialect of transformers.

Templates come with downloaded models, so they run in a sandbox with limits (template_sandbox.py).
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import nodes

from yocobit.errors import ConfigError
from yocobit.reading import boundary, decode, read_text
from yocobit.text.template_sandbox import Sandbox, counted, limits

Message = Mapping[str, Any]  # "role", "content", and other keys that the template reads

MAX_SOURCE_BYTES = 1 << 17  # compiling takes some kilobytes for each byte
# How the importer of 0.1 wrote templates: the engine adds the token to what they render.
_NO_BOS = '{% set bos_token = "" %}'
_DEFAULTS = {"tools": None, "documents": None, "add_generation_prompt": True}
_RESERVED = {"messages", *_DEFAULTS, "loop", "self", "super", "caller", "varargs", "kwargs"}
# Appended to a message that is continued; the blank shows if the template strips messages.
_CONTINUED = "<continued-here> "
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one field


class Prompt(str):
    """A rendered conversation, and what it was rendered from.

    Encoded as text, it has the special tokens of the template, and none that a message spells.
    """

    template: ChatTemplate
    messages: Sequence[Message]
    variables: Mapping[str, Any]


class ChatTemplate:
    """The chat template of one model."""

    def __init__(self, source: str, name: str, names: Mapping[str, str] | None = None) -> None:
        """`names` are those of special tokens that the template reads, such as "bos_token"."""
        self.source = source
        self._name = name
        self._names = dict(names or {})
        with boundary(name, "is not a Jinja template"), limits():
            self._template = Sandbox().from_string(source)

    @classmethod
    def read(
        cls, path: Path, name: Path | None = None, names: Mapping[str, str] | None = None
    ) -> ChatTemplate:
        """Read a template; ConfigError, naming `name`, if it is missing or invalid."""
        name = name or path
        try:
            return cls(read_text(path, MAX_SOURCE_BYTES), str(name), names)
        except FileNotFoundError:
            raise ConfigError(
                f"{name}: is missing: the model was not trained on conversations; use generate, or "
                "train it on .jsonl files of messages"
            ) from None

    @property
    def writes_bos(self) -> bool:
        """Whether the template decides itself if a prompt starts with the BOS token."""
        return "bos_token" in self.source and not self.source.startswith(_NO_BOS)

    def render(
        self,
        messages: Sequence[Message],
        /,  # a variable may have any name
        **variables: Any,
    ) -> Prompt:
        """Render messages as a prompt that ends where the assistant's reply starts.

        `variables` such as `tools` are those of the template. With `continue_final_message` among
        them, the prompt ends with the content of the last message, which the model continues.
        ConfigError, with the template's own message, for messages that it rejects.
        """
        with boundary(self._name, "rejects these messages"):
            chat = [_message(_plain(message)) for message in messages]
            given = {**_DEFAULTS, **self._names, **_plain(variables)}
            is_continued = given.pop("continue_final_message", False)
            if is_continued:
                given["add_generation_prompt"] = False
                chat[-1]["content"] = chat[-1].get("content", "") + _CONTINUED
            with limits(64 * _size([chat, given])):
                pieces = self._template.generate({**given, "messages": chat})
                text = "".join(map(counted, pieces))
            prompt = Prompt(_until_continued(text) if is_continued else text)
        prompt.template, prompt.messages, prompt.variables = self, messages, variables
        return prompt


def _until_continued(text: str) -> str:
    """Return a rendered conversation up to the end of the message that is continued."""
    before, mark, after = text.rpartition(_CONTINUED.strip())
    if not mark:
        raise ConfigError("the template does not write the last message, so it cannot be continued")
    return before if after.startswith(" ") else before.rstrip()


def with_token_names(template: str, names: Mapping[str, str], subject: str | Path) -> bytes:
    """Return a template that sets the names of special tokens, such as bos_token, itself.

    The variables of a rendering and of Jinja keep their meaning: such names are left out, and so
    are names that the template does not have, apart from bos_token (see writes_bos). ConfigError,
    naming `subject`, if ChatTemplate.read would not accept the result.
    """
    known = Sandbox().globals.keys() | _RESERVED
    lines = [
        f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}"
        for name, value in names.items()
        if name not in known and _is_variable(name) and (name == "bos_token" or name in template)
    ]
    # Without a newline of the prefix, Jinja would drop that of the template, and keep the blanks
    # before its first block.
    content = "".join([*lines, "\n" if lines else "", template]).encode()
    if len(content) > MAX_SOURCE_BYTES:
        raise ConfigError(
            f"{subject}: the chat template and the names of special tokens must have at most "
            f"{MAX_SOURCE_BYTES:,} bytes but have {len(content):,}; shorten them"
        )
    ChatTemplate(decode(content, subject), str(subject))
    return content


def _is_variable(name: str) -> bool:
    """Whether a template can set and read a variable of this name."""
    is_word = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
    return is_word and nodes.Name(name, "store").can_assign()


def _message(message: Any) -> Any:
    """Return a message as transformers gives it to templates."""
    if not isinstance(message, dict):
        raise TypeError(f"a message must be an object but is {type(message).__name__}")
    message = {key: value for key, value in message.items() if value is not None}
    for name in _REASONING:
        if name in message:
            reasoning = message[name]
            return {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _plain(value: Any) -> Any:
    """Return data without methods that a template could call: JSON types and tuples."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, list):
        return list(map(_plain, value))
    return f"<{type(value).__name__}>"


def _size(value: Any) -> int:
    """Return the characters of the strings in plain data."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_size(key) + _size(each) for key, each in value.items())
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0
