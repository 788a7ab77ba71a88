"""User errors, and how a program reports them: one line and an exit code.

The message of an error states subject, rule, actual value and remedy.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TextIO

USER_ERROR, _INTERRUPTED = 2, 130  # exit codes
_MAX_LINE = 2000  # characters of an error
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of disks, quotas and file systems


class UserError(ValueError):
    """An invalid argument or file."""


class ConfigError(UserError):
    """An invalid setting or checkpoint."""


def report_errors(program: Callable[[], Any]) -> NoReturn:
    """Run a program and exit; report an error that the user can fix in one line, no traceback."""
    sys.exit(_run(program))


def _run(program: Callable[[], Any]) -> Any:
    """Run a program; return its exit code."""
    code: Any = 0
    try:
        try:
            program()
        except SystemExit as ended:
            code = ended.code
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:
        pass  # the reader closed the pipe: nothing to report
    except (ValueError, MemoryError, RuntimeError, OSError) as error:
        if not _is_user_error(error):
            raise
        with suppress(OSError):  # stderr may be on a full disk
            print(f"error: {printable(line_of(error))}", file=sys.stderr, flush=True)
        code = USER_ERROR
    for stream in (sys.stdout, sys.stderr):
        _flush_or_drop(stream)
    return code


def printable(text: str, max_length: int = _MAX_LINE) -> str:
    """Return a text from outside as part of one line of a terminal.

    Control, format and surrogate characters are escaped; the middle of a long text is cut out.
    """
    if len(text) > max_length:
        half = (max_length - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def shown(value: object, max_length: int = 300) -> str:
    """Return the repr of a value as part of a line; huge numbers and deep nesting have none."""
    try:
        return printable(repr(value), max_length)
    except (ValueError, RecursionError):
        return f"too large to show ({type(value).__name__})"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on CPUs PyTorch raises no error type of its own."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(text in str(error) for text in ("DefaultCPUAllocator", "std::bad_alloc"))
    )


def _flush_or_drop(stream: TextIO) -> None:
    """Write what is left in a stream; drop it if that fails, as it would at interpreter exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_user_error(error: BaseException) -> bool:
    """Whether the user can fix an error: system errors and the exceptions of this package."""
    return (
        isinstance(error, UserError | OSError)
        or is_out_of_memory(error)
        or type(error).__module__.startswith("yocobit.")
    )


def line_of(error: BaseException) -> str:
    """Return the line that reports an error of the user or the system."""
    if is_out_of_memory(error):
        return (
            "not enough memory; free some, choose a smaller model or, if the command has these "
            "options, lower --max-tokens or --context, or set --cache int4"
        )
    if isinstance(error, OSError) and error.errno in _FULL:
        subject = error.filename or "the output"  # disk.writing adds the filename
        return (
            f"{subject}: cannot be written ({error.strerror}); free disk space and run the command "
            "again"
        )
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
