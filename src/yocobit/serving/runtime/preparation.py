"""Worker processes that prepare requests: they can be killed, and their memory is bounded.

A server process of its own, without threads, loads the tokenizer, the chat template and the
vocabulary of grammars once, and forks a worker when one is needed. A worker runs one job after
another until one exceeds a limit or its client disconnects; then it is killed, and the next job
gets a new one within milliseconds. No process outlives the server: its end closes the sockets.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from yocobit.errors import UserError
from yocobit.hardware.host import peak_bytes
from yocobit.serving import limits
from yocobit.serving.errors import APIError, queue_full, shutting_down, too_costly
from yocobit.system import c_function, can_fork

try:
    import resource
except ImportError:  # Windows, where no worker starts
    resource = None  # type: ignore[assignment]

_NICENESS = 10  # of workers for heavy jobs: the scheduler precedes them
_MAX_GROWTH = 1 << 26  # bytes of memory, above which a worker is replaced after its job
_STOP_S = 0.3
_PART_BYTES = 1 << 18  # of a message, in the writer's buffer at a time
_PR_SET_PDEATHSIG = 1
_SIZE = struct.Struct("<q")  # of a message; on the control socket, a pid or a niceness

Job = Callable[..., Any]  # called with the context and the arguments of `run`


def check_can_fork() -> None:
    """Raise UserError on a system where no worker can be started."""
    if not can_fork():
        raise UserError(
            "serving: needs a system that can fork processes, such as Linux or macOS, but this is "
            f"{sys.platform}; on Windows, serve in WSL"
        )


class WorkerPool:
    """One worker for light jobs, and one at a low priority for heavy jobs."""

    def __init__(
        self,
        make_context: Callable[[], Any],
        *,
        cpu_s: float = limits.PREPARATION_CPU_S,
        wall_s: float = limits.PREPARATION_S,
        memory_bytes: int = limits.PREPARATION_BYTES,
    ) -> None:
        """`make_context` is called in the forking process; its result is each job's first argument.

        It and the jobs must be picklable. The limits are those of one job.
        """
        self._setup = pickle.dumps((make_context, cpu_s, memory_bytes))
        self._wall_s = wall_s
        self._lanes = (_Lane(0), _Lane(_NICENESS))
        self._forks: subprocess.Popen[bytes] | None = None  # the forking process
        self._control: socket.socket | None = None
        self._forking = asyncio.Lock()
        self._is_stopped = False

    async def start(self) -> None:
        """Start the forking process; UserError if the system cannot fork, or no context is made."""
        check_can_fork()
        self._end_forks()
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        try:
            self._forks = _spawn(theirs)
        finally:
            theirs.close()
        loop = asyncio.get_running_loop()
        reply = b""
        with suppress(OSError):
            await loop.sock_sendall(self._control, _SIZE.pack(len(self._setup)) + self._setup)
            while more := await loop.sock_recv(self._control, 1 << 16):
                reply += more
                if len(reply) >= _SIZE.size + _SIZE.unpack_from(reply)[0]:
                    break
        if not reply:
            raise UserError("the process that prepares requests ended; see its output")
        problem = pickle.loads(reply[_SIZE.size :])
        if problem is not None:
            raise UserError(problem)

    async def run(self, job: Job, *arguments: Any, client: str = "", is_heavy: bool = False) -> Any:
        """Return the result of a job in a worker, or raise its error.

        APIError 400 if it exceeds a limit, 429 if too many heavy jobs of the client are waiting. A
        job that is cancelled is killed.
        """
        lane = self._lanes[is_heavy]
        if is_heavy and (n_waiting := lane.n_waiting(client)) >= limits.HEAVY_WAITING:
            raise queue_full(n_waiting)
        async with lane.turn(client):
            return await self._run(lane, pickle.dumps((job, arguments)))

    def begin_stop(self) -> None:
        """Have all processes end; jobs fail with 503."""
        self._is_stopped = True
        if self._control is not None:
            self._control.close()

    def stop(self) -> None:
        """End all processes; jobs fail with 503."""
        self.begin_stop()
        self._end_forks()

    def _end_forks(self) -> None:
        """End the forking process, if there is one, which ends its workers."""
        if self._control is not None:
            self._control.close()
        if self._forks is not None:
            try:
                self._forks.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._forks.kill()
                self._forks.wait()

    async def _run(self, lane: _Lane, frame: bytes) -> Any:
        worker, lane.idle = lane.idle, None
        if worker is None or worker.is_gone:
            worker = await self._fork(lane)
        try:
            reply = await asyncio.wait_for(worker.exchange(frame), self._wall_s)
            result, is_last = pickle.loads(reply)
            if not is_last:
                lane.idle = worker
        except (OSError, EOFError, TimeoutError, asyncio.TimeoutError):
            raise (shutting_down() if self._is_stopped else too_costly()) from None
        finally:
            if lane.idle is not worker:
                worker.writer.transport.abort()
                self._command(worker.pid)
        if isinstance(result, APIError):
            raise result
        if isinstance(result, _Failure):
            raise RuntimeError(f"in a worker process:\n{result.traceback}")
        return result

    async def _fork(self, lane: _Lane) -> _Worker:
        """Return a new worker; start the forking process again if it was killed."""
        async with self._forking:
            for _ in range(2):
                if self._is_stopped:
                    raise shutting_down()
                ours, theirs = socket.socketpair()
                self._command(lane.niceness, theirs)
                theirs.close()
                reader, writer = await asyncio.open_connection(sock=ours)
                try:
                    (pid,) = _SIZE.unpack(await reader.readexactly(_SIZE.size))
                    return _Worker(pid, reader, writer)
                except (OSError, EOFError):
                    writer.close()
                    await self.start()
                except BaseException:
                    writer.close()
                    raise
        raise RuntimeError("the process that prepares requests cannot fork")

    def _command(self, code: int, connection: socket.socket | None = None) -> None:
        """Have a worker of that niceness forked for a connection, or that of a pid killed."""
        assert self._control is not None
        with suppress(OSError):  # the forking process was killed
            if connection is None:
                self._control.send(_SIZE.pack(code))
            else:
                socket.send_fds(self._control, [_SIZE.pack(code)], [connection.fileno()])


class _Lane:
    """The place of one worker, and the jobs that wait for it."""

    def __init__(self, niceness: int) -> None:
        self.niceness = niceness
        self.idle: _Worker | None = None
        self._is_taken = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by client, round-robin

    def n_waiting(self, client: str) -> int:
        return len(self._waiting.get(client, ()))

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait for the place: clients take turns, whatever the number of their jobs."""
        if self._is_taken:
            await self._wait(client)
        self._is_taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, client: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # passed on, and cancelled since
                self._pass_on()
            elif turn in (waiting := self._waiting.get(client, deque())):
                waiting.remove(turn)
                if not waiting:
                    del self._waiting[client]
            raise

    def _pass_on(self) -> None:
        """Give the place to the next job, or free it."""
        while self._waiting:
            client = next(iter(self._waiting))
            waiting = self._waiting.pop(client)
            turn = waiting.popleft()
            if waiting:
                self._waiting[client] = waiting  # behind the other clients
            if not turn.done():
                turn.set_result(None)
                return
        self._is_taken = False


