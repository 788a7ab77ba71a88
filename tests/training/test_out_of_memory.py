"""A run that does not fit into memory ends with one line, and its checkpoints stay."""

import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import assert_same_run, run

from yocobit.packing import checkpoints
from yocobit.training import loop
from yocobit.training.errors import OutOfMemory

# The command line, with some memory beside what the imports take.
IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import yocobit.training
from yocobit.cli import main

here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
most = here + int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (most, most))
main()
"""
TRIED = "not enough memory for optim.batch_size = {} windows of data.context = 16 tokens; "


def command(n_bytes: int, *arguments) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", IN_LITTLE_MEMORY, str(n_bytes), *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_batch_that_does_not_fit_is_one_line_and_a_smaller_one_is_trained(toml, tmp_path):
    train = ["train", toml, "--out", tmp_path / "run", "--set=run.steps=1"]

    ended = command(200 << 20, *train, "--set=optim.batch_size=1500")
    again = command(200 << 20, *train, "--set=optim.batch_size=15")

    assert ended.returncode == 2
    assert ended.stderr == (
        f"error: {TRIED.format(1500)}set run.recompute = true, lower optim.batch_size and raise "
        "optim.accumulation by the same factor, lower data.context, or choose a smaller [model]; "
        "last checkpoint: none yet\n"
    )
    assert again.returncode == 0, again.stderr


def test_model_that_does_not_fit_is_one_line(toml, tmp_path):
    large = ["--set=model.d_model=2048", "--set=model.d_ff=131072"]  # 1 GB a matrix

    ended = command(200 << 20, "train", toml, "--out", tmp_path / "run", *large)

    assert ended.returncode == 2
    assert ended.stderr == (
        "error: not enough memory for the weights of 4 layers with d_model = 2048, d_ff = 131072 "
        "and a vocabulary of 270; choose a smaller [model]\n"
    )


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_run_that_no_longer_fits_goes_on_with_less_memory(toml, tmp_path, monkeypatch, error):
    run(toml, tmp_path / "straight")
    out, kept = tmp_path / "run", tmp_path / "run" / "checkpoints" / "step-000006"

    def rate_factor(schedule, done, total):
        if done == 6:
            raise error
        return original(schedule, done, total)

    original = loop.rate_factor
    remedy = "set run.recompute = true, free memory, and continue with --resume; last checkpoint: "
    with monkeypatch.context() as patch, pytest.raises(OutOfMemory) as raised:
        patch.setattr(loop, "rate_factor", rate_factor)
        run(toml, out)
    left = checkpoints.last(out)
    run(toml, out, "run.recompute=true", resume=True)

    assert str(raised.value) == f"{TRIED.format(2)}{remedy}{kept}"
    assert left == Path(kept)
    assert_same_run(out, tmp_path / "straight")
