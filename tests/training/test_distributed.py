"""Runs of two processes have the losses and the checkpoints of one."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from safetensors.torch import load_file
from training_runs import MODEL_AND_DATA, run, write_toml

from yocobit import packing
from yocobit.config import ConfigError
from yocobit.packing import checkpoints
from yocobit.training.config import load as load_config
from yocobit.training.distributed import Processes
from yocobit.training.setup import check_batch

TOML = f"""{MODEL_AND_DATA}
[schedule]
kind = "step"

[run]
steps = 6
checkpoint_every = 3
eval_every = 3
sample_every = 3
sample_tokens = 4
threads = 1
precision = "float32"
"""

# The overrides of each run. With quantised weights, each process has complete micro-batches of the
# single process: otherwise a code that rounds differently changes losses by 1e-6.
WHOLE = ["optim.batch_size=3", "optim.accumulation=2", "optim.grad_clip=0.5"]
# One process has micro-batches of 2, 2 and 2 windows, two have 2 and 1 each.
CUT = ["optim.batch_size=2", "optim.accumulation=3", "model.weights=dense"]
GMU = '["retention", "window", "cross", "gmu"]'
RUNS = {
    "fsdp-adamw": [*WHOLE, "model.tie_embeddings=true"],
    "fsdp-muon": [*WHOLE, "optim.optimizer=muon", f"model.layers={GMU}"],
    "ddp-cut": [*CUT, "run.parallel=ddp"],
    "fsdp-cut": [*CUT, "optim.optimizer=muon"],
    "ddp-muon": [*WHOLE, "optim.optimizer=muon", "run.parallel=ddp"],
}
SLOW = ("fsdp-adamw", "fsdp-cut", "ddp-muon")  # the others test each optimizer and parallelism
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RUNS]

# Consecutive runs of a configuration: [out, overrides, resume, [rank, step, signal]]; the signal is
# raised in that process during that step. The processes are forked as torchrun starts them.
TORCHRUN = """
import json, os, signal, sys
from pathlib import Path
from rich.console import Console
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from yocobit.training import load, loop
from yocobit.errors import report_errors

original = loop.rate_factor

def main():
    toml, runs = sys.argv[1:]
    for out, overrides, resume, raised in json.loads(runs):
        def rate_factor(schedule, done, total):
            if raised and raised[:2] == [int(os.environ["RANK"]), done + 1]:
                signal.raise_signal(raised[2])
            return original(schedule, done, total)
        loop.rate_factor = rate_factor
        console = Console()
        loop.train(load(Path(toml), overrides), Path(out), resume=resume, console=console)
        console.print("after it")

