"""Processes forked from one that has imported yocobit: imports take most of the time of a process.

They have the standard streams, exit code and signals of an interpreter of their own. What depends
on how the interpreter starts needs `subprocess`: variables that a library reads when it is
imported, closed streams, memory that no import has touched.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

COMMAND = "from yocobit.cli import main; main()"
_PRELOADED = ["yocobit.cli", "yocobit.engine", "yocobit.hub", "yocobit.serving.api.call"]
_PRELOADED += ["yocobit.tracking.plot", "yocobit.training"]
# Libraries import these at their first use: typer to parse, rich for a progress bar, the hub.
_PRELOADED += ["typer._adapters", "rich.status", "httpx2", "yaml"]


class Process:
    """Code in a forked process: a command of yocobit, unless `code` is given.

    `stdin`, `stdout` and `stderr` are open files; the null device by default, and a pipe that is
    read from `errors`. `variables` are added to the environment of this process. Further open files
    are passed on: their descriptors are the last elements of `sys.argv`.
    """

    def __init__(
        self,
        *arguments: object,
        code: str = COMMAND,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        files: Sequence[Any] = (),
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.arguments = ["yocobit", *map(str, arguments)]
        self.errors = None
        null = os.open(os.devnull, os.O_RDWR)
        descriptors = [os.dup(null if each is None else each.fileno()) for each in (stdin, stdout)]
        if stderr is None:
            reader, writer = os.pipe()
            self.errors = open(reader)  # noqa: SIM115
            descriptors.append(writer)
        else:
            descriptors.append(os.dup(stderr.fileno()))
        descriptors += [os.dup(each.fileno()) for each in files]
        os.close(null)
        connections = [
            Connection(each) for each in descriptors
        ]  # which can be sent, and are closed
        environment = {**os.environ, "COLUMNS": "200", **(variables or {})}
        self._process = _context().Process(
            target=_run,
            args=(code, self.arguments, connections, str(cwd or Path.cwd()), environment),
            daemon=True,
        )
        self._process.start()
        for each in connections:
            each.close()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 120) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    *arguments: object, stdin: str | bytes = "", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a Process to its end; return its exit code and output."""
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile("w+") as output,
        tempfile.TemporaryFile("w+") as errors,
    ):
        given.write(stdin if isinstance(stdin, bytes) else stdin.encode())
        given.seek(0)
        process = Process(*arguments, stdin=given, stdout=output, stderr=errors, **options)
        code = process.wait()
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(process.arguments, code, output.read(), errors.read())


@cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _run(
    code: str,
    arguments: list[str],
    connections: list[Connection],
    directory: str,
    environment: dict[str, str],
) -> None:
    multiprocessing.current_process()._config["daemon"] = False  # it may start processes
    gc.freeze()  # collections leave the imported modules alone
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    for number, connection in enumerate(connections[:3]):
        os.dup2(connection.fileno(), number)
        connection.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = [*arguments, *(str(each.fileno()) for each in connections[3:])]
    status = None
    try:
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        status = ended.code
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status or 0)
