"""A progress bar on a terminal, for work whose size is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int, int], object]  # receives the units done, and all units

_DELAY_S = 0.5  # shorter work shows no bar
_INTERVAL_S = 0.1  # between two refreshes


@contextmanager
def bar(label: str, console: Console) -> Iterator[Advance]:
    """Yield a function that shows progress on a console, if it is a terminal.

    The bar appears only for long work, and disappears at its end.
    """
    if console.quiet or not console.is_terminal:
        yield lambda done, total: None
        return
    shown = _Bar(label, console)
    try:
        yield shown.advance
    finally:
        shown.close()


@contextmanager
def quiet_on_error(console: Console) -> Iterator[None]:
    """Silence a console after an error of its pipe, terminal or disk."""
    try:
        yield
    except (OSError, ValueError, LookupError, SystemExit):
        # ValueError is a closed file; rich turns a broken pipe into SystemExit.
        console.quiet = True


class _Bar:
    def __init__(self, label: str, console: Console) -> None:
        self._label, self._console = label, console
        self._next_s = time.monotonic() + _DELAY_S
        self._shown: Any = None

    def advance(self, done: int, total: int) -> None:
        if (now := time.monotonic()) < self._next_s:
            return
        self._next_s = now + _INTERVAL_S
        with quiet_on_error(self._console):
            if self._shown is None:
                self._shown = _new_bar(self._label, self._console)
            self._shown.update(self._shown.task_ids[0], completed=done, total=total, refresh=True)

    def close(self) -> None:
        if self._shown is not None:
            with quiet_on_error(self._console):
                self._shown.stop()


def _new_bar(label: str, console: Console) -> Any:
    # Imported here: most commands show no bar.
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    shown = Progress(
        "{task.description}",
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        auto_refresh=False,  # a refresh thread's errors could not be caught
    )
    shown.add_task(label, total=None)
    shown.start()
    return shown
