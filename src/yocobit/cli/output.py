"""What commands print: JSON on standard output; status, progress and styles on terminals."""

from __future__ import annotations

import enum
import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from yocobit.errors import printable
from yocobit.tracking.bar import Advance, bar

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "cyan": "36"}


class Level(enum.IntEnum):
    """How much a command prints in addition to its result."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


_level = Level.NORMAL  # of the process, set by the command's --quiet and --verbose


def set_level(verbose: bool, quiet: bool) -> None:
    """Set what the process prints in addition to results and errors."""
    global _level
    _level = Level.QUIET if quiet else Level.VERBOSE if verbose else Level.NORMAL


def is_quiet() -> bool:
    """Whether a command prints results and errors only."""
    return _level == Level.QUIET


def say(line: str) -> None:
    """Write a line about progress, such as a download, to standard error."""
    if not is_quiet():
        print(printable(line), file=sys.stderr)


def say_status(line: str) -> None:
    """Write a line in brackets to standard error if it is a terminal."""
    if sys.stderr.isatty() and not is_quiet():
        width = max(20, shutil.get_terminal_size().columns)
        for part in textwrap.wrap(f"[{printable(line)}]", width):
            print(styled(part, "dim", sys.stderr), file=sys.stderr)


def say_details(line: str) -> None:
    """Write a line to standard error if --verbose is given."""
    if _level == Level.VERBOSE:
        print(styled(printable(line), "dim", sys.stderr), file=sys.stderr)


def columns(stream: TextIO) -> int | None:
    """Return the width of a terminal; None for another stream, whose lines are not wrapped."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def styled(text: str, style: str, stream: TextIO) -> str:
    """Return text in a style if the stream is a terminal with colours."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if has_colours(stream) else text


def has_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal with colours; https://no-color.org."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not is_plain


@contextmanager
def progress(label: str) -> Iterator[Advance]:
    """Yield a function that shows progress as a bar on standard error, if it is a terminal."""
    from rich.console import Console

    with bar(label, Console(stderr=True, quiet=is_quiet())) as advance:
        yield advance


def print_json(value: Any, indent: int | None = None) -> None:
    """Print JSON values as one object; null for numbers that JSON lacks."""
    print(json.dumps(_finite(value), indent=indent, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
