"""Checkpoints: incomplete ones are never loaded, and a loaded one equals the saved run."""

import json
from pathlib import Path

import pytest
import torch

from yocobit.config import ConfigError, preset
from yocobit.data.tokenizer import train_tokenizer
from yocobit.model import Decoder
from yocobit.packing import checkpoints
from yocobit.training import checkpoint
from yocobit.training.checkpoint import RunState
from yocobit.training.config import OptimConfig
from yocobit.training.optim import Optimizers
from yocobit.training.state import GradientSpikeGuard

TOKENIZER = train_tokenizer(["one text"], 257)
FILES = [
    "model.safetensors",
    "optimizer.safetensors",
    "config.json",
    "train.json",
    "tokenizer.json",
    "state.json",
]


def save(
    run_dir: Path, step: int, keep: int = 9, best: int | None = None, **changes
) -> tuple[Path, Decoder]:
    torch.manual_seed(step)
    model = Decoder(preset("nano").replace(**changes))
    optimizers = Optimizers(model, OptimConfig(optimizer="muon"))
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    optimizers.step(1.0, 1.0)
    state = RunState("hash", step=step, best_step=best)
    path = checkpoint.save(
        run_dir, state, model, optimizers.state(), {"run": {"seed": 1}}, TOKENIZER, keep
    )
    return path, model


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_load_model_returns_the_saved_weights(tmp_path, tie_embeddings):
    path, model = save(tmp_path, 7, tie_embeddings=tie_embeddings)

    loaded = checkpoint.load_model(path)

    assert loaded.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert (loaded.head.weight is loaded.embedding.weight) == tie_embeddings


def test_load_state_returns_the_saved_progress(tmp_path):
    path, _ = save(tmp_path, 7)

    assert checkpoint.load_state(path) == RunState("hash", step=7)


def test_load_state_restores_the_spike_guard(tmp_path):
    guard = GradientSpikeGuard(norms=[0.1, 1 / 3], n_skipped=3, n_in_a_row=1)
    model = Decoder(preset("nano"))

    state = RunState("hash", step=1, guard=guard)
    path = checkpoint.save(tmp_path, state, model, {}, {}, TOKENIZER, 1)

    assert checkpoint.load_state(path).guard == guard


def test_read_train_returns_the_saved_settings(tmp_path):
    path, _ = save(tmp_path, 7)

    assert checkpoints.read_train(path) == {"run": {"seed": 1}}


def test_last_is_the_largest_step_not_the_last_name(tmp_path):
    save(tmp_path, 999_999)
    newest, _ = save(tmp_path, 1_000_000)

    assert checkpoints.last(tmp_path) == newest


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["absent", "shorter", "empty"])
def test_torn_checkpoint_is_not_the_last(tmp_path, name, damage):
    whole, _ = save(tmp_path, 1)
    torn, _ = save(tmp_path, 2)
    content = (torn / name).read_bytes()
    (torn / name).unlink()
    if damage != "absent":
        (torn / name).write_bytes(content[: len(content) // 2] if damage == "shorter" else b"")

    assert checkpoints.last(tmp_path) == whole


def test_torn_checkpoint_is_replaced_when_its_step_is_saved_again(tmp_path):
    path, _ = save(tmp_path, 2)
    (path / "model.safetensors").write_bytes(b"torn")

    save(tmp_path, 2)

    assert checkpoints.last(tmp_path) == path


def test_complete_checkpoint_is_kept_when_its_step_is_saved_again(tmp_path):
    path, _ = save(tmp_path, 2)
    inode = (path / "model.safetensors").stat().st_ino

    save(tmp_path, 2)

    assert (path / "model.safetensors").stat().st_ino == inode


def test_save_keeps_the_newest(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step, keep=2)

    assert names(tmp_path) == ["step-000002", "step-000010"]


def test_save_keeps_the_best_and_the_newest(tmp_path):
    for step, best in ((1, 1), (2, 2), (3, 2), (10, 2)):
        save(tmp_path, step, keep=1, best=best)

    assert names(tmp_path) == ["step-000002", "step-000010"]


def test_best_and_last_name_checkpoints(tmp_path):
    for step, best in ((1, 1), (2, 2), (3, 2)):
        save(tmp_path, step, best=best)
    directory = tmp_path / "checkpoints"

    assert checkpoints.find(directory / "best") == directory / "step-000002"
    assert checkpoints.find(directory / "last") == directory / "step-000003"
    assert checkpoints.find(tmp_path) == directory / "step-000003"
    assert checkpoint.load_model(directory / "best").config == preset("nano")


@pytest.mark.parametrize("name", ["best", "last"])
def test_best_and_last_of_a_run_without_them_are_refused(tmp_path, name):
    path = tmp_path / "checkpoints" / name

    with pytest.raises(ConfigError, match=f"{name}: the run has no such checkpoint yet"):
        checkpoints.find(path)


def test_torn_best_checkpoint_is_ignored(tmp_path):
    torn, _ = save(tmp_path, 1, best=1)
    save(tmp_path, 2, best=1)
    (torn / "model.safetensors").write_bytes(b"torn")

    assert checkpoints.best(tmp_path) is None


def test_remove_partial_keeps_complete_checkpoints(tmp_path):
    save(tmp_path, 1)
    partial = tmp_path / "checkpoints" / ".partial-1234"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")

    checkpoint.remove_partial(tmp_path)

    assert names(tmp_path) == ["step-000001"]


def test_find_refuses_a_missing_path(tmp_path):
    with pytest.raises(ConfigError, match="absent: no such run or checkpoint"):
        checkpoints.find(tmp_path / "absent")


def test_find_refuses_a_run_without_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match="holds no complete checkpoint"):
        checkpoints.find(tmp_path)


def test_load_model_names_the_tensor_that_does_not_match(tmp_path):
    path, _ = save(tmp_path, 1)
    fields = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**fields, "d_ff": 64}))
    (path / "state.json").unlink()  # it has the size and the hash of config.json

    with pytest.raises(ConfigError, match=r"does not match config.json; 'layers.0.ffn.down_proj"):
        checkpoint.load_model(path)


def test_load_model_refuses_a_file_that_is_not_safetensors(tmp_path):
    path, _ = save(tmp_path, 1)
    (path / "model.safetensors").write_bytes(b"not safetensors")
    (path / "state.json").unlink()

    with pytest.raises(ConfigError, match=r"model.safetensors: cannot be read"):
        checkpoint.load_model(path)


def test_checkpoints_that_cannot_be_listed_are_an_error(tmp_path, monkeypatch):
    """As a run without checkpoints, it would be started again."""
    save(tmp_path, 1)

    def listdir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.listdir", listdir)

    with pytest.raises(PermissionError):
        checkpoints.last(tmp_path)


def test_state_has_the_hash_of_every_file(tmp_path):
    path, _ = save(tmp_path, 1)
    state = checkpoints.read_state(path)

    names = {file.name for file in path.iterdir()} - {"state.json"}
    assert state.size_bytes.keys() == names
    assert state.sha256.keys() == names | {"state.json"}  # its own is of its other fields
    assert checkpoints.damage(path) is None
