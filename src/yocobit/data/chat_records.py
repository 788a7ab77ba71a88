"""Conversations in records: messages of OpenAI's form, ShareGPT's turns, Alpaca's instructions.

A record is recognised by its fields:

    messages        [{"role": "user", "content": "..."}, ...]
    conversations   [{"from": "human", "value": "..."}, ...]; with "system" before them, if present
    instruction, output, and "input" and "system", if present
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yocobit.errors import ConfigError, shown

FIELDS = ("messages", "conversations", "instruction", "input", "output", "system")
KINDS = ("messages", "conversations", "instruction")  # one of them makes a conversation

# Names of roles in files of ShareGPT's form.
_ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "function_call"), "assistant"),
    **dict.fromkeys(("function", "function_response", "observation"), "tool"),
}


def messages_of(record: Mapping[str, Any], source: str) -> Any:
    """Return the messages of a record with a field of KINDS.

    Turns of another form are returned unchanged; conversations.render rejects them.
    """
    if "messages" in record:
        return _messages(record["messages"])
    if "conversations" in record:
        turns = _messages(record["conversations"])
        return _with_system(record, turns) if isinstance(turns, list) else turns
    extra = record.get("input") or ""  # null in some files
    fields = {"instruction": record["instruction"], "output": record.get("output"), "input": extra}
    for name, value in fields.items():
        if not isinstance(value, str):
            raise ConfigError(f"{source}: '{name}' must be a string but is {shown(value)}")
    prompt = fields["instruction"]
    prompt = f"{prompt}\n\n{extra}" if extra else prompt
    turns = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": record["output"]},
    ]
    return _with_system(record, turns)


def _messages(turns: Any) -> Any:
    return [_message(turn) for turn in turns] if isinstance(turns, list) else turns


def _message(turn: Any) -> Any:
    """Return a turn with "from" and "value" as a message."""
    if not isinstance(turn, dict) or "from" not in turn or "role" in turn:
        return turn
    role = turn["from"]
    known = _ROLES.get(role, role) if isinstance(role, str) else role
    return {"role": known, "content": turn.get("value")}


def _with_system(record: Mapping[str, Any], turns: list[Any]) -> list[Any]:
    if not (system := record.get("system")):
        return turns
    return [{"role": "system", "content": system}, *turns]
