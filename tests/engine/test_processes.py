"""Signals, forks, threads, and model files that change while an engine uses them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import forked
import numpy as np
import pytest

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.engine import FileChangedError
from yocobit.mixers import FEED_FORWARDS
from yocobit.packing import read_model
from yocobit.pretrained import TINY

PROMPT = [1, 2, 3]


def bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32)


IMPORTS = (
    "import os, signal, sys, threading\n"
    "import numpy as np\n"
    "from yocobit import Engine, _native\n"
    "signal.alarm(60)\n"
)


def run(code: str, **options) -> subprocess.CompletedProcess[str]:
    """Run Python code with the names of this test module."""
    command = [sys.executable, "-c", IMPORTS + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def run_with_torch(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has imported PyTorch, and started no thread."""
    return forked.run(code=IMPORTS + "import torch\n" + code)


@pytest.fixture
def copied(tmp_path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "a\nmodel"))


# ---- signals


class Interrupted(Exception):
    pass


@pytest.fixture
def interrupting():
    """Raise Interrupted in the main thread after that many seconds."""

    def handle(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handle)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("call", ["feed", "feed_all", "hidden_states", "step"])
def test_a_signal_ends_a_long_prefill_and_the_session_can_be_used_on(call, interrupting):
    engine = Engine.load(threads=1)
    tokens = np.arange(200_000) % 4000
    session, other = engine.session(len(tokens), "f32"), engine.session(8, "f32")
    other.feed(PROMPT)
    session.feed(tokens[:5])
    rest = tokens[5:20_000] if call == "feed_all" else tokens[5:]  # of less memory

    interrupting(0.05)
    with pytest.raises(Interrupted):
        if call == "step":
            engine.step([other], [1], prompts=[(session, rest)])
        else:
            getattr(session, call)(rest)

    n = session.position
    assert (n - 5) % FEED_FORWARDS[engine.config.ffn].max_batch_tokens == 0 and 5 <= n < len(tokens)
    assert session.tokens.tolist() == tokens[:n].tolist()
    if n > 5:
        with pytest.raises(ValueError, match="has no logits"):
            _ = session.logits
    last = session.feed(tokens[n : n + 3])
    whole = engine.session(n + 3, "f32").feed(tokens[: n + 3])
    assert np.array_equal(bits(last), bits(whole))


def test_a_signal_handler_may_use_the_engine_that_it_interrupts(interrupting):
    engine = Engine.load(threads=1)
    found = []
    signal.signal(signal.SIGALRM, lambda *_: found.append(engine.session(8, "f32").feed(PROMPT)))
    session = engine.session(40_000, "f32")

    interrupting(0.02)
    session.feed(np.arange(40_000) % 4000)

    assert np.array_equal(bits(found[0]), bits(engine.session(8, "f32").feed(PROMPT)))


# ---- forks


def test_a_forked_child_computes_the_same_bits_with_threads_of_its_own():
    ended = run(
        "engine = Engine.load(threads=3)\n"
        "session = engine.session(64)\n"
        "expected = session.feed([1, 2, 3]).tobytes()\n"
        "for generation in range(2):\n"  # a child and its child
        "    if pid := os.fork():\n"
        "        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "        break\n"
        "    assert engine.session(64).feed([1, 2, 3]).tobytes() == expected\n"
        "    code = 0\n"
        "copy = engine.session(64)\n"
        "copy.feed([1, 2, 3])\n"
        "assert copy.feed([4]).tobytes() == session.feed([4]).tobytes()\n"
        "sys.exit(code)"
    )

    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_forked_child_ends_without_having_used_the_engine():
    ended = run(
        "engine = Engine.load(threads=3)\n"
        "engine.session(64).feed([1, 2, 3])\n"
        "if pid := os.fork():\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "del engine"
    )

    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_fork_waits_for_a_running_batch_and_the_child_computes():
    ended = run(
        "engine = Engine.load(threads=2)\n"
        "expected = engine.session(64).feed([1, 2, 3]).tobytes()\n"
        "done = threading.Event()\n"
        "def work():\n"
        "    while not done.is_set():\n"
        "        engine.session(4096).feed([1] * 4096)\n"
        "thread = threading.Thread(target=work)\n"
        "thread.start()\n"
        "codes = []\n"
        "for _ in range(10):\n"
        "    if pid := os.fork():\n"
        "        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "    else:\n"
        "        signal.alarm(60)\n"
        "        os._exit(engine.session(64).feed([1, 2, 3]).tobytes() != expected)\n"
        "done.set()\n"
        "thread.join()\n"
        "assert codes == [0] * 10, codes\n"
        "assert engine.session(64).feed([1, 2, 3]).tobytes() == expected\n"
    )

    assert (ended.returncode, ended.stderr) == (0, "")


def test_training_kernels_compute_in_a_forked_child():
    ended = run_with_torch(
        "from yocobit.model.ops import native\n"
        "torch.set_num_threads(2)\n"
        "x, weight = torch.randn(128, 128), torch.randn(128, 128)\n"  # PyTorch uses one thread
        "def matmul():\n"
        "    return native.matmul(x, [weight], 'ternary', 'scalar')[0].numpy().tobytes()\n"
        "expected = matmul()\n"
        "if pid := os.fork():\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "signal.alarm(60)\n"
        "os._exit(matmul() != expected)\n"
    )

    assert (ended.returncode, ended.stderr) == (0, "")


