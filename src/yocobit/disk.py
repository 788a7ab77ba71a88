"""Writing files: no file of a user is replaced, and every write is atomic.

After a power failure a file is complete or unchanged.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yocobit.errors import ConfigError
from yocobit.reading import open_regular
from yocobit.system import CAN_OPEN_DIRECTORIES

_BLOCK_BYTES = 1 << 20
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAX_OWN_BYTES = 1 << 26  # of a file that may be replaced; plots are smaller


class WriteError(RuntimeError):
    """A failed write of a run, for example on a full disk; `kept` says which files are intact."""

    def __init__(self, path: Path, error: Exception, kept: str) -> None:
        reason = error.strerror if isinstance(error, OSError) else error
        is_full = getattr(error, "errno", errno.ENOSPC) in DISK_IS_FULL
        remedy = "free disk space" if is_full else "correct that"
        super().__init__(
            f"{path}: cannot be written ({reason}); {kept}; {remedy} and continue with --resume"
        )


def claim_directory(
    path: Path,
    is_own: Callable[[Path], bool] | None = None,
    rule: str = "must not exist or be an empty directory",
    remedy: str = "choose another name",
) -> None:
    """Raise ConfigError unless an output can be written to the directory `path`.

    It may be new or empty. One with files must be an earlier output of the same command, which
    `is_own` decides. Writes nothing.
    """
    if not _exists(path, "directory", remedy):
        return
    if not path.is_dir():
        raise ConfigError(f"{path}: {rule} but is a file; {remedy}")
    names = sorted(os.listdir(path))
    if names and not (is_own is not None and is_own(path)):
        raise ConfigError(f"{path}: {rule} but has {names[0]}; {remedy}")


def claim_file(path: Path, is_own: Callable[[bytes], bool], kind: str) -> None:
    """Raise ConfigError unless the file `path` is new, empty, or an earlier output.

    `is_own` decides by the content; `kind` describes such an output.
    """
    if not _exists(path, "file", "choose another name"):
        return
    if not path.is_file():
        raise ConfigError(f"{path}: must be a regular file; choose another name")
    with path.open("rb") as stream:
        content = stream.read(_MAX_OWN_BYTES)
    if content and not is_own(content):
        raise ConfigError(f"{path}: exists and is not {kind}; choose another name, or delete it")


def _exists(path: Path, kind: str, remedy: str) -> bool:
    """Whether an output path exists; ConfigError for a dangling link."""
    if path.exists():
        return True
    if path.is_symlink():
        raise ConfigError(f"{path}: is a symbolic link to a missing {kind}; {remedy}")
    return False


def user_directory(variable: str, default: str) -> Path:
    """Return the directory that an XDG variable names, or `default` in the user's home.

    ConfigError without a home directory, such as that of a number that no user has.
    """
    base = os.environ.get(variable, "")
    if os.path.isabs(base):
        return Path(base)
    home = os.path.expanduser("~")
    if home == "~":
        raise ConfigError(
            f"HOME must be set, as this user has no home directory; set it or {variable}"
        )
    return Path(home, default)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file, read in pieces."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    with open_regular(path) as stream:
        while n := stream.readinto(buffer):
            digest.update(buffer[:n])
    return digest.hexdigest()


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
    final = Path(os.path.realpath(path))  # resolve() raises RuntimeError for a loop of links
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
    if path.is_dir() and not CAN_OPEN_DIRECTORIES:
        return
    # Windows flushes only files that are open for writing.
    descriptor = os.open(path, os.O_RDONLY if CAN_OPEN_DIRECTORIES else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an indented JSON object of finite numbers; not atomic."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
