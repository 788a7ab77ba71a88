"""A conversation in the terminal: a line in, an answer out as it comes."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from yocobit.engine import Chat
from yocobit.errors import UserError

_PROMPT = "> "
_COMMANDS = """/clear    forget the conversation
/again    answer the last message once more
/exit     leave; so does Ctrl-D
Ctrl-C    stop an answer"""


def write(pieces: Iterable[str]) -> None:
    """Write pieces of a text as they come, and end the line."""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def say(line: str) -> None:
    """Write a line about the text, for eyes only: nothing if nobody looks."""
    if sys.stderr.isatty():
        print(f"[{line}]", file=sys.stderr)


def converse(chat: Chat, name: str) -> None:
    """Talk until the input ends; UserError if it is not text."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  # gives input() its editing and history

    say(f"{name}: {chat.engine.config.weights} weights; /help says what else can be typed")
    while (message := _next_message()) is not None:
        if message in ("/exit", "/quit", "/bye"):
            return
        try:
            _obey(chat, message)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print()
        except UserError as error:
            if not sys.stdin.isatty():
                raise
            print(f"error: {error}", file=sys.stderr)


def _next_message() -> str | None:
    """Return the next line that is not blank, or None at the end."""
    while True:
        try:
            line = input(_PROMPT if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                print()
            return None
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print()
            say("Ctrl-D leaves")
            continue
        except UnicodeDecodeError as error:
            raise UserError(f"standard input is not UTF-8 (byte {error.start})") from None
        if line.strip():
            return line.strip()


def _obey(chat: Chat, message: str) -> None:
    if message == "/clear":
        chat.clear()
        say("forgotten")
    elif message == "/again":
        _answer(chat, chat.withdraw())
    elif message.startswith("/"):
        print(_COMMANDS)
    else:
        _answer(chat, message)


def _answer(chat: Chat, message: str) -> None:
    reply = chat.reply(message)
    write(reply)
    say(
        f"first token after {reply.prefill_s * 1000:,.0f} ms, {len(reply.tokens)} tokens at "
        f"{reply.decode_tokens_per_s:,.0f}/s, {chat.n_tokens} of {chat.context} tokens, "
        f"{chat.cache_bytes / 1e6:,.1f} MB of cache"
    )
