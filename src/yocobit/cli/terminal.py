"""Chat in the terminal: reads a line, streams the reply."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from yocobit.engine import Chat
from yocobit.errors import UserError, printable

_PROMPT = "> "
_EXIT = ("/exit", "/quit", "/bye")
_COMMANDS = """/clear    start a new conversation
/again    regenerate the last reply
/exit     exit; Ctrl-D does the same
Ctrl-C    stop a reply"""
# Control characters except newline and tab: model output must not control the terminal.
_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(0x7F, 0xA0), 0xFFFD),
}


def write(pieces: Iterable[str]) -> None:
    """Stream pieces of text and end the line.

    On a terminal, visible symbols replace control characters.
    """
    is_terminal = sys.stdout.isatty()
    for piece in pieces:
        sys.stdout.write(piece.translate(_PICTURES) if is_terminal else piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def say(line: str) -> None:
    """Write a status line to standard error if it is a terminal."""
    if sys.stderr.isatty():
        print(f"[{printable(line)}]", file=sys.stderr)


def converse(chat: Chat, name: str) -> None:
    """Chat until the input ends; UserError if it is not UTF-8.

    At a terminal, Ctrl-C and user errors return to the prompt; otherwise they end the program.
    """
    say(f"{name}: {chat.engine.config.weights} weights; /help lists the commands")
    if sys.stdin.isatty():
        _converse_at_keyboard(chat)
    else:
        for message in _messages():
            _handle(chat, message)


def _converse_at_keyboard(chat: Chat) -> None:
    import readline  # noqa: F401  # gives input() line editing and history

    is_open = True
    while is_open:
        try:
            is_open = _exchange(chat)
        except KeyboardInterrupt:  # another Ctrl-C, while the first one was handled
            continue


def _exchange(chat: Chat) -> bool:
    """Read a line and answer it; return False at the end of the conversation."""
    line = _read_typed()
    if line is None or line in _EXIT:
        return False
    try:
        if line:
            _handle(chat, line)
    except KeyboardInterrupt:
        print()
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
    return True


def _messages() -> Iterator[str]:
    """Yield non-blank lines up to the end of the input or an exit command."""
    while (line := _read()) is not None and line not in _EXIT:
        if line:
            yield line


def _read_typed() -> str | None:
    """Return the next typed line, or None after Ctrl-D."""
    while True:
        try:
            line = _read(_PROMPT)
        except KeyboardInterrupt:
            print()
            say("Ctrl-D exits")
            continue
        if line is None:
            print()
        return line


def _read(prompt: str = "") -> str | None:
    """Return the next line of the input, or None at its end."""
    try:
        return input(prompt).strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input is not {error.encoding.upper()} (byte {error.start})"
        ) from None


def _handle(chat: Chat, message: str) -> None:
    if message == "/clear":
        chat.clear()
        say("new conversation")
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
        f"{chat.cache_bytes / 1e6:,.1f} MB of cache "
        f"(a Transformer: {chat.transformer_cache_bytes / 1e6:,.1f} MB)"
    )
