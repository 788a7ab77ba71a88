"""GEMM of group-scaled weights by grouped activations, and the quantisation of such activations,
against the contract in native/kernels/kernels.h, stated in NumPy.

Letters: M output features   K input features   N tokens   S activation groups of 32 columns
"""

import functools
import itertools

import numpy as np
import pytest
from kernel_families import KERNELS

from yocobit import _native

COLUMNS = 32  # of an activation group
CODES = {  # bits, first, step
    "ternary or int2": (2, -1, 1),
    "sign": (1, -1, 2),
    "odd": (2, -3, 2),
}
LIMITS = (127, 125, 123, 121)  # the candidates for the largest code of a group of int8
MOST = {1: 127, 2: 16383}  # magnitude of an activation of that many parts


@pytest.fixture(params=KERNELS)
def kernels(request) -> str:
    return request.param


def packed(codes, bits):
    """codes (M, K) as bytes (groups, blocks, 8, 32): 8 rows are interleaved by 4 bytes."""
    M, K = codes.shape
    fields = 8 // bits
    rows = np.zeros((-(-M // 8) * 8, -(-K // (32 * fields)) * 32 * fields), dtype=np.uint8)
    rows[:M, :K] = codes
    by_field = rows.reshape(len(rows), -1, fields, 32)
    shifts = (np.arange(fields, dtype=np.uint8) * bits)[:, None]
    whole = np.bitwise_or.reduce(by_field << shifts, axis=2)  # (rows, blocks, 32)
    by_unit = whole.reshape(len(rows) // 8, 8, -1, 8, 4).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(by_unit).reshape(len(rows) // 8, -1, 8, 32)


def parts_of(x, n_parts):
    """Integers x (N, K) as int8 parts (N, n_parts, K)."""
    if n_parts == 1:
        return np.ascontiguousarray(x[:, None].astype(np.int8))
    return np.ascontiguousarray(np.stack([x >> 7, x & 127], axis=1).astype(np.int8))


def fused(a, b, c):
    """a * b + c rounded once to float32, if float64 holds the product and rounds the sum safely."""
    exact = a.astype(np.float64) * b.astype(np.float64)  # 24 + 24 bits
    total = exact + c.astype(np.float64)
    error = (exact - (total - c)) + (c - (total - (total - c)))  # two-sum
    # Round to odd: the second rounding is then that of the exact value.
    bits = total.view(np.int64)
    is_odd = (bits & 1).astype(bool)
    towards_zero = np.sign(error) * np.sign(total) < 0
    bits = np.where((error != 0) & ~is_odd, bits - towards_zero.astype(np.int64) | 1, bits)
    return bits.view(np.float64).astype(np.float32)


def stated(w, x, x_scales, scales, row_scales):
    """y (N, M) by the contract; w (M, K) int64, scales (M, n) float16."""
    N, M = len(x), len(w)
    S = w.shape[1] // COLUMNS
    sums = np.einsum(
        "nsk,msk->snm",
        x[:, : S * COLUMNS].reshape(N, S, COLUMNS),
        w.reshape(M, S, COLUMNS),
        optimize=True,
    ).astype(np.float32)
    n_scales = 1 if scales is None else scales.shape[1]
    y = np.zeros((N, M), dtype=np.float32)
    for g in range(n_scales):
        t = np.zeros((N, M), dtype=np.float32)
        for s in range(g * S // n_scales, (g + 1) * S // n_scales):
            t = fused(np.broadcast_to(x_scales[:, s, None], t.shape), sums[s], t)
        if scales is None:
            return row_scales * t
        y = fused(np.broadcast_to(scales[:, g].astype(np.float32), t.shape), t, y)
    return y


class Case:
    """Random operands of a GEMM and, by `result(kernels)`, the output of the kernel.

    With N, the output is that of the last N tokens only.
    """

    def __init__(self, kind, group_columns, n_parts, N, M, K, seed=0):
        self.bits, self.first, self.step = CODES[kind]
        rng = np.random.default_rng(seed)
        block = 32 * 8 // self.bits
        self.K, self.padded = -(-K // block) * block, -(-K // 256) * 256
        self.M, self.n_parts, groups = M, n_parts, -(-M // 8)
        self.codes = rng.integers(0, 1 << self.bits, (M, self.K), dtype=np.uint8)
        self.x = np.zeros((N, self.padded), dtype=np.int64)
        self.x[:, :K] = rng.integers(-MOST[n_parts], MOST[n_parts] + 1, (N, K))
        self.x_scales = rng.uniform(0.01, 2, (N, self.padded // 32)).astype(np.float32)
        self.scales = self.row_scales = None
        if group_columns:
            self.scales = rng.normal(size=(groups * 8, self.K // group_columns)).astype(np.float16)
        else:
            self.row_scales = rng.normal(size=M).astype(np.float32)

    @functools.cached_property
    def weights(self):
        """The packed codes and scales."""
        raw = None
        if self.scales is not None:
            by_group = self.scales.reshape(-1, 8, self.scales.shape[1]).transpose(0, 2, 1)
            raw = np.ascontiguousarray(by_group).view(np.uint16)
        return packed(self.codes, self.bits), raw

    def result(self, kernels, group_range=None, N=None):
        codes, raw = self.weights
        begin, end = group_range or (0, -(-self.M // 8))
        first_token = 0 if N is None else len(self.x) - N
        return _native.group_scaled_gemm(
            kernels,
            codes,
            raw,
            self.row_scales,
            self.M,
            self.bits,
            self.first,
            self.step,
            parts_of(self.x[first_token:], self.n_parts),
            self.x_scales[first_token:],
            begin,
            end,
        )

    def expected(self):
        w = self.first + self.step * self.codes.astype(np.int64)
        scales = None if self.scales is None else self.scales[: self.M]
        return stated(w, self.x, self.x_scales, scales, self.row_scales)


@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("group_columns", [0, 64, 128])
@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize(("M", "K"), [(1, 8), (7, 128), (20, 264), (77, 1408), (136, 512)])
def test_group_scaled_gemm_of_any_batch_equals_the_contract(kind, group_columns, n_parts, M, K):
    case = Case(kind, group_columns, n_parts, 41, M, K, seed=M)
    expected = case.expected()

    for N in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 41):
        for kernels in KERNELS:
            found = case.result(kernels, N=N)
            np.testing.assert_array_equal(found, expected[-N:], f"{kernels} {N=}")


@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("N", [140, 300])
def test_group_scaled_gemm_of_many_tokens_equals_the_contract(kind, n_parts, N):
    case = Case(kind, 128, n_parts, N, 24, 1536)
    expected = case.expected()

    for kernels in KERNELS:
        np.testing.assert_array_equal(case.result(kernels), expected, kernels)


@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("x_sign", [-1, 1])
@pytest.mark.parametrize("kind", CODES)
def test_group_scaled_gemm_does_not_wrap_on_the_largest_sums(kind, x_sign, n_parts):
    case = Case(kind, 128, n_parts, 40, 20, 4096)
    case.x[:] = x_sign * MOST[n_parts]
    case.codes[::2] = (1 << case.bits) - 1
    case.codes[1::2] = 0
    expected = case.expected()

    for N in (1, 4, 40):
        for kernels in KERNELS:
            found = case.result(kernels, N=N)
            np.testing.assert_array_equal(found, expected[-N:], f"{kernels} {N=}")


@pytest.mark.parametrize("group_columns", [0, 128])
@pytest.mark.parametrize("N", [1, 3, 8, 40])
def test_group_scaled_gemm_writes_only_the_rows_of_its_groups(kernels, group_columns, N):
    case = Case("ternary or int2", group_columns, 1, N, 77, 384)
    whole = case.expected()
    for begin, end in itertools.product((0, 1, 4), (4, 5, 9, 10)):
        expected = np.zeros_like(whole)
        expected[:, begin * 8 : end * 8] = whole[:, begin * 8 : end * 8]

        found = case.result(kernels, (begin, end))

        np.testing.assert_array_equal(found, expected, f"{begin=} {end=}")


def test_group_scaled_gemm_of_no_token_is_empty(kernels):
    case = Case("sign", 128, 1, 0, 20, 264)

    assert case.result(kernels).shape == (0, 20)


@pytest.mark.parametrize(
    ("shape", "values", "rule"),
    [((1, 0, 8, 32), (2, -1, 1), "at least one block"), ((1, 1, 8, 32), (1, 5, 2), "first")],
)
def test_group_scaled_gemm_refuses_operands_outside_the_contract(kernels, shape, values, rule):
    codes, ones = np.zeros(shape, dtype=np.uint8), np.ones(8, dtype=np.float32)
    x = np.zeros((1, 1, 256 * shape[1]), dtype=np.int8)
    x_scales = np.ones((1, 8 * shape[1]), dtype=np.float32)

    with pytest.raises(ValueError, match=rule):
        _native.group_scaled_gemm(kernels, codes, None, ones, 8, *values, x, x_scales, 0, 1)


def lane_sum(lanes):
    """The sums of lanes (..., 8) in the order of native/simd/lanes.h."""
    fours = lanes[..., :4] + lanes[..., 4:]
    pairs = fours[..., :2] + fours[..., 2:]
    return pairs[..., 0] + pairs[..., 1]


def best_limits(groups, largest):
    """The limit of each group (G, 32) whose codes have the least squared error."""
    errors = []
    for limit in LIMITS:
        scaled = groups * (np.float32(limit) * (1 / largest))[:, None]
        error = (scaled - np.rint(scaled)).reshape(-1, 4, 8)
        total = np.zeros((len(groups), 8), dtype=np.float32)
        for i in range(4):
            total = fused(error[:, i], error[:, i], total)
        ratio = np.float32(LIMITS[0]) / np.float32(limit)
        errors.append(lane_sum(total) * (ratio * ratio))
    return np.array(LIMITS, dtype=np.float32)[np.argmin(errors, axis=0)]


@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("K", [8, 136, 2560])
def test_quantize_grouped_row_equals_round_half_to_even(kernels, n_parts, K):
    rng = np.random.default_rng(K)
    x = 3 * rng.standard_normal(K).astype(np.float32)
    x[:32] = rng.integers(-100, 100, min(K, 32))  # integers choose a limit of 127
    x[:4] = [0.5, 1.5, -2.5, MOST[n_parts]]  # ties, as the last is the largest magnitude

    parts, scales, sums = _native.quantize_grouped_row(kernels, x, n_parts)

    padded = np.zeros(-(-K // 256) * 256, dtype=np.float32)
    padded[:K] = x
    groups = padded.reshape(-1, COLUMNS)
    largest = np.maximum(np.abs(groups).max(axis=1), np.float32(1e-12))
    levels = best_limits(groups, largest) if n_parts == 1 else np.float32(MOST[n_parts])
    integers = np.rint(groups * (levels * (1 / largest))[:, None]).astype(np.int64)
    assert integers[0, :4].tolist() == [0, 2, -2, MOST[n_parts]]
    np.testing.assert_array_equal(parts, parts_of(integers.reshape(1, -1), n_parts)[0])
    np.testing.assert_array_equal(np.float32(scales), largest / levels)
    np.testing.assert_array_equal(sums, -integers.sum(axis=1))


def test_quantize_grouped_row_selects_each_limit(kernels):
    x = np.random.default_rng(0).standard_normal(8192).astype(np.float32)
    groups = x.reshape(-1, COLUMNS)
    largest = np.abs(groups).max(axis=1)

    parts, scales, _ = _native.quantize_grouped_row(kernels, x, 1)

    limits = best_limits(groups, largest)
    np.testing.assert_array_equal(np.float32(scales), largest / limits)
    np.testing.assert_array_equal(np.abs(parts.reshape(groups.shape)).max(axis=1), limits)
    assert set(limits) == set(LIMITS)
    rounded = parts.reshape(groups.shape) * np.array(scales)[:, None]
    of_127 = np.rint(groups * 127 / largest[:, None]) * largest[:, None] / 127
    error, former = (np.square(each - groups).sum(axis=1) for each in (rounded, of_127))
    assert (error <= former * (1 + 1e-5)).all()
    assert error.sum() < 0.93 * former.sum()


@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf, 1e-38, 3e38, -3e38])
def test_quantize_grouped_row_stays_in_range_for_any_input(kernels, n_parts, value):
    x = np.zeros(64, dtype=np.float32)
    x[5:40] = value

    parts, scales, sums = _native.quantize_grouped_row(kernels, x, n_parts)
    reference, *_ = _native.quantize_grouped_row("scalar", x, n_parts)

    np.testing.assert_array_equal(parts, reference)
    wide = parts.astype(int)
    integers = wide[0] if n_parts == 1 else wide[0] * 128 + wide[1]
    assert np.abs(integers).max() <= MOST[n_parts]
    np.testing.assert_array_equal(sums, -integers.reshape(-1, COLUMNS).sum(axis=1))
    assert len(scales) == 8
