"""The processes behind WorkerPool: one that forks workers on command, and its workers.

The forking process has no threads. Messages on a worker's connection are pickles after their size.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import struct
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from yocobit.errors import UserError
from yocobit.hardware.host import peak_bytes
from yocobit.serving.errors import APIError
from yocobit.system import c_function

try:
    import resource
except ImportError:  # Windows, where no worker starts
    resource = None  # type: ignore[assignment]

SIZE = struct.Struct("<q")  # of a message; on the control socket, a pid or a niceness
_MAX_GROWTH = 1 << 26  # bytes of memory, above which a worker is replaced after its job
_PR_SET_PDEATHSIG = 1


class Failure:
    """An exception that is a bug."""

    def __init__(self, traceback: str) -> None:
        self.traceback = traceback


def serve_forks(descriptor: int) -> None:
    """Make the context, then fork and kill workers on command until the server ends."""
    for each in (signal.SIGINT, signal.SIGTERM):  # sent to the process group: the server drains
        signal.signal(each, signal.SIG_IGN)
    control = socket.socket(fileno=descriptor)
    make_context, cpu_s, memory_bytes = pickle.loads(_receive(control) or b"")
    try:
        context = make_context()
        problem = None
    except (UserError, OSError, MemoryError) as error:
        problem = str(error) or type(error).__name__
    try:
        _send(control, pickle.dumps(problem))
    except OSError:  # the server has ended, with an error of its own
        return
    if problem is not None:
        return
    gc.collect()
    gc.freeze()  # otherwise a collection in a worker would copy all pages
    workers: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, SIZE.size, 1)
        workers -= _ended()
        if len(message) < SIZE.size:
            break
        (code,) = SIZE.unpack(message)
        if descriptors:
            if (pid := os.fork()) == 0:
                control.close()
                _work(socket.socket(fileno=descriptors[0]), context, code, cpu_s, memory_bytes)
            workers.add(pid)
            os.close(descriptors[0])
        elif code in workers:
            os.kill(code, signal.SIGKILL)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)


def _ended() -> set[int]:
    """Return the workers that ended since the last call."""
    found = set()
    with suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            found.add(pid)
    return found


def _work(
    connection: socket.socket, context: Any, niceness: int, cpu_s: float, memory_bytes: int
) -> None:
    """Run jobs until the connection is closed."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries would print texts of clients
        os.nice(niceness)
        if (prctl := c_function("prctl")) is not None:  # Linux
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # also if the forking process is killed
        _limit_memory(memory_bytes)
        connection.sendall(SIZE.pack(os.getpid()))
        size_at_start = peak_bytes()
        while (frame := _receive(connection)) is not None:
            signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF ends the process
            result = _result(context, frame)
            signal.setitimer(signal.ITIMER_PROF, 0)
            is_last = peak_bytes() - size_at_start > _MAX_GROWTH
            _send(connection, pickle.dumps((result, is_last)))
    finally:
        os._exit(0)


def _result(context: Any, frame: bytes) -> Any:
    try:
        job, arguments = pickle.loads(frame)
        return job(context, *arguments)
    except APIError as error:
        return error
    except MemoryError:
        os._exit(1)
    except BaseException:  # a bug, or a Rust panic
        return Failure(traceback.format_exc())


def _limit_memory(n_bytes: int) -> None:
    """Let the process allocate `n_bytes` more; a system that cannot limit it is left alone."""
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + n_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _receive(connection: socket.socket) -> bytes | None:
    """Return the next message; None at the end of the connection."""
    head = _read_exactly(connection, SIZE.size)
    return None if head is None else _read_exactly(connection, SIZE.unpack(head)[0])


def _read_exactly(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view = memoryview(data)
    n = 0
    while n < size:
        n_read = connection.recv_into(view[n:])
        if n_read == 0:
            return None
        n += n_read
    return bytes(data)


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(SIZE.pack(len(message)))
    connection.sendall(message)
