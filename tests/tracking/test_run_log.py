"""Records of a run: weight counts, run manifest, samples, TensorBoard events."""

import json
import os
import shutil
import subprocess
import sys
import types
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
from packed_models import nano, trained
from rich.console import Console
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from yocobit.config import ConfigError
from yocobit.disk import WriteError
from yocobit.model import Decoder
from yocobit.model.bitlinear import BitLinear
from yocobit.model.quantization import quantize_weight
from yocobit.packing import checkpoints
from yocobit.tracking import manifest
from yocobit.tracking.run_log import NullRunLog, RunLog
from yocobit.tracking.tensorboard import TensorBoardWriter
from yocobit.training import checkpoint, loop
from yocobit.training.config import load
from yocobit.training.validation import weight_counts

TOML = """
[model]
preset = "nano"
layers = ["retention", "cross"]
[data]
train = ["text"]
valid_every = 2
vocab_size = 270
context = 16
[optim]
batch_size = 2
[run]
steps = 4
eval_every = 2
sample_every = 2
sample_tokens = 4
checkpoint_every = 2
threads = 1
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The working directory, outside a repository: a configuration and its text."""
    (tmp_path / "text").mkdir()
    for i in range(6):
        (tmp_path / "text" / f"{i}.txt").write_text("to see a run is to trust it " * (i + 4))
    (tmp_path / "run.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(out: str, *overrides: str, resume: bool = False) -> Path:
    console = Console(file=open(os.devnull, "w"))  # noqa: SIM115
    loop.train(load(Path("run.toml"), overrides), Path(out), resume=resume, console=console)
    return Path(out)


class Events:
    """The events of a run, as TensorBoard reads them."""

    def __init__(self, run_dir: Path) -> None:
        accumulator = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0})
        self.read = accumulator.Reload().Tensors

    def steps(self, tag: str) -> list[int]:
        return [event.step for event in self.read(tag)]

    def values(self, tag: str) -> list:
        return [make_ndarray(event.tensor_proto).item() for event in self.read(tag)]


# ---- weight counts ----


@pytest.mark.parametrize("kind", ["ternary", "sign"])
def test_weight_counts_equal_those_of_the_quantised_matrices(kind):
    model = trained(nano("yoco-gret", kind), steps=3)

    counts = weight_counts(model)

    matrices = {n: m for n, m in model.named_modules() if isinstance(m, BitLinear)}
    assert counts.keys() == matrices.keys()
    for name, matrix in matrices.items():
        codes, _ = quantize_weight(matrix.weight, kind)
        assert counts[name] == [int((codes == value).sum()) for value in (-1, 0, 1)]


def test_weight_counts_of_a_dense_model_are_empty():
    assert weight_counts(Decoder(nano("transformer", "dense"))) == {}


def test_each_evaluation_records_weight_counts(project):
    lines = (run("out") / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]

    assert ["weight_counts" in record for record in records] == [False, True, False, True]
    model = checkpoint.load_model(Path("out"))
    assert records[-1]["weight_counts"] == weight_counts(model)


# ---- run.json ----


def test_manifest_records_settings_corpus_command_and_machine(project, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(project / "bin" / "yocobit"), "train", "run.toml"])
    before = datetime.now(timezone.utc).replace(microsecond=0)

    out = run("out")

    found = json.loads((out / "run.json").read_text())
    (start,) = found["starts"]
    assert found["config"]["optim"]["learning_rate"] == 1e-3
    assert found["corpus"]["sha256"] == checkpoint.load_state(checkpoints.last(out)).corpus_sha256
    assert found["corpus"]["train"]["bytes"] + found["corpus"]["valid"]["bytes"] == sum(
        path.stat().st_size for path in Path("text").iterdir()
    )
    assert start["command"] == "yocobit train run.toml"
    assert start["versions"]["torch"] == torch.__version__
    assert start["threads"] == 1
    assert before <= datetime.fromisoformat(start["date"]) <= datetime.now(timezone.utc)
    assert "yocobit train run.toml" in (out / "README.md").read_text()


def test_arguments_that_are_not_utf8_do_not_damage_the_manifest(project, monkeypatch):
    monkeypatch.setattr("sys.argv", ["yocobit", "train", "caf\udce9.toml"])
    run("out", "run.steps=2")

    out = run("out", resume=True)

    starts = json.loads((out / "run.json").read_text())["starts"]
    assert [start["command"] for start in starts] == ["yocobit train 'caf\\udce9.toml'"] * 2
    assert not (out / "run.json.damaged").exists()


