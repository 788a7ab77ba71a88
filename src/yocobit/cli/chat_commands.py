"""The commands of a chat in the terminal: /clear, /again, /system, /set, /save, /load, /stats."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from yocobit.cli.options import expand_tokens
from yocobit.cli.output import say_status
from yocobit.engine import Chat
from yocobit.engine.session import MAX_TOKENS
from yocobit.errors import ConfigError, UserError
from yocobit.reading import parse_json
from yocobit.settings import whole_number

_MAX_TOKENS = "max_tokens"  # the setting that no SamplingConfig has


class Command(NamedTuple):
    """A command, and what it does with the text after its name.

    `run` returns the message to answer, or None.
    """

    usage: str
    meaning: str
    run: Callable[[Chat, str], str | None]


def run_command(chat: Chat, line: str) -> str | None:
    """Run a command; return the message to answer, or None."""
    name, _, text = line.partition(" ")
    if name in COMMANDS:
        return COMMANDS[name].run(chat, text.strip())
    if close := difflib.get_close_matches(name, COMMANDS, n=1):
        say_status(f"no such command; did you mean {close[0]}?")
    _help(chat, "")
    return None


def _help(chat: Chat, text: str) -> None:
    for name, command in COMMANDS.items():
        print(f"{name} {command.usage}".ljust(24), command.meaning)
    print("/exit".ljust(24), "exit; Ctrl-D does the same")
    print("Alt-Enter".ljust(24), "start a new line; so does Enter after a backslash")
    print("Ctrl-C".ljust(24), "stop a reply")


def _clear(chat: Chat, text: str) -> None:
    chat.clear()
    say_status("new conversation")


def _again(chat: Chat, text: str) -> str:
    return chat.withdraw()


def _system(chat: Chat, text: str) -> None:
    if text:
        chat.system = None if text == "-" else text
    print(f"system message: {chat.system}" if chat.system else "no system message")


def _set(chat: Chat, text: str) -> None:
    words = text.replace("=", " ").split()
    if len(words) % 2:
        raise UserError(f"/set needs names and values but has {text!r}; try /set temperature=0.7")
    given: dict[str, Any] = {
        name: _value(value) for name, value in zip(words[::2], words[1::2], strict=True)
    }
    settings = {**dataclasses.asdict(chat.sampling), _MAX_TOKENS: chat.max_tokens, **given}
    most = whole_number(_MAX_TOKENS, settings.pop(_MAX_TOKENS), 1, MAX_TOKENS)
    chat.sampling = type(chat.sampling).from_dict(settings, "/set")
    chat.max_tokens = most
    for name, value in {**dataclasses.asdict(chat.sampling), _MAX_TOKENS: most}.items():
        if not given or name in given:
            print(f"{name:20} {value}")


def _value(text: str) -> Any:
    try:
        return parse_json(expand_tokens(text), "/set", Any)
    except ConfigError:
        return text


def _save(chat: Chat, text: str) -> None:
    chat.save(_file("/save", text))
    say_status(f"{len(chat.messages)} messages saved")


def _load(chat: Chat, text: str) -> None:
    chat.load(_file("/load", text))
    say_status(f"{len(chat.messages)} messages loaded; the next message continues them")


def _file(command: str, text: str) -> Path:
    if not text or "\0" in text:
        raise UserError(f"{command} needs a file, such as {command} chat.json")
    return Path(os.path.expanduser(text))  # a name of no user stays as it is


def _stats(chat: Chat, text: str) -> None:
    print(f"messages        {len(chat.messages)}")
    print(f"context         {chat.n_tokens:,} of {chat.context:,} tokens")
    print(
        f"cache           {chat.used_cache_bytes / 1e6:,.1f} MB used, "
        f"{chat.cache_bytes / 1e6:,.1f} MB reserved (a Transformer: "
        f"{chat.transformer_cache_bytes / 1e6:,.1f} MB used)"
    )
    if (reply := chat.last_reply) is not None:
        print(f"prompt          {len(reply.prompt):,} tokens, {reply.prefill_tokens_per_s:,.0f}/s")
        print(f"reply           {len(reply.tokens):,} tokens, {reply.decode_tokens_per_s:,.0f}/s")
    print(f"threads         {chat.engine.threads}, {chat.engine.kernels} kernels")


COMMANDS = {
    "/clear": Command("", "start a new conversation", _clear),
    "/again": Command("", "regenerate the last reply", _again),
    "/system": Command("[TEXT]", "show or change the system message; - removes it", _system),
    "/set": Command("[NAME=VALUE]", "show or change temperature, seed, max_tokens, ...", _set),
    "/save": Command("FILE", "write the conversation to a JSON file", _save),
    "/load": Command("FILE", "continue the conversation of a file", _load),
    "/stats": Command("", "show tokens, cache and speed", _stats),
    "/help": Command("", "show this list", _help),
}
