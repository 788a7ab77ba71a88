"""The packed layout: bytes, inverse, and the kernels that read it."""

import doctest
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from kernel_families import KERNELS

from yocobit import _native
from yocobit.packing import layout
from yocobit.packing.formats import FORMATS, INT4, SIGN, TERNARY
from yocobit.packing.scales import PerGroup

FORMAT = Path(__file__).parents[2] / "docs" / "reference" / "packed-format.md"
OFF_BLOCK_SHAPES = [(1, 1), (8, 128), (8, 256), (9, 129), (7, 257), (24, 384), (3, 40)]


def random_weights(kind: str, M: int, K: int) -> np.ndarray:
    values = [-1, 0, 1] if kind == "ternary" else [-1, 1]
    return np.random.default_rng(M * 1000 + K).choice(values, size=(M, K)).astype(np.int8)


def test_examples_of_the_format_page_match_the_code():
    result = doctest.testfile(str(FORMAT), module_relative=False)

    assert result.attempted == 11
    assert result.failed == 0


@pytest.mark.parametrize(("M", "K"), OFF_BLOCK_SHAPES)
def test_unpack_ternary_inverts_pack_ternary(M, K):
    weights = random_weights("ternary", M, K)

    codes = TERNARY.encode(weights)

    assert codes.shape == layout.code_shape(M, K, 2) == (-(-M // 8), -(-K // 128), 8, 32)
    np.testing.assert_array_equal(TERNARY.decode(codes, M, K), weights)


WEIGHTS_ONLY = [format for format in FORMATS.values() if format.unit_bytes == 4]


@pytest.mark.parametrize("format", WEIGHTS_ONLY, ids=lambda format: format.name)
@pytest.mark.parametrize(("M", "K"), OFF_BLOCK_SHAPES)
def test_decoding_inverts_encoding_of_weights_only_formats(M, K, format):
    random = np.random.default_rng(M * 1000 + K)
    weights = random.choice(np.array(format.values, dtype=np.int8), size=(M, K))

    codes = format.encode(weights)

    assert codes.shape == layout.code_shape(M, K, format.bits)
    np.testing.assert_array_equal(format.decode(codes, M, K), weights)


def test_weights_only_formats_interleave_rows_by_four_bytes():
    weights = np.zeros((10, 256), dtype=np.int8)
    weights[9, 128 + 64 + 5] = -1  # group 1, block 1, row 1, byte 5, bits 4-5

    flat = FORMATS["ternary_g128"].encode(weights).ravel()

    at = (1 * 2 + 1) * 256 + 4 * (8 * 1 + 1) + 1
    assert flat[at] == 0b01000101
    assert np.flatnonzero(flat != 0b01010101).tolist() == [at]


@pytest.mark.parametrize(("M", "K"), OFF_BLOCK_SHAPES)
@pytest.mark.parametrize("name", ["ternary_g128", "ternary_g64", "sign_g128"])
def test_scales_of_groups_are_stored_in_whole_blocks(M, K, name):
    scale = FORMATS[name].scale
    assert isinstance(scale, PerGroup)
    groups = -(-K // scale.columns)
    scales = np.random.default_rng(K).random((M, groups)).astype(np.float16)

    stored = scale.encode(scales.astype(np.float32))

    assert stored.dtype == np.float16
    assert stored.shape == scale.shape(M, K)
    assert stored.shape[1] % scale.per_block == 0
    np.testing.assert_array_equal(scale.decode(stored, M, K), scales)
    expanded = scales.repeat(scale.columns, axis=1)[:, :K]
    np.testing.assert_array_equal(scale.expand(stored, M, K), expanded)
    assert np.count_nonzero(stored) == np.count_nonzero(scales)


@pytest.mark.parametrize(("M", "K"), OFF_BLOCK_SHAPES)
def test_unpack_sign_inverts_pack_sign(M, K):
    weights = random_weights("sign", M, K)

    codes = SIGN.encode(weights)

    assert codes.shape == layout.code_shape(M, K, 1) == (-(-M // 8), -(-K // 256), 8, 32)
    np.testing.assert_array_equal(SIGN.decode(codes, M, K), weights)


def test_pack_ternary_interleaves_eight_rows_by_block():
    weights = np.zeros((10, 256), dtype=np.int8)
    weights[9, 128 + 64 + 5] = -1  # group 1, block 1, row 1, byte 5, bits 4-5

    flat = TERNARY.encode(weights).ravel()

    at = ((1 * 2 + 1) * 8 + 1) * 32 + 5
    assert flat[at] == 0b01000101
    assert np.flatnonzero(flat != 0b01010101).tolist() == [at]


def test_pack_sign_interleaves_eight_rows_by_block():
    weights = np.full((10, 512), -1, dtype=np.int8)
    weights[9, 256 + 224 + 5] = 1  # group 1, block 1, row 1, byte 5, bit 7

    flat = SIGN.encode(weights).ravel()

    at = ((1 * 2 + 1) * 8 + 1) * 32 + 5
    assert flat[at] == 0b10000000
    assert np.flatnonzero(flat).tolist() == [at]


def test_padding_is_weight_zero_in_ternary_and_bit_zero_in_sign():
    ones = np.ones((1, 1), dtype=np.int8)

    ternary = TERNARY.encode(ones).ravel()
    sign = SIGN.encode(ones).ravel()

    assert ternary[0] == 0b01010110
    assert set(ternary[1:].tolist()) == {0b01010101}
    assert sign[0] == 1
    assert set(sign[1:].tolist()) == {0}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["ternary", "sign"])
@pytest.mark.parametrize(("M", "K"), [(9, 128), (13, 200), (8, 264)])
def test_kernels_read_the_packed_layout(kernels, kind, M, K):
    weights = random_weights(kind, M, K)
    x = np.random.default_rng(K).integers(-127, 128, size=(2, K), dtype=np.int8)

    y = _native.low_bit_gemm(kernels, FORMATS[kind].encode(weights), M, x, kind == "ternary")

    np.testing.assert_array_equal(y, x.astype(np.int64) @ weights.T.astype(np.int64))


@pytest.mark.parametrize(
    ("pack", "bad"), [(TERNARY.encode, 2), (TERNARY.encode, -2), (SIGN.encode, 0)]
)
def test_pack_rejects_a_weight_without_a_code(pack, bad):
    weights = np.ones((2, 3), dtype=np.int8)
    weights[1, 1] = bad

    with pytest.raises(ValueError, match=f"but one is {bad}"):
        pack(weights)


def test_unpack_rejects_codes_of_another_shape():
    codes = TERNARY.encode(np.zeros((8, 128), dtype=np.int8))

    with pytest.raises(ValueError, match=r"shape \(1, 2, 8, 32\) but are uint8 of shape \(1, 1,"):
        TERNARY.decode(codes, 8, 129)


def test_quantize_rows_rounds_half_to_even_with_the_largest_at_127():
    rows = np.array([[127, 0.5, 1.5, -2.5], [-254, 1, 3, 5]], dtype=np.float32)

    codes, scales = layout.quantize_rows(rows)

    assert codes.dtype == np.int8
    assert codes.tolist() == [[127, 0, 2, -2], [-127, 0, 2, 2]]
    assert scales.dtype == np.float32
    assert scales.tolist() == [1, 2]


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-30, 3e38])
def test_quantize_rows_has_positive_finite_scales_at_the_extremes(largest):
    codes, scales = layout.quantize_rows(np.full((1, 8), largest, dtype=np.float32))

    assert 0 < scales[0] < np.inf
    assert codes[0].tolist() == [127 if largest > 1 else 0] * 8


def test_quantize_rows_equals_the_engines_quantisation():
    rows = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)

    codes, scales = layout.quantize_rows(rows)

    for row, row_codes, scale in zip(rows, codes, scales, strict=True):
        native_codes, native_scale, _ = _native.quantize_int8_row("scalar", row)
        np.testing.assert_array_equal(row_codes, native_codes)
        assert scale == np.float32(native_scale)


@pytest.mark.parametrize(("M", "K"), [(1, 64), (9, 200), (16, 8)])
def test_int4_round_trip_is_within_half_a_step(M, K):
    rows = np.random.default_rng(K).standard_normal((M, K)).astype(np.float32)

    codes, scales = layout.quantize_int4(rows)
    found = INT4.dequantize(codes, scales, M, K)

    assert codes.shape == (-(-M // 8), -(-K // 64), 8, 32)
    assert scales.shape == codes.shape[:3]
    blocks = [np.abs(rows[:, k : k + 64]).max(axis=1, keepdims=True) for k in range(0, K, 64)]
    step = np.concatenate(blocks, axis=1).repeat(64, axis=1)[:, :K] / 7
    # Half a step, plus the float16 rounding of the scale: at most 2^-11, times integers up to 7.
    assert (np.abs(found - rows) <= (0.5 + 7 * 2**-11) * step).all()


def test_int4_byte_holds_columns_32_apart():
    row = np.zeros((1, 64), dtype=np.float32)
    row[0, [0, 1, 32]] = 7, -7, 3

    codes, scales = layout.quantize_int4(row)

    assert [f"{byte:02x}" for byte in codes[0, 0, 0, :3]] == ["bf", "81", "88"]
    assert scales[0, 0, 0] == 1
    assert (codes[0, 0, 1:] == 0x88).all()  # rows past the last have weight 0


def test_int4_rejects_weights_beyond_its_scales():
    with pytest.raises(
        ValueError, match="weights must be within 458528 for int4 but reach 1e\\+06"
    ):
        layout.quantize_int4(np.full((1, 64), 1e6, dtype=np.float32))


def test_int4_of_zeros_is_zeros():
    codes, scales = layout.quantize_int4(np.zeros((2, 64), dtype=np.float32))

    assert (INT4.dequantize(codes, scales, 2, 64) == 0).all()


@pytest.mark.parametrize("quantize", [layout.quantize_rows, layout.quantize_int4])
def test_rows_are_rounded_alike_in_any_pieces(quantize, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    whole = quantize(rows)

    monkeypatch.setattr(layout, "_PIECE_WEIGHTS", 16 * 64)

    assert [piece.stop for piece in layout.row_pieces(50, 64)] == [16, 32, 48, 64]
    for found, expected in zip(quantize(rows), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_codes_are_packed_alike_in_any_pieces(monkeypatch):
    weights = np.random.default_rng(0).integers(-1, 2, (50, 300)).astype(np.int8)
    whole = TERNARY.encode(weights)

    monkeypatch.setattr(layout, "_PIECE_WEIGHTS", 16 * 300)

    np.testing.assert_array_equal(TERNARY.encode(weights), whole)


@pytest.mark.parametrize("quantize", [layout.quantize_rows, layout.quantize_int4])
def test_rounding_holds_no_second_copy_of_a_matrix(quantize, monkeypatch):
    monkeypatch.setattr(layout, "_PIECE_WEIGHTS", 1 << 14)
    rows = np.ones((2048, 1024), dtype=np.float32)

    tracemalloc.start()
    quantize(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < rows.nbytes / 2
