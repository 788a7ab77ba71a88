"""A full disk ends a command with one line that names the file, and leaves no partial file."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import assert_same_run, full_disk, run, signal_at

from yocobit.cli import app
from yocobit.data import shards
from yocobit.disk import WriteError
from yocobit.errors import report_errors
from yocobit.tracking.tensorboard import TensorBoardWriter
from yocobit.training import loop


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def failure(capfd, *arguments) -> str:
    """Run a command that must end with a user error; return its line."""
    with pytest.raises(SystemExit) as ended:
        report_errors(lambda: app([str(argument) for argument in arguments]))
    error = capfd.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    return error.removeprefix("error: ").rstrip()


def full(path: Path) -> str:
    return f"{path}: cannot be written (File too large); free disk space and run the command again"


@pytest.mark.parametrize(
    ("n_bytes", "name", "others"),
    [
        (1000, "tokenizer.json", []),
        (3500, "train-0-00000.bin", ["tokenizer.json"]),
    ],
)
def test_corpus_that_cannot_be_written_is_prepared_by_the_same_command_later(
    toml, tmp_path, capfd, n_bytes, name, others
):
    text = tmp_path / "train.txt"
    text.write_text(text.read_text() * 3)  # more tokens than the tokenizer has bytes
    run(toml, tmp_path / "straight")
    out = tmp_path / "run"

    with full_disk(n_bytes):
        error = failure(capfd, "train", toml, "--out", out)
    left = files(out / "data")
    run(toml, out)

    assert error == full(out / "data" / name)
    assert left == others
    assert_same_run(out, tmp_path / "straight")


def test_index_of_a_corpus_is_written_atomically(toml, tmp_path, capfd, monkeypatch, straight):
    out, index = tmp_path / "run", tmp_path / "run" / "data" / "index.json"

    with monkeypatch.context() as patch, full_disk(8000):
        patch.setattr(shards, "SHARD_BYTES", 10)  # many shards, a long index
        error = failure(capfd, "train", toml, "--out", out)
    left = [name for name in files(out / "data") if "index" in name]
    run(toml, out)

    assert error == full(index)
    assert left == []
    assert_same_run(out, straight)


@pytest.mark.parametrize("name", ["runs.png", "runs.svg", "runs.pdf"])
def test_plot_that_cannot_be_written_keeps_the_previous_file(straight, tmp_path, capfd, name):
    out, before = tmp_path / name, "a plot by matplotlib.org"
    out.write_text(before)

    with full_disk(3000):
        error = failure(capfd, "plot", straight, "--out", out)

    assert error == full(out)
    assert files(tmp_path) == [name] and out.read_text() == before


def test_model_that_cannot_be_written_leaves_no_directory(straight, tmp_path, capfd):
    out = tmp_path / "models" / "model"

    with full_disk(5000):
        error = failure(capfd, "pack", straight, out)

    assert error == full(out)
    assert files(tmp_path) == []


def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as output:
        ended = subprocess.run(
            [sys.executable, "-m", "yocobit", "--version"], stdout=output, stderr=subprocess.PIPE
        )

    assert ended.returncode == 2
    assert ended.stderr.decode() == (
        "error: the output: cannot be written (No space left on device); "
        "free disk space and run the command again\n"
    )


def stop_after_step_4(toml: Path, out: Path, *overrides: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "rate_factor", signal_at(4, signal.SIGTERM))
        run(toml, out, *overrides)


def test_sample_that_cannot_be_written_ends_the_run_which_resumes_identically(
    toml, tmp_path, capfd
):
    sampled = ["run.sample_every=6", "run.sample_tokens=2", f"run.prompt={'x' * 4500}"]
    run(toml, tmp_path / "straight", *sampled)
    out = tmp_path / "run"
    stop_after_step_4(toml, out, *sampled)

    with full_disk(4000):
        options = [f"--set={setting}" for setting in sampled]
        error = failure(capfd, "train", toml, "--out", out, "--resume", *options)
    left = files(out / "samples")
    run(toml, out, *sampled, resume=True)

    assert error == (
        f"{out}/samples/step-000006.txt: cannot be written (File too large); "
        "checkpoints are unchanged; free disk space and continue with --resume"
    )
    assert left == []
    assert_same_run(out, tmp_path / "straight")


def test_events_that_cannot_be_written_end_the_run_which_resumes_identically(toml, tmp_path, capfd):
    run(toml, tmp_path / "straight", "run.tensorboard=true")
    n_bytes = (
        (tmp_path / "straight" / "metrics.jsonl").stat().st_size
    )  # less than the size of the events
    out = tmp_path / "run"
    stop_after_step_4(toml, out, "run.tensorboard=true")
    kept = files(out / "checkpoints")

    with full_disk(n_bytes):
        error = failure(capfd, "train", toml, "--out", out, "--resume", "--tensorboard")
    left = files(out / "checkpoints")
    run(toml, out, "run.tensorboard=true", resume=True)

    assert error == (
        f"{out}/tensorboard: cannot be written (File too large); "
        "checkpoints are unchanged; free disk space and continue with --resume"
    )
    assert left == kept
    assert_same_run(out, tmp_path / "straight")


def test_events_that_the_tensorboard_thread_cannot_write_fail_the_next_call(tmp_path, capfd):
    writer = TensorBoardWriter(tmp_path, 0)
    writer.writer.file_writer.event_writer._async_writer._worker._next_flush_time = 0

    with full_disk(100), pytest.raises(WriteError, match=r"tensorboard: cannot be written"):
        for step in range(100):
            writer.write({"step": step, "loss": 1.0})
        writer.flush()
    writer.close()

    assert capfd.readouterr().err == ""
