"""Worker processes that prepare requests: they can be killed, and their memory is bounded.

A server process of its own, without threads, loads the tokenizer, the chat template and the
vocabulary of grammars once, and forks a worker when one is needed. A worker runs one job after
another until one exceeds a limit or its client disconnects; then it is killed, and the next job
gets a new one within milliseconds. No process outlives the server: its end closes the sockets.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from yocobit.errors import UserError
from yocobit.serving import limits
from yocobit.serving.errors import APIError, queue_full, shutting_down, too_costly
from yocobit.serving.runtime.worker_process import SIZE, Failure, serve_forks
from yocobit.system import can_fork

_NICENESS = 10  # of workers for heavy jobs: the scheduler precedes them
_STOP_S = 0.3
_PART_BYTES = 1 << 18  # of a message, in the writer's buffer at a time

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
        self._writers = weakref.WeakSet[asyncio.StreamWriter]()  # to all workers
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
            await loop.sock_sendall(self._control, SIZE.pack(len(self._setup)) + self._setup)
            while more := await loop.sock_recv(self._control, 1 << 16):
                reply += more
                if len(reply) >= SIZE.size + SIZE.unpack_from(reply)[0]:
                    break
        if not reply:
            if self._is_stopped:
                raise shutting_down()
            raise UserError("the process that prepares requests ended; see its output")
        problem = pickle.loads(reply[SIZE.size :])
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
        """Fail all jobs with 503 and have all processes end, without waiting for them."""
        self._is_stopped = True
        if self._control is not None:
            with suppress(OSError):  # the forking process has ended
                self._control.shutdown(socket.SHUT_RDWR)
        for writer in self._writers:
            writer.transport.abort()

    def stop(self) -> None:
        """End all processes; jobs fail with 503. It may be called from any thread."""
        self._is_stopped = True
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
        if isinstance(result, Failure):
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
                self._writers.add(writer)
                try:
                    (pid,) = SIZE.unpack(await reader.readexactly(SIZE.size))
                    return _Worker(pid, reader, writer)
                except (OSError, EOFError):
                    writer.close()
                    if self._is_stopped:
                        raise shutting_down() from None
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
                self._control.send(SIZE.pack(code))
            else:
                socket.send_fds(self._control, [SIZE.pack(code)], [connection.fileno()])


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
        self.writer.write(SIZE.pack(len(frame)))
        for start in range(0, len(frame), _PART_BYTES):  # the writer copies what it cannot send
            self.writer.write(frame[start : start + _PART_BYTES])
            await self.writer.drain()
        return await _receive_async(self._reader)


async def _receive_async(reader: asyncio.StreamReader) -> bytes:
    (size,) = SIZE.unpack(await reader.readexactly(SIZE.size))
    return await reader.readexactly(size)


def _spawn(control: socket.socket) -> subprocess.Popen[bytes]:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        f"from {serve_forks.__module__} import serve_forks; serve_forks({control.fileno()})"
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
