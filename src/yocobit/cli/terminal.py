"""Chat in the terminal: reads messages, streams the replies."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator

from yocobit.cli import output
from yocobit.cli.chat_commands import COMMANDS, run_command
from yocobit.cli.details import say_generation
from yocobit.cli.markdown import MarkdownWriter
from yocobit.cli.prompt import history_file, new_prompt
from yocobit.costs import rounded, summarize
from yocobit.engine import Chat
from yocobit.errors import UserError, line_of, printable
from yocobit.pretrained import ABOUT_TINY, PROMPTS_OF_TINY, TINY

_EXIT = ("/exit", "/quit", "/bye")
_BETTER = (
    "For a better model, run: yocobit chat microsoft/bitnet-b1.58-2B-4T (1.2 GB). Others are in "
    "yocobit pull --help."
)
_MIN_WIDTH = 20  # columns
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


def write_markdown(pieces: Iterable[str]) -> None:
    """Stream Markdown to a terminal, wrapped at words; control characters become symbols."""
    writer = MarkdownWriter(sys.stdout, _width(), output.has_colours(sys.stdout))
    try:
        for piece in pieces:
            writer.write(piece.translate(_PICTURES))
    finally:
        writer.finish()


def _width() -> int:
    return max(_MIN_WIDTH, shutil.get_terminal_size().columns)


def converse(chat: Chat, name: str) -> None:
    """Chat until the input ends; UserError if it is not UTF-8.

    At a terminal, Ctrl-C and user errors return to the prompt; otherwise they end the program.
    """
    if sys.stderr.isatty() and not output.is_quiet():
        for line in _greeting(chat, name):
            print(textwrap.fill(line, _width()), file=sys.stderr)
    if sys.stdin.isatty() and sys.stdout.isatty():
        _converse_at_keyboard(chat)
    else:
        for message in _messages():
            _handle(chat, message, write)


def _greeting(chat: Chat, name: str) -> Iterator[str]:
    """Yield lines about the model, and how to use the chat."""
    model = chat.engine.model
    size_mb = model.file.stat().st_size / 1e6
    title = output.styled(printable(name), "bold", sys.stderr)
    n_parameters = rounded(summarize(model).parameters)
    yield f"{title}: {n_parameters} parameters, {model.config.weights} weights, {size_mb:,.1f} MB"
    if model.path.resolve() == TINY.resolve():
        yield ABOUT_TINY
        yield from (f"Try: {prompt}" for prompt in PROMPTS_OF_TINY)
        yield _BETTER
    yield "/help lists the commands, Alt-Enter starts a new line, Ctrl-D exits."


def _converse_at_keyboard(chat: Chat) -> None:
    prompt = new_prompt([*COMMANDS, *_EXIT], history_file()).prompt
    is_open = True
    while is_open:
        try:
            is_open = _exchange(chat, prompt)
        except KeyboardInterrupt:  # another Ctrl-C, while the first one was handled
            continue


def _exchange(chat: Chat, prompt: Callable[[], str]) -> bool:
    """Read a message and answer it; return False at the end of the conversation."""
    message = _read_typed(prompt)
    if message is None or message in _EXIT:
        return False
    try:
        if message:
            _handle(chat, message, write_markdown)
    except KeyboardInterrupt:
        print()
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:  # the terminal's own
            raise
        label = output.styled("error:", "red", sys.stderr)
        print(f"{label} {printable(line_of(error))}", file=sys.stderr)
    return True


def _read_typed(prompt: Callable[[], str]) -> str | None:
    """Return the next typed message, or None after Ctrl-D."""
    while True:
        try:
            return prompt().strip()
        except KeyboardInterrupt:
            output.say_status("Ctrl-D exits")
        except EOFError:
            return None


def _messages() -> Iterator[str]:
    """Yield non-blank lines up to the end of the input or an exit command."""
    while (line := _read_line()) is not None and line not in _EXIT:
        if line:
            yield line


def _read_line() -> str | None:
    """Return the next line of the input, or None at its end."""
    try:
        return input().strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input is not {error.encoding.upper()} (byte {error.start})"
        ) from None


def _handle(chat: Chat, message: str, show: Callable[[Iterable[str]], None]) -> None:
    """Run a command, or answer a message."""
    again = run_command(chat, message) if message.startswith("/") else message
    if again is None:
        return
    reply = chat.reply(again)
    show(reply)
    say_generation(reply)
    is_cut = reply.finish_reason == "length"
    output.say_status(
        f"first token after {reply.prefill_s * 1000:,.0f} ms, {len(reply.tokens)} tokens at "
        f"{reply.decode_tokens_per_s:,.0f}/s{' (the limit of a reply)' if is_cut else ''}, "
        f"context {chat.n_tokens:,} of {chat.context:,}, cache {chat.used_cache_bytes / 1e6:,.1f} "
        f"MB (a Transformer: {chat.transformer_cache_bytes / 1e6:,.1f} MB)"
    )
