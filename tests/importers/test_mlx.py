"""MLX directories of 1 and 2 bits: codes and scales are those published, or a tensor is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from low_bit_directories import (
    INT2,
    ODD,
    SIGNS,
    TRITS,
    YARN,
    model_and_matrices,
    names,
    publish_mlx,
    stored_floats,
)
from published import edit, stored, weights
from safetensors.numpy import load_file, save_file

from yocobit.config import ConfigError
from yocobit.importers import import_model, open_checkpoint
from yocobit.importers.huggingface.mlx import Affine, read_rows
from yocobit.importers.huggingface.names import TensorPart
from yocobit.packing import verify
from yocobit.packing.tensor_source import SafetensorsDirectory

MLX = load_file(Path(__file__).parent / "data" / "mlx_matrices.safetensors")
UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(("bits", "columns"), [(1, 128), (2, 64), (2, 128), (4, 64), (8, 32)])
def test_weights_of_a_matrix_are_those_that_mlx_reads(tmp_path, bits, columns):
    prefix = f"{bits}.{columns}"
    tensors = {name: MLX[f"{prefix}.{name}"] for name in ("weight", "scales", "biases")}
    save_file(
        {f"m.{name}": value for name, value in tensors.items()}, tmp_path / "model.safetensors"
    )
    affine = Affine(bits=bits, group_size=columns)

    rows = read_rows(SafetensorsDirectory(tmp_path), TensorPart("m"), (3, 256), affine)

    np.testing.assert_allclose(rows.floats(bits), MLX[f"{prefix}.weights"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("bits", "values", "columns", "format"),
    [
        (1, SIGNS, 128, "sign_g128"),
        (2, TRITS, 128, "ternary_g128"),
        (2, TRITS, 64, "ternary_g64"),
        (2, INT2, 128, "int2_g128"),
        (2, INT2, 64, "int2_g64"),
        (2, ODD, 128, "odd_g128"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_integers_and_scales_are_those_published(tmp_path, bits, values, columns, format, tied):
    model, matrices = model_and_matrices(values=values, columns=columns, tie_word_embeddings=tied)
    source = publish_mlx(model, matrices, tmp_path / "mlx", bits, columns)

    packed = import_model(source, tmp_path / "model")

    assert packed.config.weights == format
    parameters = {n: m for n, m in names().items() if not (tied and n == "head.weight")}
    for name, module in parameters.items():
        assert packed.parameters[name].format.name == format
        np.testing.assert_array_equal(weights(packed, name), matrices[module].integers)
        np.testing.assert_array_equal(stored_floats(packed, name), matrices[module].floats)
    assert ("head.weight" in packed.parameters) == (not tied)
    verify(packed.path)


def test_groups_of_64_with_equal_scales_in_pairs_become_groups_of_128(tmp_path):
    model, matrices = model_and_matrices(columns=64)
    for matrix in matrices.values():
        matrix.scales[:, 1::2] = matrix.scales[:, ::2]
    packed = import_model(publish_mlx(model, matrices, tmp_path / "mlx", 2, 64), tmp_path / "model")

    assert packed.config.weights == "ternary_g128"
    for name, module in names().items():
        np.testing.assert_array_equal(stored_floats(packed, name), matrices[module].floats)


def test_negative_scales_negate_the_integers(tmp_path):
    model, matrices = model_and_matrices()
    matrices[UP].scales[::3] *= -1

    packed = import_model(publish_mlx(model, matrices, tmp_path / "mlx", 2), tmp_path / "model")

    name = "layers.1.ffn.up_proj.weight"
    assert packed.parameters[name].format.name == "ternary_g128"
    np.testing.assert_array_equal(stored_floats(packed, name), matrices[UP].floats)


@pytest.mark.parametrize(("bits", "values"), [(2, TRITS), (1, SIGNS), (2, ODD)])
def test_groups_with_the_scale_0_do_not_fold_into_others(tmp_path, bits, values):
    """Their weights are 0 for all codes. Odd integers have no format with groups of 64."""
    model, matrices = model_and_matrices(values=values, columns=64)
    for matrix in matrices.values():
        matrix.scales[:, 1::2] = matrix.scales[:, ::2]
    matrices[UP].scales[::3, 1] = 0
    source = publish_mlx(model, matrices, tmp_path / "mlx", bits, 64)

    if values == ODD:
        with pytest.raises(ConfigError, match=f"'{UP}.scales' must have equal scales in groups of"):
            open_checkpoint(source)
        return
    packed = import_model(source, tmp_path / "model")

    name = "layers.1.ffn.up_proj.weight"
    np.testing.assert_array_equal(stored_floats(packed, name), matrices[UP].floats)


def test_matrices_of_4_bits_are_read_as_floats(tmp_path):
    """Deepgrove's converter keeps embedding and head in 4 bits."""
    model, matrices = model_and_matrices()
    source = publish_mlx(model, matrices, tmp_path / "mlx", 2)
    tensors = load_file(source / "model.safetensors")
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 16, (264, 256), dtype=np.uint32)
    scales, biases = rng.normal(size=(2, 264, 4)).astype(np.float16)
    words = codes.reshape(264, -1, 8) << np.arange(0, 32, 4, dtype=np.uint32)
    tensors["lm_head.weight"] = words.sum(axis=2, dtype=np.uint32)
    tensors |= {"lm_head.scales": scales, "lm_head.biases": biases}
    save_file(tensors, source / "model.safetensors")
    mixed = {"group_size": 128, "bits": 2, "lm_head": {"group_size": 64, "bits": 4}}
    edit(source, quantization=mixed)

    packed = import_model(source, tmp_path / "model", head="f32")

    groups = codes.reshape(264, 4, 64) * scales.astype(np.float32)[..., None]
    expected = (groups + biases.astype(np.float32)[..., None]).reshape(264, 256)
    np.testing.assert_array_equal(stored(packed, "head.weight"), expected)
    assert packed.config.weights == "ternary_g128"


