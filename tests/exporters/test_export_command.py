"""yocobit export: its output."""

from __future__ import annotations

import json

import pytest
from exported_models import random_model
from typer.testing import CliRunner

from yocobit.cli import app
from yocobit.importers.gguf.container import GGUFFile


def run(*arguments):
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_export_to_hf_prints_the_directory_and_its_context(tmp_path):
    model = random_model(tmp_path / "model")

    output = run(model.path, tmp_path / "hf", "--to", "hf", "--context", 2048)

    assert output == f"{tmp_path / 'hf'}: context length 2048\n"
    fields = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert fields["max_position_embeddings"] == 2048


@pytest.mark.parametrize(
    ("options", "length"), [((), 1024), (("--context", 2048), 2048)], ids=["default", "given"]
)
def test_the_context_of_training_is_the_default(tmp_path, options, length):
    model = random_model(tmp_path / "model", trained_context=1024)

    run(model.path, tmp_path / "hf", "--to", "hf", *options)
    run(model.path, tmp_path / "x.gguf", "--to", "gguf", *options)

    fields = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert fields["max_position_embeddings"] == length
    assert GGUFFile(tmp_path / "x.gguf").metadata["llama.context_length"] == length


def test_export_to_gguf_prints_what_differs(tmp_path):
    model = random_model(tmp_path / "model", scale_dtype="<f2")
    out = tmp_path / "x.gguf"

    output = run(model.path, out, "--to", "gguf", "--type", "tq1_0", "--head", "f16")

    assert output.splitlines() == [
        f"{out}: context length 4096",
        "embedding and head are rounded to float16",
        "the file has no tokenizer, as the model has none",
    ]
    file = GGUFFile(out)
    assert file.metadata["general.file_type"] == 36  # TQ1_0
    assert file.metadata["llama.context_length"] == 4096


@pytest.mark.parametrize(
    ("to", "out", "key"),
    [("hf", "hf", "max_position_embeddings"), ("gguf", "x.gguf", "llama.context_length")],
)
def test_export_writes_the_trained_context_by_default(tmp_path, to, out, key):
    model = random_model(tmp_path / "model", scale_dtype="<f2", trained_context=1024)

    output = run(model.path, tmp_path / out, "--to", to)

    assert output.splitlines()[0] == f"{tmp_path / out}: context length 1024"
    if to == "hf":
        written = json.loads((tmp_path / out / "config.json").read_text())
    else:
        written = GGUFFile(tmp_path / out).metadata
    assert written[key] == 1024


@pytest.mark.parametrize("option", [("--type", "tq1_0"), ("--head", "f16")])
def test_tensor_types_of_gguf_are_refused_for_hf(tmp_path, option):
    model = random_model(tmp_path / "model")
    arguments = ["export", str(model.path), str(tmp_path / "hf"), "--to", "hf", *option]

    result = CliRunner().invoke(app, arguments)

    assert "--type and --head require --to gguf" in str(result.exception)
    assert not (tmp_path / "hf").exists()


def test_export_prints_json(tmp_path):
    model = random_model(tmp_path / "model")

    output = run(model.path, tmp_path / "hf", "--to", "hf", "--json")

    assert json.loads(output) == {"out": str(tmp_path / "hf"), "notes": []}
