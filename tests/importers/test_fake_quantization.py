"""Fake-quantised checkpoints: integers and scales are found, or matrices stay as they are."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from float64_decoder import Float64Decoder
from low_bit_directories import (
    INT2,
    ODD,
    SIGNS,
    TRITS,
    YARN,
    LowBit,
    model_and_matrices,
    names,
    stored_floats,
)
from published import publish, random_model, weights
from safetensors.torch import load_file, save_file

from yocobit import Engine
from yocobit.config import ConfigError
from yocobit.importers import import_model, open_checkpoint
from yocobit.importers.huggingface.fake_quantization import recover
from yocobit.packing import verify
from yocobit.packing.tensor_source import SafetensorsDirectory

UP = "model.layers.1.mlp.up_proj.weight"
OURS = "layers.1.ffn.up_proj.weight"


@pytest.mark.parametrize("values", [TRITS, SIGNS, INT2, ODD])
@pytest.mark.parametrize(("columns", "found"), [(64, 64), (128, 128), (256, 128)])
@pytest.mark.parametrize("K", [512, 330])
def test_integers_and_scales_of_every_group_are_found(values, columns, found, K):
    matrix = LowBit.random(np.random.default_rng(1), (40, K), values, columns)
    rows = matrix.floats.astype(np.float16)

    recovered = recover([rows[:16], rows[16:17], rows[17:]])

    assert recovered.scale.shape == (40, -(-K // found))
    np.testing.assert_array_equal(recovered.integers, matrix.integers)
    np.testing.assert_array_equal(recovered.floats(), matrix.floats)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_equal_scales_in_each_row_become_one(dtype):
    matrix = LowBit.random(np.random.default_rng(1), (40, 330), TRITS, None, dtype)
    matrix.integers[3], matrix.integers[7, :128] = 0, 0

    recovered = recover([matrix.floats.astype(dtype)])

    assert recovered.scale.shape == (40,) and recovered.scale[3] == 1
    np.testing.assert_array_equal(recovered.floats(), matrix.floats)


def test_groups_of_zeros_have_the_scale_0():
    matrix = LowBit.random(np.random.default_rng(1), (4, 256), TRITS, 128)
    matrix.integers[2, 128:] = 0

    recovered = recover([matrix.floats.astype(np.float16)])

    assert recovered.scale[2, 1] == 0 and (recovered.scale == 0).sum() == 1
    np.testing.assert_array_equal(recovered.floats(), matrix.floats)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows + np.float16(0.01),
        lambda rows: np.where(np.arange(rows.size).reshape(rows.shape) == 5000, 0.3, rows),
        lambda rows: np.where(np.arange(rows.size).reshape(rows.shape) == 5000, -2 * 0.05, rows),
        lambda rows: rows * 0,
        lambda rows: np.where(np.arange(rows.size).reshape(rows.shape) == 5000, np.inf, rows),
        lambda rows: np.where(np.arange(rows.size).reshape(rows.shape) == 5000, np.nan, rows),
    ],
)
def test_other_matrices_are_not_taken_for_integers(change):
    matrix = LowBit.random(np.random.default_rng(1), (40, 256), TRITS, 64)

    assert recover([change(matrix.floats).astype(np.float16)]) is None


def test_values_of_a_group_that_no_format_has_are_refused():
    rows = np.full((8, 128), 0.25, dtype=np.float32)
    rows[:, ::2] = 0.75
    assert recover([rows]) is not None  # 1 and 3
    rows[:, 0] = 0
    assert recover([rows]) is None  # 0 does not occur with 3
    rows = np.where(rows == 0.75, -0.5, 0.25).astype(np.float32)
    assert recover([rows]) is None  # -2


@pytest.mark.parametrize(
    ("values", "columns", "dtype", "format"),
    [
        (SIGNS, 128, torch.float16, "sign_g128"),
        (TRITS, 128, torch.float16, "ternary_g128"),
        (TRITS, 64, torch.float16, "ternary_g64"),
        (INT2, 128, torch.float16, "int2_g128"),
        (TRITS, None, torch.float16, "ternary_row_a16"),
        (TRITS, 128, torch.bfloat16, "ternary_g128"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_fake_quantised_checkpoint_keeps_every_weight(
    tmp_path, values, columns, dtype, format, tied
):
    changes = {"tie_word_embeddings": tied, "rope_parameters": YARN}
    scales = np.float32 if dtype == torch.bfloat16 else np.float16
    model, _ = model_and_matrices(values=values, columns=columns, dtype=scales, **changes)
    source = publish(model.to(dtype), tmp_path / "hf")

    packed = import_model(source, tmp_path / "model")

    assert packed.config.weights == format
    theirs = load_file(source / "model.safetensors")
    for name, module in names().items():
        if not (tied and name == "head.weight"):
            assert packed.parameters[name].format.name == format
            expected = theirs[f"{module}.weight"].float().numpy()
            np.testing.assert_array_equal(stored_floats(packed, name), expected)
    verify(packed.path)


def test_matrix_that_is_not_fake_quantised_is_kept_as_floats_with_a_warning(tmp_path):
    model, _ = model_and_matrices()
    source = publish(model.half(), tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    tensors[UP][300, 7] = 0.123
    save_file(tensors, source / "model.safetensors")
    lines: list[str] = []

    packed = import_model(source, tmp_path / "model", report=lines.append)

    assert packed.config.weights == "ternary_g128"
    assert packed.parameters[OURS].format.name == "f16"
    np.testing.assert_array_equal(weights(packed, OURS), tensors[UP].float().numpy())
    assert any("1 of 14 projections are not integers times scales" in line for line in lines)
    assert any(f"such as {UP}" in line for line in lines)
    verify(packed.path)


def test_dense_checkpoint_is_not_read_in_full(tmp_path, monkeypatch):
    source = publish(random_model("qwen3", head_dim=32).half(), tmp_path / "hf")
    n_rows = []
    read = SafetensorsDirectory.read_rows

    def count(self, name, start=0, stop=None):
        rows = read(self, name, start, stop)
        n_rows.append(len(rows))
        return rows

    monkeypatch.setattr(SafetensorsDirectory, "read_rows", count)

    checkpoint = open_checkpoint(source)

    assert checkpoint.config.weights == "dense"
    assert max(n_rows) <= 8


def test_scale_of_bfloat16_that_float16_does_not_hold_is_refused(tmp_path):
    model, _ = model_and_matrices(values=SIGNS)
    tensors = {n: t.bfloat16() for n, t in model.state_dict().items()}
    tensors[UP][:] = torch.where(tensors[UP] > 0, 1.0, -1.0) * 1.01 * 2.0**-20
    source = publish(model.bfloat16(), tmp_path / "hf")
    save_file(tensors, source / "model.safetensors")

    with pytest.raises(ConfigError, match=f"'{OURS}' must have scales that are exact in float16"):
        import_model(source, tmp_path / "model")
    packed = import_model(source, tmp_path / "dense", weights="f32")

    np.testing.assert_array_equal(weights(packed, OURS), tensors[UP].float().numpy())


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_the_same_weights_as_floats_equal_those_of_transformers(tmp_path, tied):
    model, _ = model_and_matrices(rope_parameters=YARN, tie_word_embeddings=tied)
    source = publish(deepcopy(model).half(), tmp_path / "hf")
    packed = import_model(source, tmp_path / "model", "f32", weights="f32")
    tokens = np.random.default_rng(1).integers(0, 264, 32)

    logits = Engine(packed, threads=1, kernels=None).logits(tokens, "f32")

    expected = model.double()(torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def test_logits_of_integers_equal_the_float64_statement_of_their_arithmetic(tmp_path):
    model, _ = model_and_matrices(rope_parameters=YARN)
    packed = import_model(publish(model.half(), tmp_path / "hf"), tmp_path / "model")
    statement = Float64Decoder.of_packed(packed)
    tokens = statement.tokens_without_ties(4)

    logits = Engine(packed, threads=1, kernels=None).logits(tokens, "f32")

    expected = statement.logits(tokens)
    assert packed.config.weights == "ternary_g128"
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