TWO_MACHINES = {
    "GROUP_WORLD_SIZE": "2",
    "GROUP_RANK": "0",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_MAX_RESTARTS": "3",
}


@pytest.mark.parametrize(
    ("program", "environment", "expected"),
    [
        ("/x/yocobit/__main__.py", {}, "torchrun --nproc-per-node 2 -m yocobit"),
        ("/x/bin/yocobit", {}, "torchrun --nproc-per-node 2 -m yocobit"),
        ("own/train.py", {}, "torchrun --nproc-per-node 2 own/train.py"),
        (
            "/x/yocobit/__main__.py",
            TWO_MACHINES,
            "torchrun --nproc-per-node 2 --max-restarts 3 --nnodes 2 --node-rank 0 "
            "--master-addr 10.0.0.1 --master-port 29500 -m yocobit",
        ),
    ],
)
def test_resume_command_under_torchrun_starts_torchrun(monkeypatch, program, environment, expected):
    for name, value in {"LOCAL_WORLD_SIZE": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr("sys.argv", [program, "train", "a b.toml", "--out", "run"])

    command = manifest.command_to_resume()

    assert command == f"{expected} train 'a b.toml' --out run --resume"


def test_manifest_has_no_absolute_paths_below_the_working_directory(project):
    out = run("out", f"data.train={json.dumps([str(project / 'text')])}")

    assert json.loads((out / "run.json").read_text())["config"]["data"]["train"] == ["text"]
    assert str(project) not in (out / "run.json").read_text() + (out / "README.md").read_text()


def test_readme_lists_each_start_under_the_name_that_it_has(project):
    first = run("out", "run.steps=2")
    before = (first / "README.md").read_text()
    out = first.rename("renamed")

    run("renamed", resume=True)

    title, *lines = (out / "README.md").read_text().splitlines()
    assert title == "# out"
    assert [line for line in lines if line not in before.splitlines()] == [
        f"- {start['date']} at step 2: `{start['command']}`"
        for start in json.loads((out / "run.json").read_text())["starts"][1:]
    ]


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text + "\n## My notes\nA lower learning rate.\n",
        lambda text: text.replace("Started:", "Started (the first one diverged):"),
        lambda text: text.partition("| | |")[0],
    ],
)
def test_an_edited_readme_is_kept(project, edit):
    readme = run("out", "run.steps=2") / "README.md"
    readme.write_text(edited := edit(readme.read_text()))

    run("out", resume=True)

    assert readme.read_text() == edited


def test_an_edited_title_of_a_readme_is_kept_with_the_starts(project):
    readme = run("out", "run.steps=2") / "README.md"
    readme.write_text(readme.read_text().replace("# out", "# Mine"))

    run("out", resume=True)

    assert readme.read_text().startswith("# Mine\n")
    assert " at step 2: " in readme.read_text()


def test_each_resume_appends_a_start_and_a_new_run_replaces_them(project):
    out = run("out", "run.steps=2")
    run("out", resume=True)
    resumed = json.loads((out / "run.json").read_text())
    shutil.rmtree(out / "checkpoints")
    run("out")
    restarted = json.loads((out / "run.json").read_text())

    assert [start["step"] for start in resumed["starts"]] == [0, 2]
    assert resumed["config"]["run"]["steps"] == 4
    assert [start["step"] for start in restarted["starts"]] == [0]


@pytest.mark.parametrize(
    "damage", [b"", b'{"starts": [', b"[]", b"\xff", b'{"starts": [{}]}', b'{"starts": 1}', b"{}"]
)
def test_damaged_manifest_is_kept_under_another_name_with_a_warning(project, damage, capsys):
    out = run("out", "run.steps=2")
    (out / "run.json").write_bytes(damage)

    loop.train(load(Path("run.toml")), out, resume=True, console=Console(width=200))

    warning = "warning: out/run.json: is damaged ("
    assert sum(line.startswith(warning) for line in capsys.readouterr().out.splitlines()) == 1
    assert (out / "run.json.damaged").read_bytes() == damage
    assert [s["step"] for s in json.loads((out / "run.json").read_text())["starts"]] == [2]