config = LaunchConfig(
    min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
    max_restarts=0, start_method="fork",
)
sys.argv = sys.argv[1:]
elastic_launch(config, lambda: report_errors(main))()
"""


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, env=environment
    )


def run_two(toml: Path, *runs: tuple) -> subprocess.CompletedProcess:
    arguments = (toml.parent / "worker.py", toml, json.dumps(runs))
    return forked.run(*arguments, code=TORCHRUN, variables={"OMP_NUM_THREADS": "1"})


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def toml(tmp_path_factory) -> Path:
    return write_toml(tmp_path_factory.mktemp("distributed"), TOML, n_valid=160)


@pytest.fixture(scope="module")
def names(request) -> list[str]:
    """The runs that the selected tests need."""
    selected = " ".join(item.name for item in request.session.items)
    return [name for name in RUNS if name not in SLOW or name in selected]


@pytest.fixture(scope="module")
def outs(toml, names) -> Path:
    """A directory of runs.

    For each of `names`: NAME-1 of one process, NAME-2 of two, and NAME-12, started by one process
    and resumed by two. One torchrun runs everything of two processes, and last: `stopped`, which a
    signal ends, and `absent`, whose text does not exist.
    """
    directory = toml.parent
    for name in names:
        run(toml, directory / f"{name}-1", *RUNS[name])
        run(toml, directory / f"{name}-12", *RUNS[name], "run.steps=3")

    result = run_two(
        toml,
        *((str(directory / f"{name}-2"), RUNS[name], False, None) for name in names),
        *((str(directory / f"{name}-12"), RUNS[name], True, None) for name in names),
        (str(directory / "stopped"), RUNS["fsdp-muon"], False, (1, 2, signal.SIGTERM)),
        (str(directory / "absent"), ['data.valid=["absent.txt"]'], False, None),
    )

    assert result.returncode != 0 and (directory / "stopped").exists(), result.stderr
    (directory / "stdout").write_text(result.stdout)
    (directory / "stderr").write_text(result.stderr)
    return directory


def assert_same_run(out: Path, expected: Path) -> None:
    """Losses are equal except for the order of sums."""
    for record, other in zip(records(out), records(expected), strict=True):
        assert record.keys() == other.keys()
        for key in other.keys() - {"seconds", "weight_counts"}:
            # The norm is of sums whose large terms cancel.
            rel = 1e-5 if key == "grad_norm" else 1e-6
            assert record[key] == pytest.approx(other[key], rel=rel), (record["step"], key)
        # A difference in the last bit can move a weight across a rounding threshold.
        for name, counts in other.get("weight_counts", {}).items():
            assert record["weight_counts"][name] == pytest.approx(counts, abs=2), name


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_have_the_losses_of_one(outs, name):
    assert_same_run(outs / f"{name}-2", outs / f"{name}-1")


@pytest.mark.parametrize("name", ["fsdp-muon", pytest.param("ddp-muon", marks=pytest.mark.slow)])
def test_gradients_are_clipped_equally_in_all_processes(outs, name):
    for out in (outs / f"{name}-1", outs / f"{name}-2"):
        assert any(record["grad_norm"] > 0.5 for record in records(out))


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_resume_a_run_of_one(outs, name):
    assert_same_run(outs / f"{name}-12", outs / f"{name}-1")


@pytest.mark.parametrize("name", NAMES)
def test_one_process_resumes_a_run_of_two(outs, toml, tmp_path, name):
    out = tmp_path / "run"
    shutil.copytree(outs / f"{name}-2", out)
    shutil.rmtree(checkpoints.last(out))
    assert checkpoints.last(out).name == "step-000003"

    run(toml, out, *RUNS[name], resume=True)

    assert_same_run(out, outs / f"{name}-1")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_checkpoint_of_two_processes_has_the_tensors_of_one(outs, name, file):
    tensors, others = (load_file(checkpoints.last(outs / f"{name}-{n}") / file) for n in (2, 1))

    assert tensors.keys() == others.keys()
    for key, other in others.items():
        assert (tensors[key].shape, tensors[key].dtype) == (other.shape, other.dtype)
        # Six steps of Adam, whose update does not depend on the magnitude of a gradient.
        assert (tensors[key] - other).norm() <= 1e-4 * other.norm(), key


def test_checkpoint_of_two_processes_can_be_packed(outs, tmp_path):
    packed = packing.pack(outs / "fsdp-muon-2", tmp_path / "model", None, "int8")

    assert packed.config.vocab_size == 270


def test_signal_in_one_process_ends_both_after_its_step(outs):
    assert checkpoints.last(outs / "stopped").name == "step-000002"
    assert len(records(outs / "stopped")) == 2
    assert "SIGTERM: stopped after step 2" in (outs / "stdout").read_text()


def test_only_the_main_process_prints(outs, names):
    lines = (outs / "stdout").read_text().splitlines()

    assert sum(line.startswith("model ") for line in lines) == 2 * len(names) + 1
    assert lines.count("after it") == 2 * len(names) + 1
    assert sum(line.startswith("done: ") for line in lines) == 2 * len(names)
    assert sum(line.startswith("warning: 1 threads in each of") for line in lines) == len(names)


def test_killed_process_ends_the_other_and_keeps_the_last_checkpoint(toml, tmp_path):
    out = tmp_path / "run"

    result = run_two(toml, (str(out), RUNS["fsdp-muon"], False, (1, 5, signal.SIGKILL)))
    kept = checkpoints.last(out)
    run(toml, out, *RUNS["fsdp-muon"], resume=True)

    assert result.returncode != 0
    assert "error: process 0 of 2 lost the connection to another one" in result.stderr
    assert kept.name == "step-000003" and len(records(out)) == 6


def test_user_error_of_the_main_process_is_one_line_and_ends_both(outs):
    lines = (outs / "stderr").read_text().splitlines()

    errors = [line for line in lines if line.startswith("error:")]
    assert len(errors) == 1 and "absent.txt" in errors[0]


def test_command_of_two_processes_is_recorded_as_it_was_given(outs, toml):
    (start,) = json.loads((outs / "stopped" / "run.json").read_text())["starts"]

    worker, *arguments = shlex.split(start["command"])[3:]
    assert start["command"].startswith("torchrun --nproc-per-node 2 ")
    assert [worker, arguments[0]] == [str(toml.parent / "worker.py"), str(toml)]
    assert json.loads(arguments[1])[-1][0] == str(outs / "absent")


@pytest.mark.slow
def test_yocobit_under_torchrun_trains_and_ends_user_errors_in_one_line(tmp_path):
    toml, out = write_toml(tmp_path), tmp_path / "run"
    arguments = ("-m", "yocobit", "train", str(toml), "--out", str(out), "--set", "run.steps=1")

    result = torchrun(*arguments)
    (tmp_path / "valid.txt").unlink()
    failed = torchrun("-m", "yocobit", "train", str(toml), "--out", str(tmp_path / "other"))

    assert result.returncode == 0, result.stderr
    (start,) = json.loads((out / "run.json").read_text())["starts"]
    assert start["command"] == shlex.join(["torchrun", "--nproc-per-node", "2", *arguments])
    assert failed.returncode != 0
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "valid.txt" in errors[0]


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_shards_of_all_processes_are_a_batch_in_order(size):
    shares = [Processes(rank, size).shard(range(12, 18)) for rank in range(size)]

    assert [i for share in shares for i in share] == list(range(12, 18))
    assert len({len(share) for share in shares}) == 1


def test_batch_not_divisible_by_the_processes_is_refused_with_both_numbers(toml):
    config = load_config(toml, CUT)

    with pytest.raises(ConfigError, match=r"divisible by the 4 processes but is 2 \* 3 = 6"):
        check_batch(config, Processes(0, 4))
