"""The directory of a run: checked before anything is written, and locked while it is trained."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from yocobit.config import ConfigError
from yocobit.disk import claim_directory
from yocobit.errors import printable
from yocobit.packing import checkpoints
from yocobit.packing.checkpoints import is_run
from yocobit.system import NO_LOCKS, lock, open_flags
from yocobit.tracking.manifest import command_line

_MAX_BYTES = 4096  # of the line about its holder
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # systems and file systems without flock


def claim_run(run_dir: Path, resume: bool) -> None:
    """Raise ConfigError unless a run may be written to `run_dir`; writes nothing.

    With `resume`, an empty directory is accepted: torchrun restarts its processes with the same
    command, which therefore has --resume at the first start, too.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: must be a directory but is a file; choose another --out")
    for path in (run_dir / "data", run_dir / checkpoints.DIRECTORY):
        if (path.exists() or path.is_symlink()) and not path.is_dir():
            raise ConfigError(f"{path}: must be a directory; delete it, or choose another --out")
    if not resume:
        return claim_directory(
            run_dir, is_run, "must be new, empty or a run", "choose another --out"
        )
    if not run_dir.exists() and not run_dir.is_symlink():
        raise ConfigError(
            f"{run_dir}: no such run to resume; correct --out, or omit --resume to start one"
        )
    claim_directory(
        run_dir,
        is_run,
        "has no run to resume",
        "correct --out, or omit --resume and choose a new directory to start one",
    )


@contextmanager
def locked(run_dir: Path) -> Iterator[str | None]:
    """Hold the lock of a run; ConfigError names the process that holds it already.

    Creates the directory, and deletes it again if nothing was written to it. The system releases
    the lock when the process ends in any way. Yields a warning if the file system has no locks.
    """
    created = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / checkpoints.LOCK
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: must be a regular file; delete it, or choose another --out")
    descriptor, warning = _lock(path)
    try:
        yield warning
    finally:
        with suppress(OSError):
            if os.listdir(run_dir) == [checkpoints.LOCK]:
                path.unlink()
                for directory in created:
                    directory.rmdir()
        os.close(descriptor)


def _lock(path: Path) -> tuple[int, str | None]:
    """Return the descriptor of the locked file, with this process as its holder, and a warning."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | open_flags("O_CLOEXEC", "O_NOFOLLOW")
        descriptor = os.open(path, flags, 0o644)
        warning = None
        try:
            lock(descriptor, wait=False)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                holder = printable(os.read(descriptor, _MAX_BYTES).decode(errors="replace"))
                os.close(descriptor)
                if not isinstance(error, BlockingIOError):
                    raise OSError(error.errno, error.strerror, str(path)) from None
                raise ConfigError(
                    f"{path.parent}: is being trained by {holder or 'another process'}; stop it, "
                    "wait for it, or choose another --out"
                ) from None
            warning = (
                f"warning: {path}: {_no_locks(error)}: do not start a second training in this "
                "directory"
            )
        if _is_at(path, descriptor):
            break
        os.close(descriptor)  # its holder has deleted it
    os.ftruncate(descriptor, 0)
    os.write(descriptor, _holder().encode(errors="replace")[:_MAX_BYTES])
    return descriptor, warning


def _no_locks(error: OSError) -> str:
    return (
        NO_LOCKS
        if error.strerror == NO_LOCKS
        else f"this file system has no locks ({error.strerror})"
    )


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder() -> str:
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}: {command_line()}"
