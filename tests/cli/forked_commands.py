"""Commands of yocobit in children of one process: imports would take most of their time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

_PROGRAM = """
import json, os, sys
import yocobit.training
from yocobit.cli import main

def run(arguments, directory, streams):
    os.chdir(directory)
    for descriptor, file in enumerate(streams):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), descriptor)
    sys.argv = ["yocobit", *arguments]
    try:
        main()
    except SystemExit as ended:  # without the end of the interpreter, which takes a second
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(ended.code or 0)

requests, codes = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
for request in requests:
    if (child := os.fork()) == 0:
        run(*json.loads(request))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=codes, flush=True)
"""


def run(
    *arguments: object, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """Run a command in a terminal of 200 columns; return its exit code and output."""
    process = _process()
    with tempfile.TemporaryDirectory() as directory:
        streams = [Path(directory) / name for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin)
        request = (list(map(str, arguments)), str(cwd or Path.cwd()), list(map(str, streams)))
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        output, errors = (stream.read_text() for stream in streams[1:])
    return subprocess.CompletedProcess(request[0], code, output, errors)


def end() -> None:
    """End the process."""
    if _process.cache_info().currsize:
        process = _process()
        process.stdin.close()
        process.wait()
        process.stdout.close()
        _process.cache_clear()


@cache
def _process() -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
