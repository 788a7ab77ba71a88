"""Terminal commands: a model's sampling parameters, or llama.cpp's for a model without any."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from yocobit import Engine, cli
from yocobit.engine import SamplingConfig
from yocobit.pretrained import TINY

PROMPT = "And God said"
LLAMA_CPP = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}


@pytest.fixture
def model(tmp_path):
    """A function that returns a copy of the packaged model with these sampling parameters."""

    def copy(fields: dict) -> Path:
        directory = Path(shutil.copytree(TINY, tmp_path / "model"))
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, **fields}))
        return directory

    return copy


def generated(monkeypatch, capsys, model: Path, *options: str) -> str:
    """Return the text of `yocobit generate`, without its prompt."""
    command = ["yocobit", "generate", PROMPT, str(model), "-n", "24", "--threads", "1", *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (0, None)
    return capsys.readouterr().out.removeprefix(PROMPT).removesuffix("\n")


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        ({}, [], LLAMA_CPP),
        ({"do_sample": True}, [], LLAMA_CPP),
        ({}, ["--top-k", "3"], {**LLAMA_CPP, "top_k": 3}),
        ({"top_k": 5}, [], {"temperature": 1.0, "top_k": 5}),
        ({"temperature": 0.7}, ["--min-p", "0.2"], {"temperature": 0.7, "min_p": 0.2}),
        ({"do_sample": False}, [], {"temperature": 0.0}),
    ],
)
def test_generate_samples_with_the_parameters_of_the_model_or_of_llama_cpp(
    model, monkeypatch, capsys, fields, options, expected
):
    directory = model(fields)

    text = generated(monkeypatch, capsys, directory, "--seed", "3", *options)

    engine = Engine.load(directory, threads=1)
    sampling = SamplingConfig(**expected, seed=3)
    assert text == engine.generate(PROMPT, max_tokens=24, sampling=sampling)