class _Worker:
    """A forked process, as the server sees it."""

    def __init__(
        self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid = pid
        self.writer = writer
        self._reader = reader

    @property
    def is_gone(self) -> bool:
        """Whether the process ended while it was idle."""
        return self._reader.at_eof()

    async def exchange(self, frame: bytes) -> bytes:
        self.writer.write(_SIZE.pack(len(frame)))
        for start in range(0, len(frame), _PART_BYTES):  # the writer copies what it cannot send
            self.writer.write(frame[start : start + _PART_BYTES])
            await self.writer.drain()
        return await _receive_async(self._reader)


class _Failure:
    """An exception that is a bug."""

    def __init__(self, traceback: str) -> None:
        self.traceback = traceback


async def _receive_async(reader: asyncio.StreamReader) -> bytes:
    (size,) = _SIZE.unpack(await reader.readexactly(_SIZE.size))
    return await reader.readexactly(size)


def _spawn(control: socket.socket) -> subprocess.Popen[bytes]:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        f"from {__name__} import serve_forks; serve_forks({control.fileno()})"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("YOCOBIT_API_KEY")}
    # A process with threads must not fork.
    environment |= {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=[control.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment,
    )


# ---- in the forking process and its workers ----


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
        message, descriptors, _, _ = socket.recv_fds(control, _SIZE.size, 1)
        workers -= _ended()
        if len(message) < _SIZE.size:
            break
        (code,) = _SIZE.unpack(message)
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
        connection.sendall(_SIZE.pack(os.getpid()))
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
        return _Failure(traceback.format_exc())


def _limit_memory(n_bytes: int) -> None:
    """Let the process allocate `n_bytes` more; a system that cannot limit it is left alone."""
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + n_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _receive(connection: socket.socket) -> bytes | None:
    """Return the next message; None at the end of the connection."""
    head = _read_exactly(connection, _SIZE.size)
    return None if head is None else _read_exactly(connection, _SIZE.unpack(head)[0])


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
    connection.sendall(_SIZE.pack(len(message)))
    connection.sendall(message)
