"""Reading messages at a terminal: several lines, pasted text, and a history on disk."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from yocobit.cli.output import has_colours
from yocobit.disk import user_directory
from yocobit.errors import ConfigError
from yocobit.system import open_flags

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_PROMPT = "> "


def new_prompt(commands: Sequence[str], history: Path | None) -> PromptSession[str]:
    """Return a prompt with a history; Tab completes commands.

    Enter ends the message; Alt-Enter, or Enter after a backslash, starts a new line in it.
    """
    # Imported here: the import takes longer than the start of a command.
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.output.vt100 import Vt100_Output
    from prompt_toolkit.shortcuts import CompleteStyle

    def size() -> Size:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
        return Size(rows=rows or 24, columns=columns or 80)

    style = "bold ansicyan" if has_colours(sys.stdout) else ""
    return PromptSession(
        FormattedText([(style, _PROMPT)]),
        multiline=True,
        prompt_continuation=" " * len(_PROMPT),
        key_bindings=_key_bindings(),
        history=_history(history),
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        # Without queries of the cursor, which some terminals answer late or never.
        # Consoles of Windows have an output of their own.
        output=None
        if sys.platform == "win32"
        else Vt100_Output(sys.stdout, size, term=os.environ.get("TERM"), enable_cpr=False),
    )


def history_file() -> Path | None:
    """Return the file of typed messages, in the directory for the user's state, if there is one."""
    try:
        folder = user_directory("XDG_STATE_HOME", ".local/state")
    except ConfigError:
        return None
    return folder / "yocobit" / "chat_history"


def _history(path: Path | None) -> History:
    """Return a history on disk, or in memory if the file cannot be written or is not regular."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    is_stored = False
    with suppress(OSError):  # such as a home directory that is read-only
        is_stored = path is not None and _make_private(path)
    return FileHistory(str(path)) if is_stored else InMemoryHistory()


def _make_private(path: Path) -> bool:
    """Create a file, and its directory, that only the user can read; whether it is regular.

    A link to /dev/null, whose mode must stay, turns the history off.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | open_flags("O_CLOEXEC", "O_NONBLOCK")
    descriptor = os.open(path, flags, 0o600)
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
    if is_regular:
        os.chmod(path, 0o600)
    return is_regular


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def end(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\":
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