@torch.no_grad()
def test_weights_as_floats_are_those_of_transformers(tmp_path):
    model, matrices = model_and_matrices(rope_parameters=YARN)
    source = publish_mlx(model, matrices, tmp_path / "mlx", 2)

    packed = import_model(source, tmp_path / "model", head="f32", weights="f32")

    assert packed.config.weights == "dense"
    for name, module in names().items():
        theirs = model.get_submodule(module).weight.numpy()
        np.testing.assert_array_equal(stored(packed, name), theirs)


def change(source, **tensors):
    file = source / "model.safetensors"
    own = load_file(file)
    for name, value in tensors.items():
        own[name] = value(own[name]) if callable(value) else value
    save_file({name: value for name, value in own.items() if value is not None}, file)


def one(value):
    def changed(tensor):
        tensor = tensor.copy()
        tensor[5, 1] = value
        return tensor

    return changed


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {f"{UP}.biases": one(-0.25)},
            rf"tensor '{UP}.biases' must be -1 or -1.5 times the scales in all .* -0.25 with",
        ),
        ({f"{UP}.scales": one(np.nan)}, rf"'{UP}.scales' must be finite but is not"),
        ({f"{UP}.weight": lambda t: t[:, :-1]}, rf"'{UP}.weight' must be uint32 of shape"),
        ({f"{UP}.weight": lambda t: t.view(np.int32)}, rf"'{UP}.weight' must be uint32 of shape"),
        ({f"{UP}.scales": lambda t: t[:-1]}, rf"'{UP}.scales' must be floats of shape \[384, 2\]"),
        ({f"{UP}.biases": None}, rf"tensor '{UP}.biases' is missing"),
        ({f"{UP}.scales": None}, rf"tensor '{UP}.biases' must not be there"),
        (
            {f"{UP}.scales": one(-0.5), f"{UP}.biases": one(0.5)},
            rf"'{UP}.scales' must not be negative, as code 3 occurs, but has -0.5",
        ),
    ],
)
def test_matrix_that_is_not_integers_times_scales_is_refused_by_name(tmp_path, tensors, message):
    model, matrices = model_and_matrices(values=INT2)
    source = publish_mlx(model, matrices, tmp_path / "mlx", 2)
    change(source, **tensors)

    with pytest.raises(ConfigError, match=message) as raised:
        import_model(source, tmp_path / "model")

    assert "\n" not in str(raised.value) and str(source) in str(raised.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"bits": 3, "group_size": 128}, "quantization: bits must be one of 1, 2, 4, 8 but is 3"),
        ({"bits": 2, "group_size": 100}, "quantization: group_size must be one of 32, 64, 128"),
        ({"bits": 2, "mode": "mxfp4"}, "quantization: mode must be one of 'affine' but is 'mxfp4'"),
        ({"bits": 2, "x": 1}, "quantization: unknown key 'x'; known keys: bits, group_size, mode"),
        ({"bits": 2, "group_size": 128, "lm_head": {"bits": 5}}, "quantization.lm_head: bits must"),
        ({}, "quantization: key 'bits' is missing"),
        ([2], "quantization must be an object but is"),
    ],
)
def test_invalid_quantization_is_refused_by_name(tmp_path, quantization, message):
    source = publish_mlx(*model_and_matrices(), tmp_path / "mlx", 2)
    edit(source, quantization=quantization)

    with pytest.raises(ConfigError, match=message):
        open_checkpoint(source)


def test_groups_of_32_with_other_scales_are_refused(tmp_path):
    model, matrices = model_and_matrices(columns=32)
    source = publish_mlx(model, matrices, tmp_path / "mlx", 2, 32)

    with pytest.raises(ConfigError, match="scales' must have equal scales in groups of 64 col"):
        open_checkpoint(source)
