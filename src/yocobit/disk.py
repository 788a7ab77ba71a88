"""Atomic file writes: after a power failure the file is complete or unchanged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class WriteError(RuntimeError):
    """A failed write of a run, for example on a full disk; `kept` says which files are intact."""

    def __init__(self, path: Path, error: Exception, kept: str) -> None:
        reason = error.strerror if isinstance(error, OSError) else error
        super().__init__(
            f"{path}: cannot be written ({reason}); {kept}; "
            "free disk space and continue with --resume"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Add `path` to operating system errors, as those of write() do not name the file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` on success, is deleted otherwise."""
    final = path.resolve()
    partial = final.with_name(f".{final.stem}.partial-{os.getpid()}{final.suffix}")
    try:
        with writing(path):
            yield partial
            flush(partial)
            os.replace(partial, final)
            flush(final.parent)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an indented JSON object; not atomic."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
