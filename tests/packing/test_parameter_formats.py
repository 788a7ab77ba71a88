"""Formats of single parameters: what the writer records, and what the reader makes of it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from yocobit.config import ConfigError, preset
from yocobit.engine import Engine
from yocobit.packing import PackedModelError, read_model, verify
from yocobit.packing.file_format import DTYPES, header_sha256
from yocobit.packing.formats import FORMATS
from yocobit.packing.stored_parameters import stored_parameters
from yocobit.packing.writer import write_model

NANO = preset("nano").replace(vocab_size=64, layers=("full", "window"))
DENSE = NANO.replace(weights="dense", sub_norm=False)
QUERY, UP, HEAD = "layers.0.mixer.q_proj.weight", "layers.1.ffn.up_proj.weight", "head.weight"


def write(directory: Path, config=NANO, weights=None, head=None, **formats):
    """Write a random model in which `formats` (dots as __) replace those of single parameters."""
    named = {name.replace("__", "."): FORMATS[format] for name, format in formats.items()}
    parameters = stored_parameters(config, weights, head, named)
    rng = np.random.default_rng(0)

    def values(stored, tensor, name, spec):
        if tensor != name:
            return np.full(spec.shape, 0.05, DTYPES[spec.dtype])
        if stored.format.is_integer:
            valid = np.flatnonzero(stored.format.valid_bytes).astype(np.uint8)
            return rng.choice(valid, spec.shape).view(DTYPES[spec.dtype])
        return rng.normal(1, 0.1, spec.shape).astype(DTYPES[spec.dtype])

    tensors = (
        (tensor, values(stored, tensor, name, spec))
        for name, stored in parameters.items()
        for tensor, spec in stored.format.tensors(name, stored.shape).items()
    )
    return write_model(directory, config, parameters, tensors)


def recorded(model) -> dict[str, str]:
    return json.loads(model.metadata.get("formats", "{}"))


@pytest.mark.parametrize("config", [NANO, DENSE, NANO.replace(tie_embeddings=True)])
@pytest.mark.parametrize("head", [None, "int8", "int4", "f16", "f32"])
def test_formats_that_dtypes_imply_are_not_recorded(tmp_path, config, head):
    model = write(tmp_path / "model", config, head=head)

    assert "formats" not in model.metadata
    assert read_model(model.path).parameters == model.parameters
    default = "f32" if config.weights == "dense" else "int8"
    embedding = "int8" if head == "int4" else head or default
    assert model.head_format.name == (head or default)
    assert model.parameters["embedding.weight"].format.name == embedding


@pytest.mark.parametrize(
    ("config", "formats"),
    [
        (NANO, {HEAD: "ternary"}),
        (NANO, {HEAD: "ternary_row"}),
        (NANO.replace(tie_embeddings=True), {HEAD: "ternary"}),
        (NANO, {QUERY: "f32"}),  # the first projection
        (NANO, {UP: "f16", QUERY: "f32"}),
        (NANO, {UP: "ternary_row"}),
        (NANO, {"embedding.weight": "f16"}),
        (DENSE, {QUERY: "f16"}),
        (DENSE, {UP: "f16", HEAD: "int4"}),
    ],
)
def test_other_formats_are_recorded_and_read_again(tmp_path, config, formats):
    model = write(tmp_path / "m", config, **{n.replace(".", "__"): f for n, f in formats.items()})

    again = read_model(model.path)

    assert recorded(model)
    assert again.parameters == model.parameters
    assert {name: again.parameters[name].format.name for name in formats} == formats
    others = {p.format.name for n, p in again.parameters.items() if n not in formats}
    assert others <= {config.weights, "int8", "f32"}
    assert again.projection_format.weights == config.weights
    assert verify(again) == []
    assert np.isfinite(Engine(again, threads=1, kernels=None).logits([1, 2, 3], "f32")).all()


def test_formats_are_recorded_for_fewest_parameters(tmp_path):
    model = write(tmp_path / "model", layers__1__ffn__up_proj__weight="f16")

    assert recorded(model) == {UP: "f16"}


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        ("{", "formats: is not valid JSON"),
        ("[1]", "formats: Expected `object`"),
        ("[" * 100_000, "formats: "),
        ('{"head.weight": 3}', "formats: "),
        ('{"head.weight": "x"}', "format of 'head.weight' must be one of ternary, .* but is 'x'"),
        ('{"tail": "f16"}', "formats must name parameters of the model but has 'tail'"),
        ('{"norm.weight": "f16"}', "format of 'norm.weight' must be f32 but is f16"),
        ('{"embedding.weight": "int4"}', "'embedding.weight' must be .*int8 or .* but is int4"),
        (f'{{"{UP}": "int8"}}', f"format of '{UP}' must be ternary or .* but is int8"),
        (f'{{"{HEAD}": "sign"}}', f"format of '{HEAD}' must be .* but is sign"),
        (f'{{"{HEAD}": "ternary"}}', f"tensor '{HEAD}' must be U8"),
        (f'{{"{UP}": "f32"}}', f"tensor {UP}_scale|'{UP}_scale' must not be there"),
    ],
)
def test_reader_rejects_invalid_formats_in_one_line(tmp_path, formats, message):
    model = write(tmp_path / "model")
    raw = model.file.read_bytes()
    begin = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:begin])
    header["__metadata__"]["formats"] = formats
    header["__metadata__"]["header_sha256"] = header_sha256(header)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    model.file.write_bytes(struct.pack("<Q", len(text)) + text + raw[begin:])

    with pytest.raises(PackedModelError, match=message) as raised:
        read_model(model.path)

    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1000
    assert str(model.file) in str(raised.value)


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        ({"tail": "f16"}, "must name parameters of the model but has 'tail'"),
        ({"norm.weight": "f16"}, "format of 'norm.weight' must be f32"),
        ({"head.weight": "sign"}, "format of 'head.weight' must be"),
    ],
)
def test_stored_parameters_rejects_a_format_that_does_not_store_the_parameter(formats, message):
    with pytest.raises(ConfigError, match=message):
        stored_parameters(NANO, formats={name: FORMATS[each] for name, each in formats.items()})


def test_exact_activations_need_a_matrix_of_weights_only_quantisation(tmp_path):
    grouped = write(tmp_path / "grouped", NANO.replace(weights="ternary_g128"))
    other = write(tmp_path / "other")

    assert grouped.with_activations(True).config.exact_activations
    assert not other.with_activations(False).config.exact_activations
    with pytest.raises(ConfigError, match=r"\(--exact\) would change nothing; leave it out"):
        other.with_activations(True)
