"""Runs one case in a forked child process with limits, and judges how it ended.

A case is a function that ends as a program does: with exit code 0, or 2 and one line on standard
error. What is written to standard output does not matter.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

MAX_LINE = 2200  # characters of an error
MAX_BYTES = 1 << 30  # in addition to what the parent has
IS_SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
_NOISE = re.compile(r"==\d+==|\s*#\d+ 0x|resuming|warning: ")  # of sanitizers and of `train`


def judge(case: Callable[[], object], directory: Path, seconds: float) -> str | None:
    """Run a case in `directory`; return what is wrong with its end, or None."""
    out, err = directory.parent / "stdout", directory.parent / "stderr"
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _run(case, directory, out, err)
    status, usage, took = _wait(child, seconds)
    error = err.read_text(encoding="utf-8", errors="replace")
    if took is None:
        return f"no end after {seconds:.0f} s"
    peak = usage.ru_maxrss * 1024 - _resident_bytes()
    if peak > MAX_BYTES and not IS_SANITIZED:
        return f"{peak >> 20} MB of memory"
    return _wrong(os.waitstatus_to_exitcode(status), error)


def _wrong(code: int, error: str) -> str | None:
    lines = [line for line in error.splitlines() if not _NOISE.match(line)]
    last = lines[-1] if lines else ""
    if "Traceback" in error or code not in (0, 2):
        return f"exit code {code}: {last[:300]}"
    if "Sanitizer" in error or "runtime error" in error:
        return "sanitizer: " + next(line for line in error.splitlines() if "rror" in line)[:300]
    if "panicked at" in error:
        return f"the message of a Rust panic before {last[:300]!r}"
    if code == 2 and not last.startswith("error: "):
        return f"exit code 2 without an error line: {last[:300]!r}"
    if any(len(line) > MAX_LINE for line in lines):
        return f"a line of {max(map(len, lines))} characters"
    if not all(line.isprintable() for line in lines):
        return f"control characters in {last[:300]!r}"
    return None


def _run(case: Callable[[], object], directory: Path, out: Path, err: Path) -> None:
    """Run the case in this child; never returns."""
    code = 1
    try:
        os.setsid()  # so that its own children end with it
        for descriptor, path in ((0, Path(os.devnull)), (1, out), (2, err)):
            flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, flags, 0o600), descriptor)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
        if not IS_SANITIZED:
            resource.setrlimit(resource.RLIMIT_AS, (_virtual_bytes() + 8 * MAX_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(directory)
        case()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, seconds: float) -> tuple[int, resource.struct_rusage, float | None]:
    """Wait for a child; kill it after `seconds`, and return None for its time then."""
    start = time.monotonic()
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        took = time.monotonic() - start
        if pid or took > seconds:
            break
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):  # also of what the child started
        os.killpg(child, signal.SIGKILL)
    if not pid:
        _, status, usage = os.wait4(child, 0)
        return status, usage, None
    return status, usage, took


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
