"""Damage of a run that leaves sizes equal, files of other versions, and diverged runs."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from training_runs import assert_same_run, records, run

from yocobit.config import ConfigError
from yocobit.packing import checkpoints, pack
from yocobit.tracking.curves import read_runs
from yocobit.training import TrainingError, checkpoint, load_model, loop
from yocobit.training.config import load as load_config
from yocobit.training.errors import DamagedCheckpoint


@pytest.fixture
def damaged(straight, tmp_path) -> Path:
    """A copy of a finished run, with checkpoints of steps 8 and 12."""
    return shutil.copytree(straight, tmp_path / "run")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def edit(path: Path, **fields) -> None:
    content = {**json.loads(path.read_text()), **fields}
    if "state.json" in content.get("sha256", {}):
        content["sha256"]["state.json"] = checkpoints.state_digest(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("state.json", None),  # a digit of its step
        ("model.safetensors", -1),
        ("optimizer.safetensors", -100),
        ("train.json", 3),
        ("tokenizer.json", 100),
        ("config.json", 5),
    ],
)
def test_resume_falls_back_from_a_damaged_checkpoint_with_a_warning(
    toml, damaged, straight, capsys, name, at
):
    newest = checkpoints.last(damaged)
    if name == "state.json":
        text = (newest / name).read_text()
        (newest / name).write_text(text.replace('"step": 12', '"step": 17'))
    else:
        flip(newest / name, at)

    with pytest.raises(DamagedCheckpoint, match=f"is saved, but .* {name} is damaged.*check the d"):
        loop.train(load_config(toml), damaged, resume=True, console=Console(width=1000))

    said = capsys.readouterr().out
    assert f"{newest}: {name} is damaged: its SHA-256 differs from that in " in said
    assert f"resuming from {damaged}/checkpoints/step-000008\n" in said
    assert (damaged / "checkpoints" / "damaged-step-000012").is_dir()
    assert checkpoints.last(damaged) == newest
    assert_same_run(damaged, straight)


def test_resume_without_an_intact_checkpoint_is_refused_and_changes_nothing(toml, damaged):
    for path in checkpoints.complete(damaged):
        flip(path / "model.safetensors", -1)
    before = sorted(damaged.rglob("*"))

    with pytest.raises(ConfigError, match=r"step-000012: model.* no earlier checkpoint is intact"):
        run(toml, damaged, resume=True)

    assert sorted(damaged.rglob("*")) == before


def test_resume_reports_an_incomplete_checkpoint(toml, damaged, capsys):
    newest = checkpoints.last(damaged)
    (newest / "model.safetensors").write_bytes(b"torn")

    loop.train(load_config(toml), damaged, resume=True, console=Console(width=1000))

    assert f"warning: {newest}: is incomplete; resuming from" in capsys.readouterr().out


def test_damaged_checkpoint_is_neither_packed_nor_loaded(damaged, tmp_path):
    flip(checkpoints.last(damaged) / "model.safetensors", -1)
    message = r"step-000012: model.safetensors is damaged: its SHA-256 .*; name an earlier checkp"

    for path in (damaged, checkpoints.last(damaged)):
        with pytest.raises(ConfigError, match=message):
            pack(path, tmp_path / "model")
        with pytest.raises(ConfigError, match=message):
            load_model(path)

    assert not (tmp_path / "model").exists()
    load_model(damaged / "checkpoints" / "step-000008")


def test_run_whose_newest_checkpoint_is_torn_is_not_packed_from_an_older_one(damaged, tmp_path):
    newest = checkpoints.last(damaged)
    (newest / "generation_config.json").write_text("{}")

    with pytest.raises(ConfigError, match=r"step-000012: is incomplete: .*name an earlier checkp"):
        pack(damaged, tmp_path / "model")

    assert not (tmp_path / "model").exists()


def test_damaged_optimizer_does_not_keep_a_checkpoint_from_being_packed(damaged, tmp_path):
    flip(checkpoints.last(damaged) / "optimizer.safetensors", -1)

    assert pack(damaged, tmp_path / "model")


def test_named_checkpoint_that_is_torn_is_refused(damaged):
    newest = checkpoints.last(damaged)
    (newest / "tokenizer.json").write_bytes(b"{}")

    with pytest.raises(ConfigError, match=r"step-000012: is incomplete: tokenizer.json is missing"):
        checkpoints.find(newest)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc/hostname", "\0"])
def test_state_that_names_no_file_of_its_checkpoint_is_refused_or_passed_over(damaged, name):
    newest = checkpoints.last(damaged)
    for field in ("size_bytes", "sha256"):
        named = json.loads((newest / "state.json").read_text())[field]
        edit(newest / "state.json", **{field: {**named, name: named["train.json"]}})

        with pytest.raises(ConfigError, match=r"state\.json: .*regex"):
            checkpoints.find(newest)
        assert checkpoints.last(damaged).name == "step-000008"


def test_checkpoint_with_more_threads_than_a_machine_has_is_not_packed(damaged, tmp_path):
    newest = checkpoints.last(damaged)
    edit(newest / "state.json", threads=1_000_000)

    with pytest.raises(ConfigError, match=r"state\.json: threads: Expected `int` <= 4096"):
        pack(newest, tmp_path / "model")


def without_hashes(run_dir: Path) -> Path:
    """Make the last checkpoint one of an earlier version; return it."""
    newest = checkpoints.last(run_dir)
    edit(newest / "state.json", sha256={})
    return newest


def test_checkpoint_without_hashes_is_resumed(toml, damaged):
    without_hashes(damaged)

    assert run(toml, damaged, "run.steps=14", resume=True).name == "step-000014"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.0.mixer.q_proj.weight/momentum"), "is absent but must be"),
        (
            lambda t: t.update({"layers.0.mixer.q_proj.weight/momentum": torch.zeros(3)}),
            r"is \[3\] but must be \[",
        ),
        (lambda t: t.update({"x/momentum": torch.zeros(3)}), "'x/momentum' is .* must be absent"),
        (lambda t: t["embedding.weight/exp_avg"].fill_(torch.nan), "must be finite"),
    ],
)
def test_optimizer_state_that_does_not_fit_is_refused(toml, damaged, change, message):
    newest = without_hashes(damaged)
    tensors = load_file(newest / "optimizer.safetensors")
    change(tensors)
    save_file(tensors, newest / "optimizer.safetensors", metadata={"format": "pt"})
    size = (newest / "optimizer.safetensors").stat().st_size
    sizes = checkpoints.read_state(newest).size_bytes
    edit(newest / "state.json", size_bytes={**sizes, "optimizer.safetensors": size})

    with pytest.raises(ConfigError, match=rf"optimizer.safetensors: .*{message}"):
        run(toml, damaged, "run.steps=14", resume=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guard": 5}, "guard: Expected `object`, got `int`"),
        ({"step": "x"}, "step: Expected `int`, got `str`"),
        ({"step": -1}, "step: Expected `int` >= 0"),
        ({"new_field": 1}, "unknown field `new_field`; a newer version of yocobit has written it"),
        ({"guard": {"new": 1}}, "unknown field `new`; a newer version"),
    ],
)
def test_state_of_another_kind_is_refused_in_one_line(toml, damaged, fields, message):
    edit(checkpoints.last(damaged) / "state.json", **fields)

    with pytest.raises(ConfigError, match=rf"state.json: .*{re.escape(message)}"):
        run(toml, damaged, resume=True)


def test_setting_of_a_newer_version_is_refused_in_one_line(toml, damaged):
    newest = without_hashes(damaged)
    train = json.loads((newest / "train.json").read_text())
    train["run"]["new"] = 1
    (newest / "train.json").write_text(json.dumps(train))
    size = (newest / "train.json").stat().st_size
    sizes = checkpoints.read_state(newest).size_bytes
    edit(newest / "state.json", size_bytes={**sizes, "train.json": size})

    with pytest.raises(ConfigError, match=r"train.json \[run\]: unknown key 'new'.*newer version"):
        run(toml, damaged, resume=True)


@pytest.mark.parametrize("n_steps", [2, 5])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_diverged_run_ends_with_an_error_and_saves_no_weights(toml, tmp_path, n_steps, optimizer):
    out = tmp_path / "run"
    settings = ["optim.learning_rate=1e30", f"optim.optimizer={optimizer}"]

    with pytest.raises(TrainingError, match=r"the run has diverged, .*not saved.*none yet; lower"):
        run(toml, out, *settings, f"run.steps={n_steps}", "run.checkpoint_every=1")

    assert checkpoints.last(out) is None
    assert "NaN" not in (out / "metrics.jsonl").read_text()


def test_diverged_run_keeps_its_earlier_checkpoints(toml, stopped, monkeypatch):
    kept = [path.name for path in checkpoints.complete(stopped)]
    monkeypatch.setattr(loop, "rate_factor", lambda *_: 1e30)

    with pytest.raises(TrainingError, match=rf"last checkpoint: .*{kept[-1]}"):
        run(toml, stopped, resume=True)

    assert [path.name for path in checkpoints.complete(stopped)] == kept


def test_validation_loss_that_is_not_finite_is_a_divergence(toml, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "bits_per_byte", lambda *_: float("nan"))

    with pytest.raises(TrainingError, match="diverged, bits/byte on the validation text are nan"):
        run(toml, tmp_path / "run", "run.steps=2")

    assert checkpoints.last(tmp_path / "run") is None


def test_weights_that_are_not_finite_are_neither_loaded_nor_resumed(toml, damaged):
    newest = without_hashes(damaged)
    weights = load_file(newest / "model.safetensors")
    weights["embedding.weight"][3, 0] = torch.inf
    save_file(weights, newest / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ConfigError, match=r"tensor 'embedding.weight' must be finite .* diverged"):
        load_model(newest)
    with pytest.raises(ConfigError, match=r"tensor 'embedding.weight' must be finite"):
        run(toml, damaged, resume=True)


def test_first_above_names_a_tensor():
    tensors = {"a": torch.ones(3), "empty": torch.ones(0), "b": torch.tensor([1.0, -torch.inf])}

    assert checkpoint.first_above(tensors) == "b"
    assert checkpoint.first_above({"a": torch.ones(3)}) is None
    assert checkpoint.first_above({"a": torch.tensor([torch.nan, 1.0])}) == "a"
    assert checkpoint.first_above({"a": torch.tensor([0.0, -8.0])}, 8.0) == "a"


@pytest.mark.parametrize("name", ["train-0-00000.bin", "valid-00000.bin"])
def test_shard_with_another_token_is_refused_until_it_is_deleted(toml, damaged, straight, name):
    shard = damaged / "data" / name
    shard.write_bytes(b"\x05\x00" + shard.read_bytes()[2:])

    with pytest.raises(ConfigError, match=rf"{name}: is damaged: its SHA-256 .*; delete the file"):
        run(toml, damaged, resume=True)
    shard.unlink()
    run(toml, damaged, resume=True)

    assert_same_run(damaged, straight)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b"\xff\n", "is not the record of a step"),
        (b"{}\n", "missing required field `step`"),
        (b'{"step": "x"}\n', "Expected `int`, got `str`"),
        (b'{"step": 1, "weight_counts": {"a": 5}}\n', "Expected `array`, got `int`"),
        (b"[" * 100_000 + b"\n", "is not the record of a step"),
    ],
)
def test_damaged_metrics_are_set_aside_by_resume_and_refused_by_plot(
    toml, damaged, tmp_path, capsys, damage, message
):
    metrics = damaged / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    content = b"".join([*lines[:3], damage, *lines[4:]])
    metrics.write_bytes(content)

    with pytest.raises(ConfigError, match=rf"metrics.jsonl:4: .*{re.escape(message)}.*delete the"):
        read_runs([damaged])
    loop.train(load_config(toml), damaged, resume=True, console=Console(width=1000))

    assert f"warning: {metrics}:4: " in capsys.readouterr().out
    assert (damaged / "metrics.jsonl.damaged").read_bytes() == content
    assert [record["step"] for record in records(damaged)] == [1, 2, 3]


def test_incomplete_last_record_is_ignored(damaged):
    with (damaged / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 13, "lo')

    (curves,) = read_runs([damaged])

    assert len(curves.records) == 12
