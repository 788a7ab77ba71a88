"""Conversion of a checkpoint: published integers and scales are stored as they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_models import write_model
from published import publish, random_model

from yocobit.config import ConfigError, preset
from yocobit.importers import IntegerMatrix, import_model
from yocobit.importers.convert import stored_tensors
from yocobit.importers.gguf.reader import GGUFCheckpoint
from yocobit.packing.formats import TERNARY
from yocobit.packing.scales import PerGroup, PerRow
from yocobit.packing.stored_parameters import StoredParameter

NAME = "layers.0.ffn.up_proj.weight"
GROUPS = replace(TERNARY, name="groups", scale=PerGroup(128, "F16"))
ROWS = replace(TERNARY, name="rows", scale=PerRow("F32"))
SHAPE = (13, 330)


class OneMatrix:
    """A checkpoint with one matrix."""

    path = Path("source")
    config = preset("nano")

    def __init__(self, matrix: IntegerMatrix) -> None:
        self._matrix = matrix

    def read(self, name, shape):
        return self._matrix


def integers() -> np.ndarray:
    return np.random.default_rng(0).integers(-1, 2, SHAPE).astype(np.int8)


def tensors(matrix: IntegerMatrix, format) -> dict[str, np.ndarray]:
    parameters = {NAME: StoredParameter(format, SHAPE, "projection")}
    return dict(stored_tensors(OneMatrix(matrix), parameters))


@pytest.mark.parametrize(
    ("format", "scale"),
    [
        (GROUPS, np.linspace(-1, 1, 39).reshape(13, 3).astype(np.float16)),
        (GROUPS, np.exp2(-np.arange(39)).clip(2**-24).reshape(13, 3).astype(np.float32)),
        (ROWS, np.linspace(0.1, 1, 13).astype(np.float32)),
        (ROWS, np.array([0.3], dtype=np.float32)),
        (TERNARY, np.array([0.3], dtype=np.float32)),
    ],
)
def test_stored_integers_and_scales_are_those_published(format, scale):
    matrix = IntegerMatrix(integers(), scale)

    stored = tensors(matrix, format)

    for name, spec in format.tensors(NAME, SHAPE).items():
        assert stored[name].shape == spec.shape
    columns = np.repeat(scale, 128, axis=1)[:, :330] if scale.ndim == 2 else scale[:, None]
    np.testing.assert_array_equal(
        format.dequantize(*stored.values(), *SHAPE), matrix.integers * columns.astype(np.float32)
    )


@pytest.mark.parametrize("scale", [0.1, 1e5, 2**-25])
def test_scale_that_float16_does_not_hold_is_refused_with_its_tensor(scale):
    scales = np.full((13, 3), 0.25, dtype=np.float32)
    scales[7, 1] = scale

    with pytest.raises(
        ConfigError, match=f"^source: tensor '{NAME}' must have scales .* {scale:g};"
    ):
        tensors(IntegerMatrix(integers(), scales), GROUPS)


@pytest.fixture(params=["gguf", "hugging face"])
def source(request, tmp_path) -> Path:
    """A checkpoint with the end token 258, a sampling default and a template."""
    if request.param == "gguf":
        keys = {"tokenizer.ggml.eos_token_id": 258, "tokenizer.chat_template": "own"}
        return write_model(tmp_path / "m.gguf", "llama", keys)
    path = publish(random_model("llama", vocab_size=512), tmp_path / "hf", eos_token_id=258)
    (path / "chat_template.jinja").write_text("own")
    return path


@pytest.mark.parametrize(
    ("files", "end", "template"),
    [
        ({}, 258, "own"),
        ({"generation_config.json": '{"eos_token_id": 5, "top_k": 3}'}, 5, "own"),
        ({"chat_template.jinja": "other"}, 258, "other"),
    ],
)
def test_files_of_a_tokenizer_directory_replace_those_of_the_checkpoint(
    source, tmp_path, files, end, template
):
    other = tmp_path / "other"
    tokenizer = GGUFCheckpoint(write_model(tmp_path / "t.gguf", "llama")).text_files().tokenizer
    other.mkdir()
    (other / "tokenizer.json").write_bytes(tokenizer)
    for name, content in files.items():
        (other / name).write_text(content)

    packed = import_model(source, tmp_path / "model", tokenizer=other)

    generation = json.loads((packed.path / "generation_config.json").read_text())
    assert (packed.path / "tokenizer.json").read_bytes() == tokenizer
    assert generation["eos_token_id"] == end
    assert generation.get("top_k") == (3 if end == 5 else None)
    assert (packed.path / "chat_template.jinja").read_text().endswith(template)


def test_tokenizer_directory_without_a_tokenizer_is_refused(source, tmp_path):
    with pytest.raises(ConfigError, match=r"none: holds no tokenizer\.json; name a directory with"):
        import_model(source, tmp_path / "model", tokenizer=tmp_path / "none")
