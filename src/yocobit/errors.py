"""The errors that callers tell apart, and how a program reports them: one line, an exit code.

The text of an error says subject, rule, actual value and remedy.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

USER_ERROR, _INTERRUPTED = 2, 130  # exit codes
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of disks, quotas and file systems


class UserError(ValueError):
    """An argument or a file that cannot work."""


class ConfigError(UserError):
    """A setting, or a checkpoint, that cannot work."""


def report_errors(program: Callable[[], Any]) -> None:
    """Run a program; an error that its user can fix ends it with one line, not a traceback."""
    try:
        try:
            program()
        except SystemExit:
            sys.stdout.flush()  # as Python closes the stream, an error would be a traceback
            raise
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # The reader closed the pipe: print nothing, not even when Python closes the stream.
        _drop_output()
        sys.exit(0)
    except (ValueError, MemoryError, RuntimeError, OSError) as error:
        if not _is_users(error):
            raise
        if isinstance(error, OSError) and error.errno in _FULL:
            _drop_output()  # it may be the full file
        with suppress(OSError):  # standard error may be on the full disk
            print(f"error: {_line(error)}", file=sys.stderr)
        sys.exit(USER_ERROR)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on CPUs PyTorch raises no error type of its own."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(text in str(error) for text in ("DefaultCPUAllocator", "std::bad_alloc"))
    )


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_users(error: BaseException) -> bool:
    """Whether the user can fix an error; other errors keep their traceback."""
    return (
        isinstance(error, UserError | OSError)
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
        what = error.filename or "the output"  # disk.writing names the file
        return f"{what}: cannot be written ({error.strerror}); make room and run the command again"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
