"""Tensor types of GGUF files against codecs that others wrote: gguf (NumPy), libgguf (C).

data/low_bit_blocks.json has blocks and their weights: by llama.cpp (Q1_0, Q2_0) and by the decoders
of its forks in C (PTQ1_0, STQ1_0).
"""

import json
from pathlib import Path

import gguf
import libgguf
import numpy as np
import pytest
from gguf_files import (
    low_bit_block,
    pack_i2_s,
    pack_low_bit,
    random_integers,
    raw_file,
    tensor_info,
    write,
)

from yocobit.config import ConfigError
from yocobit.importers.gguf import blocks
from yocobit.importers.gguf.container import GGUFFile
from yocobit.importers.gguf.tensor_types import (
    TYPES,
    identify,
    read_floats,
    read_integers,
    read_scales,
)
from yocobit.importers.gguf.tensor_types import has_twos as has_twos_of

DATA = Path(__file__).parent / "data"
BY_NAME = {each.name: each for each in TYPES}
M, K = 6, 1024
LOW_BIT = (
    *("Q1_0", "Q2_0", "Q2_0 with 128 weights per scale", "PQ2_0", "PTQ1_0", "STQ1_0", "Q2_0C"),
    "TQ2_0",
)
CODECS = ("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0")
# Bytes of float16 scales and minima in a block.
SCALES = {
    "BF16": (), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip


def stored(tmp_path, kind, data, shape=(M, K)):
    """The file and its only tensor, which has the bytes `data`."""
    file = GGUFFile(write(tmp_path / "a.gguf", "llama", {}, {"w": (kind, data, shape)}))
    return file, file.tensors["w"]


def block_bytes(name, fill):
    """Bytes of (M, K) weights: random, zeros, or all bits set, but finite."""
    kind, rng = BY_NAME[name], np.random.default_rng(1)
    n_blocks = M * K // kind.block
    shape = n_blocks, kind.block_bytes
    value = {"zeros": 0, "ones": 255}.get(fill)
    raw = rng.integers(0, 256, shape) if value is None else np.full(shape, value)
    raw = raw.astype(np.uint8)
    if name == "BF16":  # no exponent is that of infinity
        raw[:, 1] &= np.where(raw[:, 1] & 127 == 127, 254, 255).astype(np.uint8)
    for at in SCALES[name]:
        halves = rng.normal(size=n_blocks).astype(np.float16)
        halves[:4] = [65504, -65504, 6e-8, 0]  # the largest, the smallest
        raw[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return raw


@pytest.mark.parametrize("fill", ["random", "zeros", "ones"])
@pytest.mark.parametrize("name", CODECS)
def test_floats_equal_both_codecs_bit_for_bit(tmp_path, name, fill):
    raw = block_bytes(name, fill)
    rows = raw.reshape(M, -1)
    file, tensor = stored(tmp_path, name, raw)

    floats = read_floats(file, tensor, identify(file, tensor))

    kind = gguf.GGMLQuantizationType[name]
    expected = [gguf.dequantize(rows, kind)]
    if name != "BF16":
        expected.append(libgguf.dequantize_rows(rows, kind))
    assert floats.dtype == np.float32
    for each in expected:
        np.testing.assert_array_equal(floats.view(np.uint32), each.view(np.uint32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_unquantised_floats_are_read_as_written(tmp_path, dtype):
    info = np.finfo(dtype)
    weights = np.random.default_rng(0).normal(size=(M, K)).astype(dtype)
    weights[0, :5] = [info.max, -info.max, info.smallest_subnormal, -0.0, 0]
    file = GGUFFile(write(tmp_path / "a.gguf", "llama", {}, {"w": weights}))

    floats = read_floats(file, file.tensors["w"], identify(file, file.tensors["w"]))

    np.testing.assert_array_equal(floats.view(np.uint32), weights.astype(np.float32).view("u4"))


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("fill", ["random", -1, 0, 1])
def test_trits_of_both_quantisers_are_read_back(tmp_path, name, fill):
    rng = np.random.default_rng(2)
    trits = rng.integers(-1, 2, (M, K)) if fill == "random" else np.full((M, K), fill)
    weights = (trits * np.float32(0.375)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[name]
    by_gguf, by_libgguf = gguf.quantize(weights, kind), libgguf.quantize_rows(weights, kind)
    np.testing.assert_array_equal(by_gguf, by_libgguf)
    file, tensor = stored(tmp_path, name, by_gguf)

    integers, scales = read_integers(file, tensor, identify(file, tensor))

    np.testing.assert_array_equal(integers, trits)
    assert scales.shape == (M, K // 256)
    assert (scales == (0 if fill == 0 else 0.375)).all()


@pytest.mark.parametrize("shape", [(M, K), (8, 80), (1, 128)])
def test_i2_s_is_read_as_its_converter_writes_it(tmp_path, shape):
    trits = np.random.default_rng(3).integers(-1, 2, shape)
    file, tensor = stored(tmp_path, "I2_S", pack_i2_s(trits, 1.2188548), shape)

    integers, scales = read_integers(file, tensor, identify(file, tensor))

    np.testing.assert_array_equal(integers, trits)
    assert scales.tolist() == [np.float32(1.2188548)]
    expected = trits.astype(np.float32) * np.float32(1.2188548)
    np.testing.assert_array_equal(read_floats(file, tensor, BY_NAME["I2_S"]), expected)


def test_every_byte_of_i2_s_has_the_codes_of_its_fields():
    every = np.arange(256, dtype=np.uint8)

    codes = blocks.i2_s(every.reshape(8, 32)).reshape(8, 4, 32)

    for i in range(4):
        np.testing.assert_array_equal(codes[:, i].reshape(-1), every >> (6 - 2 * i) & 3)


@pytest.mark.parametrize("name", LOW_BIT)
def test_integers_of_low_bits_are_read_as_its_statement_writes_them(tmp_path, name):
    has_twos = name in ("Q2_0", "Q2_0 with 128 weights per scale", "PQ2_0", "TQ2_0")
    expected = random_integers(name, (M, K), has_twos=has_twos)
    scales = np.random.default_rng(1).uniform(0.1, 1, (M, K // BY_NAME[name].block))
    scales = scales.astype(np.float16)
    file, tensor = stored(tmp_path, name, pack_low_bit(name, expected, scales))
    kind = identify(file, tensor)

    found = read_integers(file, tensor, kind)

    assert kind.name == name
    np.testing.assert_array_equal(found.integers, expected)
    np.testing.assert_array_equal(found.scales, scales)
    floats = scales.astype(np.float32).repeat(kind.block, axis=1) * expected
    np.testing.assert_array_equal(read_floats(file, tensor, kind), floats)
    assert has_twos_of(file, tensor, kind) == has_twos


@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", "PTQ1_0", "STQ1_0"])
def test_floats_of_low_bits_equal_those_of_the_reference_code(tmp_path, name):
    golden = json.loads((DATA / "low_bit_blocks.json").read_text())[name]
    raw = np.frombuffer(bytes.fromhex(golden["bytes"]), dtype=np.uint8)
    shape = 1, len(raw) // BY_NAME[name].block_bytes * BY_NAME[name].block
    file, tensor = stored(tmp_path, name, raw, shape)

    floats = read_floats(file, tensor, BY_NAME[name])

    assert floats.astype("<f4").tobytes().hex() == golden["floats"]


def test_every_pattern_of_stq1_0_has_one_zero_and_all_are_different():
    every = set()
    for signs in np.ndindex(2, 2, 2):
        for zero in range(4):
            four = list(2 * np.array(signs) - 1)
            four.insert(zero, 0)
            block = low_bit_block("STQ1_0", np.repeat(np.tile(four, 4), 16).tolist(), 1)
            codes = blocks.stq1_0(np.frombuffer(block, dtype=np.uint8)[None])
            np.testing.assert_array_equal(codes[0].reshape(4, 4, 16)[0, :, 0], np.array(four) + 1)
            every.add(block)

    assert len(every) == 32


@pytest.mark.parametrize("at", [0, 31, 32, 63, 64, 65])
def test_one_code_3_is_found_and_bytes_of_scales_are_ignored(tmp_path, at):
    data = np.full((M * K // 256, 66), 0b01010101, dtype=np.uint8)
    data[-1, at] |= 0b11000000
    file, tensor = stored(tmp_path, "TQ2_0", data)

    assert has_twos_of(file, tensor, identify(file, tensor)) == (at < 64)


def test_code_without_a_trit_is_refused_with_its_share(tmp_path):
    name = "I2_S"
    data = pack_i2_s(np.zeros((M, K)), 1)
    data.reshape(-1)[0] |= 3
    file, tensor = stored(tmp_path, name, data)

    with pytest.raises(ConfigError, match=r"'w' must have codes 0, 1 and 2 but 1 \(0.02%\) are 3"):
        read_integers(file, tensor, identify(file, tensor))


@pytest.mark.parametrize("name", ["F32", "F16", "Q8_0", "Q6_K"])
def test_value_that_is_not_finite_is_refused(tmp_path, name):
    kind = BY_NAME[name]
    data = np.zeros((M * K // kind.block, kind.block_bytes), dtype=np.uint8)
    at = SCALES.get(name, (0,))[0] if name != "F32" else 2
    data[-1, at : at + 2] = [0x80, 0x7F] if name == "F32" else [0, 0x7C]  # infinity
    file, tensor = stored(tmp_path, name, data)

    with pytest.raises(ConfigError, match="tensor 'w' must be finite but is not"):
        read_floats(file, tensor, kind)


def test_code_3_of_tq2_0_is_twice_the_scale(tmp_path):
    file, tensor = stored(tmp_path, "TQ2_0", block_bytes("TQ2_0", "ones"))
    kind = identify(file, tensor)

    scales = read_scales(file, tensor, kind).repeat(256, axis=1)

    np.testing.assert_array_equal(read_floats(file, tensor, kind), 2 * scales)


@pytest.mark.parametrize("chunk", [1, 300, 1000])
def test_result_does_not_depend_on_the_chunks(tmp_path, chunk, monkeypatch):
    file, tensor = stored(tmp_path, "Q6_K", block_bytes("Q6_K", "random"))
    expected = read_floats(file, tensor, BY_NAME["Q6_K"])

    monkeypatch.setattr("yocobit.importers.gguf.tensor_types._CHUNK_WEIGHTS", chunk)

    np.testing.assert_array_equal(read_floats(file, tensor, BY_NAME["Q6_K"]), expected)


def identified(tmp_path, kind, n_bytes, shape=(M, K)):
    info = tensor_info("w", shape, kind)
    path = tmp_path / "a.gguf"
    path.write_bytes(raw_file((), [info], b"\0" * n_bytes))
    file = GGUFFile(path)
    return identify(file, file.tensors["w"]).name


N = M * K


@pytest.mark.parametrize(
    ("kind", "n_bytes", "name"),
    [
        (36, N // 32 * 18, "IQ4_NL_4_4"),
        (39, N // 4, "TL2"),
        (38, N // 3, "TL1"),
        (40, N // 64 * 36, "NVFP4"),
        (18, N // 256 * 98, "IQ3_XXS"),
        (135, N, "IQ2_BN"),
        (77, N, "of the unknown id 77"),
    ],
)
def test_unsupported_type_is_refused_by_its_name(tmp_path, kind, n_bytes, name):
    with pytest.raises(ConfigError, match=rf"'w' must be of a type in F32, .* but is {name};"):
        identified(tmp_path, kind, n_bytes)


@pytest.mark.parametrize(
    ("kind", "n_bytes", "name"),
    [
        (36, N // 4 + 32, "I2_S"),
        (40, N // 512 * 130, "Q2_0C"),
        (42, N // 64 * 18, "Q2_0"),
        (42, N // 128 * 34, "Q2_0 with 128 weights per scale"),
        (42, N // 256 * 42, "STQ1_0"),
        (43, N // 256 * 42, "STQ1_0"),
    ],
)
def test_types_with_the_same_id_are_distinguished_by_the_size(tmp_path, kind, n_bytes, name):
    assert identified(tmp_path, kind, n_bytes) == name


@pytest.mark.parametrize("extra", [-32, -1, 32, N])
@pytest.mark.parametrize("name", ["F32", "F16", "Q8_0", "Q6_K", "TQ1_0", "I2_S", "Q1_0", "PTQ1_0"])
def test_size_that_is_not_of_the_type_is_refused(tmp_path, name, extra):
    kind = BY_NAME[name]
    assert identified(tmp_path, kind.id, kind.size(N)) == name

    with pytest.raises(ConfigError, match=rf"'w' has .* not the size of .* type {name}"):
        identified(tmp_path, kind.id, kind.size(N) + extra)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "TQ2_0"])
def test_row_that_ends_within_a_block_is_refused(tmp_path, name):
    kind = BY_NAME[name]

    with pytest.raises(ConfigError, match="not the size of"):
        identified(tmp_path, kind.id, kind.size(N), (N // 8, 8))


def test_same_id_and_size_of_two_types_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="may be of type Q2_0 or Q2_0 with 128 weights"):
        identified(tmp_path, 42, 36, (1, 128))


def test_table_agrees_with_the_sizes_of_ggml():
    known = {each.name: (each.block, each.block_bytes) for each in TYPES}

    for kind, sizes in gguf.GGML_QUANT_SIZES.items():
        # ggml-common.h has 36 bytes for Q8_1: its two numbers are float16.
        assert known[kind.name] == ((32, 36) if kind.name == "Q8_1" else sizes)
        assert BY_NAME[kind.name].id == kind
