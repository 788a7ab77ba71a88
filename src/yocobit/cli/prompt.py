"""Reading messages at a terminal: several lines, pasted text, and a history on disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yocobit.cli.output import has_colours
from yocobit.system import open_flags

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_PROMPT = "> "


def new_prompt(commands: Sequence[str], history: Path) -> PromptSession[str]:
    """Return a prompt with a history; Tab completes commands.

    Enter ends the message; Alt-Enter, or Enter after a backslash, starts a new line in it.
    """
    # Imported here: the import takes longer than the start of a command.
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.output.vt100 import Vt100_Output
    from prompt_toolkit.shortcuts import CompleteStyle

    def size() -> Size:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
        return Size(rows=rows or 24, columns=columns or 80)

    _make_private(history)
    style = "bold ansicyan" if has_colours(sys.stdout) else ""
    return PromptSession(
        FormattedText([(style, _PROMPT)]),
        multiline=True,
        prompt_continuation=" " * len(_PROMPT),
        key_bindings=_key_bindings(),
        history=FileHistory(str(history)),
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        # Without queries of the cursor, which some terminals answer late or never.
        # Consoles of Windows have an output of their own.
        output=None
        if sys.platform == "win32"
        else Vt100_Output(sys.stdout, size, term=os.environ.get("TERM"), enable_cpr=False),
    )


def history_file() -> Path:
    """Return the file of typed messages, in the directory for the user's state."""
    base = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path("~/.local/state").expanduser()
    return folder / "yocobit" / "chat_history"


def _make_private(path: Path) -> None:
    """Create a file, and its directory, that only the user can read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | open_flags("O_CLOEXEC")
    os.close(os.open(path, flags, 0o600))
    os.chmod(path, 0o600)


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
