"""What `yocobit import` prints: warnings, one line about the model, and its summary."""

from __future__ import annotations

import json

import pytest
from published import publish, quantised_model, random_model

from yocobit.cli import run
from yocobit.importers import import_model

OFFLINE = {"linear_class": "bitlinear", "quantization_mode": "offline"}


@pytest.mark.parametrize(
    ("quantization", "head", "expected"),
    [
        (
            OFFLINE,
            None,
            "packed ternary; projections in ternary with one scale per matrix, ",
        ),
        (None, None, "dense F32; projections in f32, 32.00 bits per weight; "),
        (
            {**OFFLINE, "modules_to_not_convert": ["lm_head", "down_proj"]},
            "f16",
            "projections in ternary with one scale per matrix and f32, ",
        ),
    ],
)
def test_one_line_names_source_formats_and_traffic(tmp_path, quantization, head, expected):
    model = quantised_model("llama", quantization) if quantization else random_model("llama")
    lines: list[str] = []

    source = publish(model, tmp_path / "hf")
    packed = import_model(source, tmp_path / "model", head, report=lines.append)

    warning, line = lines
    assert warning.startswith(f"warning: {source}: holds no tokenizer.json, so the model accepts")
    assert line.startswith("imported from safetensors, ") and expected in line
    assert f"head in {packed.head_format.name}; " in line
    assert "bytes per token; `yocobit plan MODEL` predicts its speed" in line


def test_import_command_prints_notes_to_stderr_and_its_summary_to_stdout(tmp_path, capsys):
    settings = {"linear_class": "autobitlinear", "quantization_mode": "online"}
    source = publish(quantised_model("llama", settings), tmp_path / "hf")

    run(["import", str(source), str(tmp_path / "model"), "--head", "f32", "--json"])

    printed = capsys.readouterr()
    assert json.loads(printed.out)["parameters"] > 0
    masters, tokenizer, line = printed.err.splitlines()
    assert "master weights" in masters and "--tokenizer" in tokenizer
    assert "imported from safetensors, ternary master weights in F32; " in line
