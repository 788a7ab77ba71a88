"""What a path is that no command can open, and the command that helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yocobit import hub
from yocobit.errors import ConfigError
from yocobit.hub.kind import not_packed, not_trained
from yocobit.pretrained import TINY


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write(path: str, content: str = "") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content)


def test_tiny_is_the_packaged_model_unless_a_path_has_its_name():
    assert hub.resolve("tiny") == TINY
    Path("tiny").mkdir()
    assert hub.resolve("tiny") == Path("tiny")


def test_a_file_of_a_packed_model_stands_for_its_directory():
    assert hub.resolve(TINY / "model.safetensors") == TINY


def test_a_packed_model_has_no_fault():
    assert not_packed(TINY) is None


@pytest.mark.parametrize(
    ("files", "path", "line"),
    [
        (["runs/a/.yocobit.lock"], "runs/a", "is a run, not a packed model; run: yocobit pack"),
        (["c/optimizer.safetensors"], "c", "is a checkpoint, not a packed model; run: yocobit"),
        (["a/adapter_config.json"], "a", "is a LoRA adapter, not a model; merge it"),
        (["g/x-q1.gguf", "g/x-q2.gguf"], "g", "holds 2 GGUF files; name one, such as g/x-q1.gguf"),
        (["p/config.json", "p/pytorch_model.bin"], "p", "holds pickled weights, which could run"),
        (["x.pt"], "x.pt", "holds pickled weights, which could run code; choose"),
        (["x.safetensors"], "x.safetensors", "is a file of tensors without config.json next to it"),
        (["tiny.toml"], "tiny.toml", "is a training configuration; train it with: yocobit train"),
        ([], "https:/example.com/x.gguf", "is not the URL of a model on huggingface.co; download"),
        ([], "tniy", "no such file or directory; did you mean tiny?"),
        (["models/mine/x"], "models/mien", "no such file or directory; did you mean models/mine?"),
        ([], "nothing/like-it.gguf", "no such file; give the path of a model"),
        ([], "nothing-like-it", None),
        (["empty/x.txt"], "empty", None),
    ],
)
def test_the_fault_of_a_path_names_what_it_is_and_the_remedy(files, path, line):
    for file in files:
        write(file)

    fault = not_packed(Path(path))

    assert fault == line or (fault is not None and fault.startswith(line))


def test_shards_without_their_index_are_one_line():
    write("llama/config.json", json.dumps({"model_type": "llama"}))
    write("llama/model-00001-of-00002.safetensors")

    with pytest.raises(ConfigError, match=r"llama: holds shards, such as model-00001.*copy it"):
        hub.resolve("llama")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tiny", "is packed already; run it with: yocobit chat tiny"),
        (str(TINY), "is packed already"),
        ("m.gguf", "is a GGUF file, not a checkpoint of yocobit train; run: yocobit import m.gguf"),
        ("llama", "is a checkpoint in Hugging Face format, not a checkpoint of yocobit train; run"),
        ("org/name", "no such run or checkpoint; if it is a model on the hub, run: yocobit pull"),
        ("own", None),
        ("missing", None),
    ],
)
def test_pack_names_the_command_for_a_model_that_was_not_trained_here(path, words):
    write("m.gguf", "GGUF")
    for name, kind in (("llama", "llama"), ("own", "yocobit")):
        write(f"{name}/config.json", json.dumps({"model_type": kind}))
        write(f"{name}/model.safetensors")

    fault = not_trained(Path(path))

    assert fault == words or (fault is not None and fault.startswith(words))