def test_git_state_has_commit_and_dirty_flag_and_is_none_outside_a_repository(
    tmp_path, monkeypatch
):
    assert manifest.git_state(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)
    (tmp_path / "file").write_text("1")
    untracked = manifest.git_state(tmp_path)
    subprocess.run(["git", "-C", str(tmp_path), "add", "file"], check=True)
    changed = manifest.git_state(tmp_path)
    monkeypatch.setenv("PATH", "")
    without_git = manifest.git_state(tmp_path)

    assert len(untracked["commit"]) == 40
    assert not untracked["dirty"]
    assert changed == {**untracked, "dirty": True}
    assert without_git is None


def test_git_state_with_a_name_that_is_not_utf8_is_dirty(tmp_path):
    name = os.fsdecode(b"\xff")
    try:
        (tmp_path / name).write_text("1")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (
        ["init", "-q"],
        ["config", "core.quotePath", "false"],
        ["commit", "-q", "--allow-empty", "-m", "first"],
        ["add", name],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    assert manifest.git_state(tmp_path)["dirty"]


# ---- samples ----


def test_samples_are_stored_by_step_and_those_of_repeated_steps_are_deleted(project):
    out = run("out", "run.prompt=to see")
    names = [path.name for path in sorted((out / "samples").iterdir())]
    RunLog(out, 2, tensorboard=False).close()

    assert names == ["step-000002.txt", "step-000004.txt"]
    assert (out / "samples" / "step-000002.txt").read_text().startswith("to see")
    assert [path.name for path in (out / "samples").iterdir()] == ["step-000002.txt"]


# ---- TensorBoard ----


def test_tensorboard_has_every_number_of_the_metrics_and_the_samples(project):
    out = run("out", "run.tensorboard=true")

    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    events = Events(out)
    for name in ("loss", "lr", "grad_norm", "tokens", "seconds", "valid_bits_per_byte"):
        expected = [record[name] for record in records if name in record]
        assert events.values(name) == pytest.approx(expected, rel=1e-6)
    name = "layers.0.mixer.q_proj"
    minus, zero, plus = records[-1]["weight_counts"][name]
    share = zero / (minus + zero + plus)
    assert events.values(f"weights 0/{name}")[-1] == pytest.approx(share, rel=1e-6)
    sample = (out / "samples" / "step-000004.txt").read_text()
    assert events.steps("sample/text_summary") == [2, 4]
    assert events.values("sample/text_summary")[-1].decode().strip() == sample.strip()


def test_tensorboard_of_a_resumed_run_has_each_step_once(project):
    run("out", "run.steps=3", "run.tensorboard=true")
    out = run("out", "run.steps=4", "run.tensorboard=true", resume=True)
    # As after a kill: step 4 was done and recorded, but its checkpoint is not there.
    shutil.rmtree(out / "checkpoints" / "step-000004")
    run("out", "run.steps=6", "run.tensorboard=true", resume=True)

    assert Events(out).steps("loss") == [1, 2, 3, 4, 5, 6]
    assert Events(out).steps("sample/text_summary") == [2, 3, 4, 6]


def test_missing_tensorboard_is_refused_with_its_extra(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard.writer", raising=False)

    with pytest.raises(ConfigError, match=r"install -e '\S+\[tensorboard\]'"):
        run("out", "run.tensorboard=true")


def test_log_of_another_process_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = NullRunLog()

    log.write({"step": 1})
    log.write_sample(1, "text")
    log.sync()
    log.close()

    assert (log.durations, log.warning, list(tmp_path.iterdir())) == ([], None, [])


def test_error_of_tensorboard_itself_ends_in_one_line(tmp_path, monkeypatch):
    writer = TensorBoardWriter(tmp_path, 0)
    monkeypatch.setattr(writer.writer, "add_scalar", lambda *_: (_ for _ in ()).throw(KeyError(5)))

    with pytest.raises(WriteError, match=r"tensorboard: cannot be written \(5\); checkpoints are"):
        writer.write({"step": 1, "loss": 1.0})
    writer.close()


def test_tensorboard_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.ModuleType("broken"))

    with pytest.raises(ConfigError, match="TensorBoard cannot be imported"):
        TensorBoardWriter(tmp_path, 0)
