"""A run that does not fit in memory ends with one line, and its checkpoints are unchanged."""

import json
from pathlib import Path

import forked
import pytest
from training_runs import assert_same_run, run, write_toml

from yocobit.packing import checkpoints
from yocobit.training import loop
from yocobit.training.errors import OutOfMemory

# Command lines, each in a process with 200 MB in addition to the memory of the imports.
IN_LITTLE_MEMORY = """
import ctypes, json, os, resource, sys
from pathlib import Path
import yocobit.training
from yocobit.cli import main

def limit_and_run(arguments, errors):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + (200 << 20)
    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX: one per thread would reserve 64 MB each
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    sys.argv = ["yocobit", *arguments]
    main()
    sys.exit(0)

for arguments, errors in json.loads(sys.argv[1]):
    if (child := os.fork()) == 0:
        limit_and_run(arguments, errors)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
NEEDED = "not enough memory for optim.batch_size = {} windows of data.context = 16 tokens; "


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit code and standard error of runs with little memory, by name."""
    directory = tmp_path_factory.mktemp("memory")
    train = ["train", str(write_toml(directory)), "--set=run.steps=1", "--out"]
    first, other = str(directory / "run"), str(directory / "other")
    large_model = ["--set=model.d_model=2048", "--set=model.d_ff=131072"]  # 1 GB a matrix
    commands = {
        "large batch": [*train, first, "--set=optim.batch_size=1500"],
        "smaller batch": [*train, first, "--set=optim.batch_size=15"],
        "large model": [*train, other, *large_model],
    }
    files = {name: directory / f"{name}.txt" for name in commands}
    pairs = [(arguments, str(files[name])) for name, arguments in commands.items()]
    found = forked.run(json.dumps(pairs), code=IN_LITTLE_MEMORY)
    assert found.returncode == 0, found.stderr
    codes = [int(line) for line in found.stdout.splitlines() if line.lstrip("-").isdecimal()]
    return {
        name: (code, files[name].read_text()) for name, code in zip(commands, codes, strict=True)
    }


def test_batch_too_large_for_memory_is_one_line_and_a_smaller_one_is_trained(ended):
    assert ended["large batch"] == (
        2,
        f"error: {NEEDED.format(1500)}set run.recompute = true, lower optim.batch_size and raise "
        "optim.accumulation by the same factor, lower data.context, or choose a smaller [model]; "
        "last checkpoint: none yet\n",
    )
    assert ended["smaller batch"][0] == 0, ended["smaller batch"][1]


def test_model_too_large_for_memory_is_one_line(ended):
    assert ended["large model"] == (
        2,
        "error: not enough memory for the weights of 2 layers with d_model = 2048, d_ff = 131072 "
        "and a vocabulary of 270; choose a smaller [model]\n",
    )


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_run_that_ran_out_of_memory_resumes_with_less(toml, tmp_path, monkeypatch, error, straight):
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

    assert str(raised.value) == f"{NEEDED.format(2)}{remedy}{kept}"
    assert left == Path(kept)
    assert_same_run(out, straight)
