"""Conversations as text: the chat template of training, of packed models and of the server.

The role markers are plain text, which every tokenizer can encode, each on a line of its own: a
conversation has the same tokens whether it is encoded as a whole or turn by turn.

    <|user|>
    What is the capital of France?
    <|end|>
    <|assistant|>
    Paris.
    <|end|>

Message content cannot forge a marker: a marker in the content is escaped by a space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yocobit.errors import ConfigError, shown

ROLES = ("system", "user", "assistant", "tool")
END_OF_TURN = "<|end|>"
_ESCAPED = {f"<|{name}|>": f"<| {name}|>" for name in (*ROLES, "end")}  # markers in content

STOP_STRINGS = (f"\n{END_OF_TURN}", END_OF_TURN)  # end the assistant's turn


def _templates(markers: Sequence[str]) -> tuple[str, str]:
    """Return the template of packed models and that of checkpoints, which escape `markers`.

    Both are Jinja templates of `messages` and `add_generation_prompt`, as in transformers. The one
    of checkpoints is for transformers, whose tokenizers add no BOS token to a conversation and
    whose trainers compute the loss of the text between generation tags.
    """
    content = "message['content'] | trim" + "".join(
        f" | replace('{marker}', '{_ESCAPED[marker]}')" for marker in markers
    )
    prompt = "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    packed = (
        "{% for message in messages %}"
        f"{{{{ '<|' + message['role'] + '|>\\n' + {content} + '\\n{END_OF_TURN}\\n' }}}}"
        "{% endfor %}" + prompt
    )
    checkpoint = (
        "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' }}"
        "{% if message['role'] == 'assistant' %}"
        f"{{% generation %}}{{{{ {content} + '\\n{END_OF_TURN}' }}}}{{% endgeneration %}}"
        f"{{% else %}}{{{{ {content} + '\\n{END_OF_TURN}' }}}}{{% endif %}}{{{{ '\\n' }}}}"
        "{% endfor %}" + prompt
    )
    return packed, checkpoint


CHAT_TEMPLATE, CHECKPOINT_TEMPLATE = _templates([*_ESCAPED])
# Earlier versions had no role "tool" and did not escape its marker.
_FORMER, _FORMER_OF_CHECKPOINTS = _templates([each for each in _ESCAPED if each != "<|tool|>"])
# The template of a packed model, by that of its checkpoint.
PACKED_TEMPLATES: Mapping[str, str] = {
    CHECKPOINT_TEMPLATE: CHAT_TEMPLATE,
    CHAT_TEMPLATE: CHAT_TEMPLATE,
    _FORMER_OF_CHECKPOINTS: _FORMER,
    _FORMER: _FORMER,
}


def render(messages: Any, source: str) -> list[tuple[str, bool]]:
    """Return the text of a conversation in parts, each with whether it is in the loss.

    The assistant's messages and their end-of-turn markers are in the loss. ConfigError names
    `source` and the invalid message.
    """
    parts = []
    prompt = ""  # not in the loss: the text before the assistant's next message
    for i, message in enumerate(_checked(messages, source)):
        role, content = message["role"], _escape(message["content"].strip())
        prompt += f"<|{role}|>\n"
        if role == "assistant":
            if not content:
                raise ConfigError(f"{source}: messages[{i}] of the assistant must not be empty")
            parts += [(prompt, False), (f"{content}\n{END_OF_TURN}", True)]
            prompt = "\n"
        else:
            prompt += f"{content}\n{END_OF_TURN}\n"
    if not parts:
        raise ConfigError(f"{source}: messages must include an assistant message")
    return [*parts, (prompt, False)]


def _escape(content: str) -> str:
    for marker, escaped in _ESCAPED.items():
        content = content.replace(marker, escaped)
    return content


def _checked(messages: Any, source: str) -> list[dict[str, str]]:
    if not isinstance(messages, list):
        raise ConfigError(f"{source}: messages must be a list but is {shown(messages)}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ConfigError(f"{source}: messages[{i}] must be an object with a string 'content'")
        if message.get("role") not in ROLES:
            raise ConfigError(
                f"{source}: messages[{i}] must have a role of {', '.join(ROLES)} but has "
                f"{shown(message.get('role'))}"
            )
    return messages
