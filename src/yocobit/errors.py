"""Errors of a program as its user sees them: one line on standard error, and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from yocobit.config import ConfigError

USER_ERROR, _INTERRUPTED = 2, 130  # exit codes
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of disks, quotas and file systems


class UserError(ValueError):
    """An argument that cannot work."""


def report_errors(program: Callable[[], Any]) -> None:
    """Run a program; what its user can mend ends it with one line, not with a traceback."""
    try:
        try:
            program()
        except SystemExit:
            sys.stdout.flush()  # as Python closes the stream, an error would be a traceback
            raise
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # The reader went away: say nothing more, not even when Python closes the stream.
        _drop_output()
        sys.exit(0)
    except (ValueError, MemoryError, RuntimeError, OSError) as error:
        if not _is_users(error):
            raise
        if isinstance(error, OSError) and error.errno in _FULL:
            _drop_output()  # it may be what cannot be written
        with suppress(OSError):  # where it goes to the same disk
            print(f"error: {_line(error)}", file=sys.stderr)
        sys.exit(USER_ERROR)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory: on a CPU, PyTorch has no type of error for it."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(text in str(error) for text in ("DefaultCPUAllocator", "std::bad_alloc"))
    )


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_users(error: BaseException) -> bool:
    """Whether an error says what a user can do; others are ours and keep their traceback."""
    return (
        isinstance(error, UserError | ConfigError | OSError)
        or is_out_of_memory(error)
        or type(error).__module__.startswith("yocobit.")
    )


def _line(error: BaseException) -> str:
    if is_out_of_memory(error):
        return (
            "not enough memory; free some, choose a smaller model, or, where the command has them, "
            "a lower --max-tokens or --context, or --cache int4"
        )
    if isinstance(error, OSError) and error.errno in _FULL:
        what = error.filename or "the output"  # a file has its name from disk.writing
        return f"{what}: cannot be written ({error.strerror}); make room and run the command again"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
