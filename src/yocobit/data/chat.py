"""Conversations as text: one template, for training, for the packed model and for serving.

Its markers are plain text that every tokenizer spells, each on a line of its own, so that a
conversation has the same tokens whether it is encoded as a whole or turn by turn:

    <|user|>
    What is the capital of France?
    <|end|>
    <|assistant|>
    Paris.
    <|end|>

A content cannot forge one: a marker that it spells gets a space.
"""

from __future__ import annotations

from typing import Any

from yocobit.config import ConfigError

ROLES = ("system", "user", "assistant")
END_OF_TURN = "<|end|>"
_QUOTED = {f"<|{name}|>": f"<| {name}|>" for name in (*ROLES, "end")}  # markers in a content

# Jinja, as Hugging Face stores it: of `messages` and `add_generation_prompt`.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] | trim"
    + "".join(f" | replace('{marker}', '{quoted}')" for marker, quoted in _QUOTED.items())
    + " + '\\n<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def render(messages: Any, source: str) -> list[tuple[str, bool]]:
    """Return the text of a conversation, in parts, and whether a model learns to write each.

    It learns what the assistant says, with the marker that ends its turn. ConfigError names what
    is wrong in `source`.
    """
    parts = []
    before = ""  # what nobody has to learn, up to the assistant's next word
    for i, message in enumerate(_checked(messages, source)):
        role, content = message["role"], _quote(message["content"].strip())
        before += f"<|{role}|>\n"
        if role == "assistant":
            if not content:
                raise ConfigError(f"{source}: messages[{i}] of the assistant must not be empty")
            parts += [(before, False), (f"{content}\n{END_OF_TURN}", True)]
            before = "\n"
        else:
            before += f"{content}\n{END_OF_TURN}\n"
    if not parts:
        raise ConfigError(f"{source}: messages must have one of the assistant")
    return [*parts, (before, False)]


def _quote(content: str) -> str:
    for marker, quoted in _QUOTED.items():
        content = content.replace(marker, quoted)
    return content


def _checked(messages: Any, source: str) -> list[dict[str, str]]:
    if not isinstance(messages, list):
        raise ConfigError(f"{source}: messages must be a list but is {messages!r}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ConfigError(f"{source}: messages[{i}] must be an object with a string 'content'")
        if message.get("role") not in ROLES:
            raise ConfigError(
                f"{source}: messages[{i}] must have a role of {', '.join(ROLES)} but has "
                f"{message.get('role')!r}"
            )
    return messages
