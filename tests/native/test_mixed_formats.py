"""A model whose matrices have different weight formats, which no packer writes yet."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from kernel_families import KERNELS

from yocobit import _native
from yocobit.config import preset
from yocobit.mixers import model_parameters
from yocobit.packing.file_format import DTYPES, scale_name
from yocobit.packing.formats import FORMATS, WeightFormat

T = 70  # more rows than a tile of a GEMM
LAYERS = ("window", "retention", "full", "gmu", "cross")


def stored(name: str, format: WeightFormat, shape, rng) -> dict[str, np.ndarray]:
    """The tensors of a random matrix in a format."""
    weights = rng.standard_normal(shape).astype(np.float32)
    if format.quantize is None:
        codes = format.encode(rng.choice(np.array(format.values, np.int8), shape))
        scales = rng.uniform(0.05, 0.1, format.scale.shape(*shape))
        scales = scales.astype(DTYPES[format.scale.dtype])
    else:
        codes, scales = format.quantize(weights * np.float32(0.1))
    return {name: codes} | ({} if scales is None else {scale_name(name): scales})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Path, configuration, tensors and formats of a model with every format in turn."""
    config = preset("nano").replace(layers=LAYERS, weights="dense")
    rng = np.random.default_rng(0)
    cycle = itertools.cycle(FORMATS.values())
    formats, arrays = {}, {}
    for name, parameter in model_parameters(config).items():
        is_embedding = parameter.role == "embedding"
        stays_float = parameter.role in ("norm", "float")
        formats[name] = FORMATS[
            "f32" if stays_float else "f16" if is_embedding else next(cycle).name
        ]
        arrays |= stored(name, formats[name], parameter.shape, rng)
    path = tmp_path_factory.mktemp("mixed") / "tensors"
    return path, config, write(path, arrays), {name: f.name for name, f in formats.items()}


def write(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, tuple]:
    """Write arrays one after the other, aligned; return their entries."""
    dtypes = {"uint8": "U8", "int8": "I8", "float16": "F16", "float32": "F32"}
    entries, content = {}, b""
    for name, array in arrays.items():
        content += bytes(-len(content) % 64)
        begin = len(content)
        content += array.tobytes()
        entries[name] = (dtypes[array.dtype.name], list(array.shape), begin, len(content))
    path.write_bytes(content)
    return entries


def logits(model, kernels: str, threads: int, step: int) -> np.ndarray:
    path, config, tensors, formats = model
    engine = _native.Engine(str(path), config.to_dict(), tensors, formats, kernels, threads)
    session = _native.Session(engine, T, "f32")
    tokens = np.arange(T, dtype=np.int32)
    out = np.empty((T, config.vocab_size), dtype=np.float32)
    for begin in range(0, T, step):
        engine.feed(session, tokens[begin : begin + step], "all", out[begin : begin + step])
    return out


def test_each_matrix_may_have_its_own_format_with_the_same_bits_for_all_kernels_and_batches(model):
    expected = logits(model, "scalar", 1, T)

    assert np.isfinite(expected).all()
    assert set(model[3].values()) >= set(FORMATS)
    for kernels in KERNELS:
        for threads, step in ((2, T), (1, 1), (3, 33)):
            found = logits(model, kernels, threads, step)
            np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("format", ["", "q4_k"])
def test_an_unknown_format_is_refused(model, format):
    path, config, tensors, formats = model
    formats = formats | {"layers.0.mixer.q_proj.weight": format}

    with pytest.raises(ValueError, match=f"weight format must be .* but is '{format}'"):
        _native.Engine(str(path), config.to_dict(), tensors, formats, "", 1)


def test_a_matrix_in_another_format_than_its_bytes_is_refused(model):
    path, config, tensors, formats = model
    name = "layers.0.mixer.q_proj.weight"
    other = "f32" if formats[name] != "f32" else "ternary"

    with pytest.raises(ValueError, match=f"tensor '{name}' must be"):
        _native.Engine(str(path), config.to_dict(), tensors, formats | {name: other}, "", 1)


def test_an_embedding_in_blocks_that_lacks_rows_is_refused(model):
    path, config, tensors, formats = model
    name = "embedding.weight"
    tensors = tensors | {
        name: ("U8", [63, 1, 8, 32], 0, 63 * 8 * 32),
        f"{name}_scale": ("F32", [1], 0, 4),
    }
    assert config.vocab_size == 512 and config.d_model <= 128

    with pytest.raises(ValueError, match=f"tensor '{name}' must be U8 \\(64, 1, 8, 32\\)"):
        _native.Engine(str(path), config.to_dict(), tensors, formats | {name: "ternary"}, "", 1)


def test_a_step_refuses_none_in_place_of_a_session(model):
    path, config, tensors, formats = model
    engine = _native.Engine(str(path), config.to_dict(), tensors, formats, "", 1)
    tokens, out = np.zeros(1, dtype=np.int32), np.empty((1, config.vocab_size), dtype=np.float32)

    with pytest.raises((TypeError, ValueError)):
        engine.step([None], tokens, out, [])
    with pytest.raises((TypeError, ValueError)):
        engine.step([], tokens[:0], None, [(None, tokens)])
