"""Output of a run: nothing that happens to it ends the run."""

import errno
import io
import os

import pytest
from rich.console import Console
from training_runs import run_with_console

from yocobit.packing import checkpoints
from yocobit.tracking.progress import Progress, print_line


class Broken(io.StringIO):
    """A pipe without a reader, or a full disk."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, "broken")


@pytest.fixture(autouse=True)
def keep_stdout(monkeypatch):
    """After a broken pipe, rich redirects the standard output of the process."""
    monkeypatch.setattr(os, "dup2", lambda *_: None)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_characters_that_the_encoding_lacks_are_escaped(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)

    print_line(Console(file=stream, width=99), "Tea \u2615 caf\u00e9")

    stream.flush()
    expected = "Tea \\u2615 caf\u00e9" if encoding == "latin-1" else "Tea \\u2615 caf\\xe9"
    assert stream.buffer.getvalue().decode(encoding) == f"{expected}\n"


def test_control_characters_do_not_reach_the_terminal():
    stream = io.StringIO()

    print_line(Console(file=stream, width=99, force_terminal=True), "a\x1b[2J\x07b\nc\td")

    assert "\x1b[2J" not in stream.getvalue() and "\x07" not in stream.getvalue()
    assert "\u241b[2J\u2407b\n" in stream.getvalue()


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_output_that_cannot_be_written_is_dropped(number, is_terminal):
    console = Console(file=Broken(number), width=99, force_terminal=is_terminal)

    with Progress(console, 100) as progress:
        progress.last_refresh = progress.last_line = -1e9
        progress.update(1, 10, 2.0, 0.1, None)
        progress.print("a line")

    assert console.quiet


def test_closed_output_is_dropped():
    stream = io.StringIO()
    stream.close()

    print_line(Console(file=stream, width=99), "a line")


def test_run_whose_output_is_gone_is_completed(toml, tmp_path):
    console = Console(file=Broken(errno.EPIPE), width=99)

    run_with_console(toml, tmp_path / "run", console, "run.sample_every=2", "run.steps=4")

    assert checkpoints.last(tmp_path / "run").name == "step-000004"


def test_progress_shows_how_much_of_an_evaluation_is_done():
    stream = io.StringIO()

    with Progress(Console(file=stream, width=99), 100) as progress:
        progress.last_line = -1e9
        progress.update(1, 10, 2.0, 0.1, None)
        progress.last_line = -1e9
        progress.evaluating(0.25)
        progress.evaluating(0.5)  # too early for another line

    _, line = stream.getvalue().splitlines()
    assert line.startswith("step 1/10  loss 2.000")
    assert line.endswith("evaluating [#####---------------] 25%")
