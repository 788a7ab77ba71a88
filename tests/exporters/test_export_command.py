"""yocobit export: its output."""

from __future__ import annotations

import json

from random_models import random_model
from typer.testing import CliRunner

from yocobit.cli import app


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


def test_export_prints_json(tmp_path):
    model = random_model(tmp_path / "model")

    output = run(model.path, tmp_path / "hf", "--to", "hf", "--json")

    assert json.loads(output) == {"out": str(tmp_path / "hf"), "notes": []}
