"""Values that a packed model may not hold, and that all kernel families agree on every other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_families import KERNELS

from yocobit import Engine
from yocobit.benchmark.random_model import write_random_model
from yocobit.config import ModelConfig, preset
from yocobit.packing import PackedModel, PackedModelError, verify
from yocobit.packing.file_format import DTYPES
from yocobit.packing.layout import unpack_codes
from yocobit.packing.stored_parameters import StoredParameter, stored_parameters
from yocobit.packing.writer import write_model

MIXED = ("window", "retention", "full", "gmu", "cross")


def small(weights: str, **changes) -> ModelConfig:
    """Return a shape whose rows and columns do not fill the last groups and blocks."""
    shape = {"vocab_size": 290, "d_model": 144, "d_ff": 264, "n_heads": 6, "n_self_heads": 3}
    kv = {"n_kv_heads": 2, "n_self_kv_heads": 1}
    config = preset("nano").replace(layers=MIXED, weights=weights, **shape, **kv)
    return config.replace(**changes)


def poke(model: PackedModel, tensor: str, offset: int, value: bytes) -> None:
    """Overwrite bytes of a tensor in the file."""
    with model.file.open("r+b") as stream:
        stream.seek(model.tensors[tensor].begin + offset)
        stream.write(value)


def problems_of(model: PackedModel, threads: int = 3) -> list[str]:
    return model.open(threads).find_problems()


# ---- invalid values


@pytest.mark.parametrize("weights", ["ternary", "ternary_row"])
def test_code_3_is_found_at_its_row_and_column(weights, tmp_path):
    rng = np.random.default_rng(0)
    model = write_random_model(small(weights), tmp_path / "model")
    name = "layers.1.ffn.down_proj.weight"
    M, K = model.parameters[name].shape
    tensor = model.tensors[name]
    assert problems_of(model) == []

    for offset in rng.integers(0, tensor.end - tensor.begin, size=20).tolist():
        sound = model.file.read_bytes()[tensor.begin + offset]
        invalid = sound | 3 << 2 * int(rng.integers(4))
        poke(model, name, offset, bytes([invalid]))
        raw = np.frombuffer(model.file.read_bytes()[tensor.begin : tensor.end], np.uint8)
        codes = unpack_codes(raw.reshape(tensor.shape), -(-M // 8) * 8, -(-K // 128) * 128, bits=2)
        (row,), (column,) = np.nonzero(codes == 3)
        assert problems_of(model) == [
            f"tensor '{name}' must hold codes 0 to 2 but holds 3 at row {row}, column {column}"
        ]
        poke(model, name, offset, bytes([sound]))


@pytest.mark.parametrize(
    ("weights", "head", "tensor", "item", "value", "found"),
    [
        ("ternary", "int8", "head.weight", 144 * 7 + 5, np.int8(-128), "-128 at row 7, column 5"),
        ("sign", "int8", "embedding.weight", 3, np.int8(-128), "-128 at row 0, column 3"),
        ("f32", None, "layers.0.mixer.q_proj.weight", 0, np.float32(np.nan), "nan at row 0"),
        ("f32", None, "embedding.weight", -1, np.float32(-np.inf), "-inf at row 289, column 143"),
        ("f16", None, "layers.0.mixer.q_proj.weight", 9, np.float16(np.inf), "inf at row 0, col"),
        ("f16", None, "head.weight", 9, np.float16(np.nan), "nan at row 0, column 9"),
        ("ternary", "int8", "norm.weight", 2, np.float32(np.nan), "nan at position 2"),
        ("ternary", "int8", "layers.1.mixer.decay_proj.weight", 2, np.float32(np.inf), "inf at"),
        ("ternary", "int8", "layers.0.ffn.up_proj.weight_scale", 0, np.float32(0), "0 at pos"),
        ("ternary_row", "int8", "head.weight_scale", 289, np.float32(-1), "-1 at position 289"),
        ("ternary", "int4", "head.weight_scale", 5, np.float16(-1), "negative at position 5"),
        ("ternary", "int4", "head.weight_scale", 5, np.float16(np.inf), "inf at position 5"),
    ],
)
def test_values_outside_the_table_are_found(weights, head, tensor, item, value, found, tmp_path):
    kind = "dense" if weights in ("f16", "f32") else weights
    model = write_random_model(small(kind), tmp_path / "model", weights, head)
    n_items = int(np.prod(model.tensors[tensor].shape))
    poke(model, tensor, item % n_items * value.itemsize, value.tobytes())

    (problem,) = problems_of(model)

    assert problem.startswith(f"tensor '{tensor}' must ") and f" but holds {found}" in problem


def test_every_invalid_tensor_is_found_and_the_first_session_is_refused(tmp_path):
    model = write_random_model(small("ternary"), tmp_path / "model")
    names = ["layers.0.ffn.up_proj.weight", "layers.4.mixer.q_proj.weight"]
    for name in names:
        poke(model, name, 7, b"\xff")
    engine = Engine.load(model.path, threads=2)  # in milliseconds: it does not read the weights

    for refused in (
        lambda: engine.session(8, "f32"),
        lambda: engine.logits([1], "f32"),
        engine.check_weights,
    ):
        with pytest.raises(PackedModelError, match=f"{names[0]}' must hold codes 0 to 2 but holds"):
            refused()

    assert [p for p in verify(model) if "must hold codes" in p][1].startswith(
        f"{model.file}: tensor '{names[1]}' must hold codes 0 to 2 but holds 3 at row 0, column 7"
    )


def test_all_bytes_of_formats_without_invalid_codes_are_accepted(tmp_path):
    model = write_random_model(small("sign"), tmp_path / "model", "sign", "int4")
    for name in ("layers.0.ffn.up_proj.weight", "head.weight"):
        poke(model, name, 0, bytes(range(256)))

    assert problems_of(model) == []


# ---- extreme values, on which all families agree


def extreme(style: str, stored: StoredParameter, name: str, dtype: str, shape, rng) -> np.ndarray:
    """Return a tensor of valid but extreme values."""
    if dtype == "U8":
        valid = np.flatnonzero(stored.format.valid_bytes).astype(np.uint8)
        return np.full(shape, valid[-1]) if style == "huge" else rng.choice(valid, shape)
    if dtype == "I8":
        return np.full(shape, 127 if style == "huge" else -127, np.int8)
    largest = {"F16": 6.5e4, "F32": 3e38}[dtype]
    least = {"F16": 6e-8, "F32": 1e-45}[dtype]  # denormal
    size = {"huge": largest, "tiny": least, "mixed": None}[style]
    values = np.full(shape, size or 0.0)
    if size is None:
        values = rng.choice([largest, least, 1.0, 1e-3], shape)
    is_scale = name.endswith("_scale")
    signs = np.ones(shape) if is_scale else rng.choice([-1.0, 1.0], shape)
    return (values * signs).astype(DTYPES[dtype])


FORMATS = {  # weights, head and cache, and the style that is not slow
    ("ternary", "int8", "f32"): "huge",
    ("ternary_row", "int4", "f16"): "tiny",
    ("sign", "int4", "int8"): "mixed",
    ("f32", None, "int4"): "mixed",
    ("f16", None, "f16"): "huge",
}
EXTREMES = [
    pytest.param(*formats, style, marks=[pytest.mark.slow] * (style != first))
    for formats, first in FORMATS.items()
    for style in ("huge", "tiny", "mixed")
]


@pytest.mark.parametrize(("weights", "head", "cache", "style"), EXTREMES)
def test_families_agree_on_extreme_values_bit_for_bit(weights, head, cache, style, tmp_path):
    config = small("dense" if weights in ("f16", "f32") else weights)
    config = config.attending("index:128")
    rng = np.random.default_rng(0)
    parameters = stored_parameters(config, weights, head)
    tensors = (
        (tensor, extreme(style, stored, tensor, dtype, shape, rng))
        for name, stored in parameters.items()
        for tensor, (dtype, shape) in stored.format.tensors(name, stored.shape).items()
    )
    with np.errstate(all="ignore"):
        model: Path = write_model(tmp_path / "model", config, parameters, tensors).path
    tokens = rng.integers(0, config.vocab_size, 170)

    logits = {}
    for kernels in KERNELS:
        engine = Engine.load(model, threads=1, kernels=kernels)
        logits[kernels] = engine.logits(tokens, cache).view(np.uint32)
        session = engine.session(len(tokens), cache)
        pieces = [session.feed_all(part) for part in np.split(tokens, [1, 2, 40, 169])]
        assert np.array_equal(np.concatenate(pieces).view(np.uint32), logits[kernels]), kernels

    for kernels, found in logits.items():
        assert np.array_equal(found, logits["scalar"]), kernels