def test_training_kernels_compute_first_in_a_child_of_a_process_that_used_openmp():
    ended = run_with_torch(
        "from yocobit.model.ops import native\n"
        "torch.set_num_threads(2)\n"
        "torch.ones(1 << 20).exp()\n"  # starts a thread of the OpenMP runtime
        "if pid := os.fork():\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "signal.alarm(60)\n"
        "x, weight = torch.randn(128, 128), torch.randn(128, 128)\n"  # PyTorch uses one thread
        "def matmul():\n"
        "    return native.matmul(x, [weight], 'ternary', 'scalar')[0]\n"
        "y = matmul()\n"
        "torch.set_num_threads(1)\n"
        "os._exit(not torch.equal(y, matmul()))\n"
    )

    assert (ended.returncode, ended.stderr) == (0, "")


# ---- threads


def test_one_session_in_two_threads_raises_or_computes_but_never_crashes():
    engine = Engine.load(threads=1)
    session = engine.session(100_000, "f32")
    errors: list[Exception] = []

    def feed() -> None:
        try:
            for _ in range(20):
                session.feed(np.arange(1000) % 4000)
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=feed) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all("one thread at a time" in str(error) for error in errors)
    assert 0 < session.position <= 40_000


# ---- model files that change


def test_a_truncated_model_file_ends_the_process_with_a_line_that_names_it(copied):
    file = copied / "model.safetensors"

    ended = run(
        f"engine = Engine.load({str(copied)!r}, threads=2)\n"
        "session = engine.session(64)\n"
        "session.feed([1, 2, 3])\n"
        f"os.truncate({str(file)!r}, 4096)\n"
        "session.feed([4])\n"  # a decode step makes no system call, so it does not check the file
    )

    assert ended.returncode == 2
    shown = str(file).replace("\n", "?")
    assert ended.stderr.startswith(f"error: {shown}: was truncated or overwritten while")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("change", ["overwrite", "truncate", "append"])
def test_a_model_file_that_changed_in_place_is_refused(change, copied):
    engine, file = Engine.load(copied, threads=1), copied / "model.safetensors"
    engine.check_file()
    started = engine.session(8, "f32")
    started.feed(PROMPT)
    session = engine.session(8, "f32")

    with file.open("r+b") as stream:
        if change == "truncate":
            stream.truncate(file.stat().st_size - 1)
        else:
            stream.seek(-1 if change == "overwrite" else 0, os.SEEK_END)
            stream.write(b"\0")
    os.utime(file, ns=(1, 1))  # the clock of a file system ticks every few milliseconds

    for call in (
        engine.check_file,
        lambda: session.feed(PROMPT),
        lambda: engine.logits(PROMPT, "f32"),
        lambda: engine.stream([1, 2, 3, 4], session=started),
        lambda: engine.step([], [], prompts=[(session, PROMPT)]),
    ):
        with pytest.raises(FileChangedError, match="was truncated or overwritten while it was in"):
            call()
    assert session.position == 0


def test_a_model_file_that_is_replaced_by_renaming_stays_in_use(copied):
    engine, file = Engine.load(copied, threads=1), copied / "model.safetensors"
    expected = engine.session(8, "f32").feed(PROMPT)
    (copied / "new").write_bytes(b"another file")

    (copied / "new").rename(file)

    engine.check_file()
    assert np.array_equal(bits(engine.session(8, "f32").feed(PROMPT)), bits(expected))


def test_other_bus_errors_end_the_process_by_the_signal():
    ended = run(
        "Engine.load(threads=1)\n"
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "os.kill(os.getpid(), signal.SIGBUS)"
    )

    assert ended.returncode == -signal.SIGBUS
    assert ended.stderr == ""


def test_other_bus_errors_go_to_the_handler_that_was_there_before():
    ended = run(
        "import faulthandler, resource\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "faulthandler.enable()\n"
        "Engine.load(threads=1)\n"
        "os.kill(os.getpid(), signal.SIGBUS)"
    )

    assert ended.returncode == -signal.SIGBUS
    assert ended.stderr.startswith("Fatal Python error: Bus error")


@pytest.mark.parametrize("kind", ["missing", "empty", "directory", "fifo"])
def test_files_that_cannot_be_mapped_are_refused(kind, tmp_path):
    model = dataclasses.replace(read_model(TINY), file=tmp_path / "file")
    if kind == "empty":
        model.file.touch()
    elif kind == "directory":
        model.file.mkdir()
    elif kind == "fifo":
        os.mkfifo(model.file)

    with pytest.raises(ConfigError, match="file: cannot be mapped: "):
        model.open()


def test_a_path_that_is_not_utf8_is_refused_in_one_line(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff"))
    try:
        shutil.copytree(TINY, path)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")

    with pytest.raises(ConfigError, match="must be a path in UTF-8 but is not; rename it"):
        Engine.load(path, threads=1)


def test_a_path_is_its_bytes_where_the_locale_is_not_utf8(tmp_path):
    shutil.copytree(TINY, tmp_path / "m☕")
    command = [sys.executable, "-m", "yocobit", "generate", "In", "-m", tmp_path / "m☕", "-n", "1"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    subprocess.run(command, env={**os.environ, **locale}, check=True, capture_output=True)
