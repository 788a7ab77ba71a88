"""What `yocobit import` prints: warnings, one line about the model, and its summary."""

from __future__ import annotations

import json

import pytest
from gguf_models import write_model
from published import edit, publish, quantised_model, random_model

from yocobit.cli import run
from yocobit.config import ModelConfig
from yocobit.importers import import_model

OFFLINE = {"linear_class": "bitlinear", "quantization_mode": "offline"}


@pytest.mark.parametrize(
    ("quantization", "head", "expected", "rounded"),
    [
        (
            OFFLINE,
            None,
            "packed ternary; projections in ternary with one scale per matrix, ",
            "embedding rounded to int8, head rounded to int8 (--head f16 or f32 keeps floats); ",
        ),
        (None, None, "dense F32; projections in f32, 32.00 bits per weight; ", ""),
        (
            {**OFFLINE, "modules_to_not_convert": ["lm_head", "down_proj"]},
            "f16",
            "projections in ternary with one scale per matrix and f32, ",
            "",
        ),
    ],
)
def test_one_line_names_source_formats_and_traffic(tmp_path, quantization, head, expected, rounded):
    model = quantised_model("llama", quantization) if quantization else random_model("llama")
    lines: list[str] = []

    source = publish(model, tmp_path / "hf")
    packed = import_model(source, tmp_path / "model", head, report=lines.append)

    warning, line = lines
    assert warning.startswith(f"warning: {source}: holds no tokenizer.json, so the model accepts")
    assert line.startswith("imported from safetensors, ") and expected in line
    assert f"head in {packed.head_format.name}; {rounded}" in line
    assert ("rounded" in line) == bool(rounded)
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


def notes(source, model) -> str:
    lines: list[str] = []
    import_model(source, model, report=lines.append)
    return "\n".join(lines)


def test_a_checkpoint_without_chat_template_says_what_it_cannot_do(tmp_path):
    with_both = write_model(tmp_path / "both.gguf", "llama")
    without = write_model(tmp_path / "text.gguf", "llama", {"tokenizer.chat_template": None})

    assert "warning" not in notes(with_both, tmp_path / "both")
    (line,) = [each for each in notes(without, tmp_path / "text").split("\n") if "warning" in each]
    assert line.startswith(f"warning: {without}: holds no chat template, so the model continues")
    assert line.endswith("import it again with --tokenizer and a directory that holds a template")


def test_the_packed_model_keeps_the_context_of_training(tmp_path):
    source = publish(random_model("llama", max_position_embeddings=2048), tmp_path / "hf")
    gguf = write_model(tmp_path / "m.gguf", "llama", {"context_length": 1024})

    packed = [import_model(each, tmp_path / each.name[:1]) for each in (source, gguf)]

    assert [model.config.trained_context for model in packed] == [2048, 1024]
    stored = ModelConfig.from_json(packed[0].path / "config.json")
    assert stored == packed[0].config
    edit(source, max_position_embeddings=None)
    assert import_model(source, tmp_path / "none").config.trained_context is None
    assert "trained_context" not in (tmp_path / "none" / "config.json").read_text()
