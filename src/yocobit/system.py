"""What operating systems lack: flags of open(), file locks, functions of the C library.

Linux has all of it, macOS most; Windows has no flock() and no fork().
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = "this system has no flock()"
CAN_OPEN_DIRECTORIES = hasattr(os, "O_DIRECTORY")  # to lock or flush them; Windows cannot


def open_flags(*names: str) -> int:
    """Return those of the flags of os.open() that this system has, such as "O_CLOEXEC".

    Always with O_BINARY: without it, Windows translates the ends of lines.
    """
    flags = 0
    for name in (*names, "O_BINARY"):
        flags |= getattr(os, name, 0)
    return flags


def lock(descriptor: int, *, wait: bool) -> None:
    """Lock a file until its descriptor is closed or the process ends.

    BlockingIOError if another process holds the lock and `wait` is false; OSError with errno ENOSYS
    on a system without such locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOSYS, NO_LOCKS)
    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def can_fork() -> bool:
    """Return whether processes can fork and pass sockets to each other."""
    return hasattr(os, "fork") and hasattr(os, "WNOHANG")


def c_function(name: str) -> Any | None:
    """Return a function of the C library, None if it has none of that name."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # TypeError: Windows has no handle of the whole process
        return None
