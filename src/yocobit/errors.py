"""Errors of a program as its user sees them: one line on standard error, and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from yocobit.config import ConfigError

USER_ERROR, _INTERRUPTED = 2, 130  # exit codes


class UserError(ValueError):
    """An argument that cannot work."""


def report_errors(program: Callable[[], Any]) -> None:
    """Run a program; what its user can mend ends it with one line, not with a traceback."""
    try:
        program()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # The reader went away: say nothing more, not even when Python closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (ValueError, MemoryError, RuntimeError, OSError) as error:
        if not _is_users(error):
            raise
        print(f"error: {_line(error)}", file=sys.stderr)
        sys.exit(USER_ERROR)


def _is_users(error: BaseException) -> bool:
    """Whether an error says what a user can do; others are ours and keep their traceback."""
    return isinstance(error, UserError | ConfigError | MemoryError | OSError) or (
        type(error).__module__.startswith("yocobit.")
    )


def _line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory; lower --max-tokens or choose --cache int4"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
