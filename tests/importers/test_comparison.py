"""Comparison of a packed model with another source of the same model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from low_bit_directories import SIGNS, TRITS, model_and_matrices, publish_mlx
from packed_models import tokenizer
from published import publish, random_model
from published_checkpoint import save_checkpoint
from safetensors.numpy import load_file, save_file

from yocobit.cli import run
from yocobit.errors import ConfigError
from yocobit.exporters import export_gguf
from yocobit.importers import compare, import_model, open_checkpoint

MATRIX = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def pair(tmp_path):
    """A packed model, and the checkpoint that it was made from."""
    source = save_checkpoint(tmp_path / "published", tokenizer())
    return import_model(source, tmp_path / "packed"), source


def change(source: Path, **changes) -> None:
    file = source / "model.safetensors"
    tensors = load_file(file)
    for name, value in changes.items():
        tensors[name] = value(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


def test_the_source_of_a_model_is_equal(pair, capsys):
    model, source = pair

    result = compare(model, open_checkpoint(source))
    run(["verify", str(model.path), "--against", str(source)])

    assert result.is_equal
    assert result.n_matrices == 14
    assert not result.different_tensors
    assert result.describe() == [
        f"codes   all {result.n_weights:,} of 14 matrices are equal",
        "scales  all are equal",
        "others  all are equal",
    ]
    assert "others  all are equal" in capsys.readouterr().out


def test_one_other_code_is_found(pair, capsys):
    model, source = pair
    change(source, **{MATRIX: lambda packed: np.where(packed == packed[3, 5], 0b01010101, packed)})

    result = compare(model, open_checkpoint(source))
    with pytest.raises(SystemExit) as ended:
        run(["verify", str(model.path), "--against", str(source), "--json"])

    assert not result.is_equal
    assert list(result.different_weights) == ["layers.1.ffn.up_proj.weight"]
    assert ended.value.code == 2
    shown = json.loads(capsys.readouterr().out)
    assert shown["equal"] is False
    assert shown["different_weights"] == result.different_weights


@pytest.mark.parametrize(("factor", "is_equal"), [(1 + 2**-9, True), (1.01, False)])
def test_scales_may_differ_by_the_rounding_to_bfloat16(pair, factor, is_equal):
    model, source = pair
    change(source, **{f"{MATRIX}_scale": lambda scale: scale * np.float32(factor)})

    result = compare(model, open_checkpoint(source))

    assert result.is_equal == is_equal
    assert result.n_scales_different == 1
    assert result.largest_scale_error == pytest.approx(abs(1 - 1 / factor), rel=1e-3)


def test_other_norms_are_named(pair):
    model, source = pair
    change(source, **{"model.norm.weight": lambda norm: norm * 2})

    result = compare(model, open_checkpoint(source))

    assert result.is_equal
    assert result.different_tensors == ["norm.weight"]


@pytest.mark.parametrize(
    ("n_layers", "message"),
    [
        (1, "layers must be ['full', 'full'] as in"),
        (2, "but lacks 'layers.0.ffn.sub_norm.weight'"),
    ],
)
def test_a_source_of_another_model_is_one_line(pair, tmp_path, n_layers, message):
    model, _ = pair
    config = model.config
    shape = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
    }
    other = publish(random_model("llama", **shape), tmp_path / "llama")

    with pytest.raises(ConfigError, match="name a source of the same model") as raised:
        compare(model, open_checkpoint(other))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "bits", "kind"), [(TRITS, 2, "Q2_0"), (SIGNS, 1, "Q1_0"), (TRITS, 2, None)]
)
def test_all_published_kinds_of_a_low_bit_model_are_equal(tmp_path, values, bits, kind):
    low_bit, matrices = model_and_matrices(values=values)
    matrix = matrices["model.layers.1.mlp.up_proj"]
    if values == TRITS:  # the scale of a group of zeros is any in MLX and 0 in other files
        matrix.integers[3, :128] = 0
        low_bit.get_submodule("model.layers.1.mlp.up_proj").weight.data[3, :128] = 0
    columns = 64 if kind is None else 128
    if kind is None:
        for name, each in matrices.items():
            matrices[name] = each._replace(scales=each.scales.repeat(2, axis=1), columns=64)
    unpacked = publish(low_bit.half(), tmp_path / "unpacked")
    mlx = publish_mlx(low_bit, matrices, tmp_path / "mlx", bits, columns)
    model = import_model(mlx, tmp_path / "model")
    sources = [unpacked, mlx]
    if kind is not None:
        sources.append(tmp_path / f"{kind}.gguf")
        export_gguf(model, sources[-1])

    for source in sources:
        result = compare(model, open_checkpoint(source))
        assert result.is_equal and result.n_scales_different == 0, source
        assert result.different_tensors == [] and result.n_matrices == 16


@pytest.mark.parametrize("is_model_narrow", [False, True])
def test_scales_of_groups_of_64_and_128_are_compared(tmp_path, is_model_narrow):
    low_bit, matrices = model_and_matrices()
    wide = publish_mlx(low_bit, matrices, tmp_path / "wide", 2, 128)
    for name, each in matrices.items():
        matrices[name] = each._replace(scales=each.scales.repeat(2, axis=1), columns=64)
    up = matrices["model.layers.1.mlp.up_proj"]
    up.scales[3, 1] *= 2
    narrow = publish_mlx(low_bit, matrices, tmp_path / "narrow", 2, 64)
    source, other = (narrow, wide) if is_model_narrow else (wide, narrow)

    model = import_model(source, tmp_path / "model")
    result = compare(model, open_checkpoint(other))

    name = "layers.1.ffn.up_proj.weight"
    format = "ternary_g64" if is_model_narrow else "ternary_g128"
    assert model.parameters[name].format.name == format
    assert not result.different_weights and result.n_matrices == 16
    assert result.n_scales_different == 1
    assert result.largest_scale_error == pytest.approx(1 if is_model_narrow else 0.5)


def test_signs_are_compared_with_trits(tmp_path):
    low_bit, matrices = model_and_matrices(values=SIGNS)
    model = import_model(publish_mlx(low_bit, matrices, tmp_path / "signs", 1), tmp_path / "model")
    matrices["model.layers.1.mlp.up_proj"].integers[3, 5] = 0
    trits = publish_mlx(low_bit, matrices, tmp_path / "trits", 2)

    result = compare(model, open_checkpoint(trits))

    assert model.config.weights == "sign_g128"
    assert result.different_weights == {"layers.1.ffn.up_proj.weight": 1}
    assert result.n_scales_different == 0 and result.n_matrices == 16
