"""Every native kernel that this CPU can run, against the contracts in native/kernels.h.

Integer kernels: equality with NumPy's int64. Floating-point kernels: every variant returns the
reference's bits, and the reference is within a derived bound of float64.

Letters: M output features   K input features   N tokens   D head size   S cached positions
"""

import itertools

import numpy as np
import pytest
from kernel_families import KERNELS

from yocobit import _native
from yocobit.packing.formats import INT4, pack_sign, pack_ternary
from yocobit.packing.layout import quantize_int4

EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(params=KERNELS)
def kernels(request) -> str:
    """ "scalar", and each SIMD variant that this CPU supports or emulates."""
    return request.param


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(kind, M, K, seed=0):
    """Random weights (M, K) int8 of a kind, and their packed codes."""
    rng = np.random.default_rng(seed)
    if kind == "ternary":
        w = rng.integers(-1, 2, (M, K), dtype=np.int8)
        return w, pack_ternary(w)
    w = rng.integers(0, 2, (M, K), dtype=np.int8) * np.int8(2) - np.int8(1)
    return w, pack_sign(w)


# ---- integers ----


def product(x, w):
    """x (N, K) by w (M, K): integers whose sums are below 2^53, and so exact in float64."""
    return x.astype(np.float64) @ w.T.astype(np.float64)


@pytest.mark.parametrize("kind", ["ternary", "sign"])
@pytest.mark.parametrize("K", [8, 128, 200, 256, 1408, 2560])
def test_low_bit_gemm_equals_integer_matmul(kernels, kind, K):
    for M in (1, 7, 8, 20, 77):
        w, codes = weights(kind, M, K, seed=M + K)
        for N in (1, 2, 3, 4, 9, 25, 32, 69):
            x = np.random.default_rng(N).integers(-127, 128, (N, K), dtype=np.int8)

            y = _native.low_bit_gemm(kernels, codes, M, x, kind == "ternary")

            # |sum| < 2^24: exact in float32.
            np.testing.assert_array_equal(y, product(x, w), f"{M=} {N=}")


@pytest.mark.parametrize("kind", ["ternary", "sign"])
@pytest.mark.parametrize("N", [33, 151, 300])
def test_low_bit_gemm_of_many_rows_equals_integer_matmul(kernels, kind, N):
    w, codes = weights(kind, 2700, 136)
    x = np.random.default_rng(1).integers(-127, 128, (N, 136), dtype=np.int8)

    y = _native.low_bit_gemm(kernels, codes, 2700, x, kind == "ternary")

    np.testing.assert_array_equal(y, product(x, w))


@pytest.mark.parametrize("kind", ["ternary", "sign"])
@pytest.mark.parametrize("w_sign", [-1, 1])
@pytest.mark.parametrize("K", [8192, 131072])
def test_low_bit_gemm_does_not_wrap_on_the_largest_sum(kernels, kind, w_sign, K):
    w = np.full((33, K), w_sign, dtype=np.int8)
    codes = pack_ternary(w) if kind == "ternary" else pack_sign(w)
    for x_sign in (-1, 1):
        x = np.full((32, K), x_sign * 127, dtype=np.int8)
        for N in (1, 4, 16, 32):
            y = _native.low_bit_gemm(kernels, codes, 33, x[:N], kind == "ternary")

            assert (y == x_sign * w_sign * 127 * K).all(), (x_sign, N)


@pytest.mark.parametrize("kind", ["ternary", "sign"])
@pytest.mark.parametrize("M", [1, 7, 8, 20, 77, 2100])
def test_low_bit_gemm_scales_every_row(kernels, kind, M):
    w, codes = weights(kind, M, 200)
    scales = random(M, seed=M)
    for N in (1, 3, 4, 8, 9, 17, 32, 69):
        x = np.random.default_rng(N).integers(-127, 128, (N, 200), dtype=np.int8)

        y = _native.low_bit_gemm(kernels, codes, M, x, kind == "ternary", scales)

        np.testing.assert_array_equal(y, product(x, w).astype(np.float32) * scales, f"{N=}")


@pytest.mark.parametrize("N", [1, 4, 16, 32])
def test_ternary_gemm_survives_code_3_of_a_corrupt_file(kernels, N):
    codes = np.full((5, 64, 8, 32), 0xFF, dtype=np.uint8)
    codes[1:] = 0x55  # weights 0
    x = np.full((N, 8192), 127, dtype=np.int8)

    y = _native.low_bit_gemm(kernels, codes, 40, x, True)

    assert (y[:, 8:] == 0).all()


@pytest.mark.parametrize("K", [8, 16, 264, 2560, 8200])
def test_int8_gemm_equals_integer_matmul(kernels, K):
    for M, N in itertools.product((1, 4, 11), (1, 2, 5)):
        rng = np.random.default_rng(K)
        w = rng.integers(-127, 128, (M, K), dtype=np.int8)
        x = rng.integers(-16383, 16384, (N, K), dtype=np.int16)

        y = _native.int8_gemm(kernels, w, x)

        # Exact, then rounded to float32 once.
        np.testing.assert_array_equal(y, product(x, w).astype(np.float32), f"{M=} {N=}")


@pytest.mark.parametrize("w_value", [-128, 127])
@pytest.mark.parametrize("x_value", [-16383, 16383])
def test_int8_gemm_does_not_wrap_on_the_largest_sum(kernels, w_value, x_value):
    w = np.full((4, 65536), w_value, dtype=np.int8)
    x = np.full((2, 65536), x_value, dtype=np.int16)

    y = _native.int8_gemm(kernels, w, x)

    assert (y == np.float32(w_value * x_value * 65536)).all()


@pytest.mark.parametrize("N", [1, 4, 5])
@pytest.mark.parametrize("M", [1, 8, 20])
@pytest.mark.parametrize("K", [64, 200, 2560])
def test_int4_gemm_has_equal_bits_in_all_families_and_is_near_float64(N, M, K):
    codes, scales = quantize_int4(random(M, K, seed=K))
    x = np.random.default_rng(N).integers(-16383, 16384, (N, K), dtype=np.int16)
    raw = scales.view(np.uint16)

    y = all_equal(lambda name: _native.int4_gemm(name, codes, raw, M, x))

    w = INT4.dequantize(codes, scales, M, K).astype(np.float64)
    # One conversion and one fused multiply-add for each block of 64 columns.
    bound = (K / 64 + 2) * EPS * (np.abs(x).astype(np.float64) @ np.abs(w).T)
    assert (np.abs(y - x.astype(np.float64) @ w.T) <= bound).all()


def test_int4_gemm_of_one_block_is_exact_up_to_its_largest_sum(kernels):
    codes = np.full((1, 1, 8, 32), 0xFF, dtype=np.uint8)  # weights 7
    codes[0, 0, 1] = 0x00  # weights -8
    scales = np.ones((1, 1, 8), dtype=np.float16).view(np.uint16)
    x = np.full((1, 64), 16383, dtype=np.int16)

    y = _native.int4_gemm(kernels, codes, scales, 8, x)

    assert y[0, :2].tolist() == [7 * 16383 * 64, -8 * 16383 * 64]


@pytest.mark.parametrize("K", [8, 136, 2560])
def test_quantize_int16_row_equals_round_half_to_even(kernels, K):
    x = 0.01 * random(K, seed=K)
    x[:4] = [0.5, 1.5, -2.5, 16383.0]  # ties, as 16383 is the largest magnitude

    codes, scale, sums = _native.quantize_int16_row(kernels, x)

    np.testing.assert_array_equal(codes, np.rint(x))
    assert codes[:4].tolist() == [0, 2, -2, 16383]
    assert sums == [codes[i : i + 64].astype(int).sum() for i in range(0, K, 64)]
    assert scale == 1.0


@pytest.mark.parametrize("K", [8, 136, 2560])
def test_quantize_row_equals_round_half_to_even(kernels, K):
    x = random(K, seed=K)
    x[:4] = [0.5, 1.5, -2.5, 127.0]  # ties, as 127 is the largest magnitude

    codes, scale, total = _native.quantize_int8_row(kernels, x)

    np.testing.assert_array_equal(codes, np.rint(x * (np.float32(127) / np.abs(x).max())))
    assert codes[:4].tolist() == [0, 2, -2, 127]
    assert scale == 1.0
    assert total == codes.astype(np.int64).sum()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf, 1e-38, 3e38])
def test_quantize_row_stays_in_range_for_any_input(kernels, value):
    codes, _, _ = _native.quantize_int8_row(kernels, np.full(16, value, dtype=np.float32))

    assert codes.min() >= -127


# ---- floating point: all variants alike ----


def all_equal(call):
    """Assert that call(kernels) has the same bits for every variant; return it."""
    results = [call(name) for name in KERNELS]
    for result in results[1:]:
        np.testing.assert_array_equal(
            np.asarray(result).view(np.uint32), np.asarray(results[0]).view(np.uint32)
        )
    return results[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("N", "M", "K"), [(1, 5, 8), (4, 3, 256), (7, 20, 1000)])
def test_dense_gemm_has_equal_bits_in_all_families_and_is_near_float64(dtype, N, M, K):
    w, x = random(M, K, seed=K).astype(dtype), random(N, K, seed=N)
    raw = w.view(np.uint16) if dtype == np.float16 else w
    exact = w.astype(np.float64)

    y = all_equal(lambda name: _native.dense_gemm(name, raw, x))

    # A sum of K terms in eight lanes: K / 8 + 4 roundings of partial sums.
    bound = (K / 8 + 4) * EPS * (np.abs(x).astype(np.float64) @ np.abs(exact).T)
    assert (np.abs(y - x.astype(np.float64) @ exact.T) <= bound).all()


def test_half_precision_of_every_value_is_numpys(kernels):
    halves = np.arange(1 << 16, dtype=np.uint16)
    halves = halves[np.isfinite(halves.view(np.float16))].reshape(-1, 8)
    one = np.zeros((1, 8), dtype=np.float32)
    for column in range(8):
        one[:] = 0
        one[0, column] = 1

        y = _native.dense_gemm(kernels, halves, one)

        np.testing.assert_array_equal(y[0], halves.view(np.float16)[:, column])


@pytest.mark.parametrize("size", [8, 96, 2560])
def test_rms_norm_has_equal_bits_in_all_families_and_is_near_float64(size):
    x, weight = 100 * random(size), random(size, seed=1)

    y = all_equal(lambda name: _native.rms_norm(name, x, weight, 1e-5))

    exact = x / np.sqrt(np.square(x, dtype=np.float64).mean() + 1e-5) * weight
    # The sum's relative error halves under the root; division, root and two products add 4.
    np.testing.assert_array_less(np.abs(y - exact), (size / 16 + 6) * EPS * np.abs(exact) + 1e-30)


@pytest.mark.parametrize("rate", [1.0, 1.25, 0.01])
def test_exponentials_are_within_3_ulp_and_the_same_everywhere(kernels, rate):
    x = np.random.default_rng(1).normal(scale=20, size=4096).astype(np.float32)
    largest, rate = x.max(), np.float32(rate)

    y = _native.exponentials(kernels, x, largest, rate)

    # The exponent as the kernel has it: each operation rounds once in float32.
    exponent = ((x - largest) * rate).astype(np.float64)
    expected = np.exp(np.maximum(exponent, -87))
    assert (np.abs(y - expected) <= 3 * np.spacing(expected.astype(np.float32))).all()
    np.testing.assert_array_equal(y, _native.exponentials("scalar", x, largest, rate))


def test_exponentials_of_nan_and_minus_infinity_are_next_to_0(kernels):
    x = np.float32([0, -np.inf, np.nan, -1e30, -86, -88, 0, 0])

    y = _native.exponentials(kernels, x, 0.0, 1.0)

    assert (y[[0, 6, 7]] == 1).all()
    assert (y[[1, 2, 3, 5]] < 4e-38).all()
    assert y[4] > 4e-38


@pytest.mark.parametrize("function", ["swiglu", "geglu", "relu2", "sign"])
def test_activations_have_equal_bits_in_all_families_and_are_near_float64(function):
    gate = np.concatenate([random(4096) * 8, np.float32([0, -0.0, 87, -87, 1e4, -1e4, 1e-30, -1])])
    up = random(len(gate), seed=1)
    g, u = gate.astype(np.float64), up.astype(np.float64)
    slope = -2 * np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)  # gelu(g) = g / (1 + exp(slope))
    exact = {
        "geglu": g / (1 + np.exp(np.minimum(slope, 700))) * u,
        "swiglu": g / (1 + np.exp(np.minimum(-g, 700))) * u,
        "relu2": np.square(np.maximum(g, 0)) * u,
        "sign": np.where(u > 0, 1.0, -1.0),
    }[function]

    y = all_equal(lambda name: _native.activate(name, function, gate, up))

    # exp within 2 ulp, a sum, a quotient, a product. Below exp(-87) the clamp shows, at 1e-34.
    # The argument of gelu's exp is rounded four times.
    exp_ulps = 2 * np.minimum(np.abs(slope), 88) if function == "geglu" else 0
    assert (np.abs(y - exact) <= (6 + exp_ulps) * EPS * np.abs(exact) + 1e-33).all()


@pytest.mark.parametrize("is_interleaved", [True, False])
def test_rope_has_equal_bits_in_all_families_and_is_near_complex_rotation(is_interleaved):
    x, angles = random(64), np.random.default_rng(1).uniform(0, 6, 32)
    cosine, sine = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    y = all_equal(lambda name: _native.rope(name, x, cosine, sine, is_interleaved))

    a, b = (x[::2], x[1::2]) if is_interleaved else (x[:32], x[32:])
    rotated = (a + 1j * b) * np.exp(1j * angles)
    exact = np.concatenate([rotated.real, rotated.imag])
    if is_interleaved:
        exact = np.stack([rotated.real, rotated.imag], axis=1).ravel()
    np.testing.assert_allclose(y, exact, rtol=0, atol=4 * EPS * np.abs(rotated).max())


@pytest.mark.parametrize("D", [8, 64, 128])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_a_step_of_retention_has_equal_bits_in_all_families_and_is_near_float64(D, decay):
    state, (q, k, v) = random(D, D), random(3, D, seed=1)
    decays = np.float32([decay])
    exact_state = decay * state.astype(np.float64) + np.outer(k, v.astype(np.float64))

    results = [_native.retain(name, state, q[None], k[None], v[None], decays) for name in KERNELS]

    for next_state, o in results:
        np.testing.assert_array_equal(next_state, results[0][0])
        np.testing.assert_array_equal(o, results[0][1])
    next_state, o = results[0]
    magnitude = decay * np.abs(state) + np.abs(np.outer(k, v))
    assert (np.abs(next_state - exact_state) <= 2 * EPS * magnitude).all()
    assert (np.abs(o[0] - q @ exact_state) <= (D + 3) * EPS * (np.abs(q) @ magnitude)).all()


@pytest.mark.parametrize("D", [8, 24, 64, 136])
@pytest.mark.parametrize("n", [2, 5, 15])
def test_retention_of_many_positions_has_the_bits_of_steps(kernels, n, D):
    state = random(D, D)
    q, k, v = (random(n, D, seed=seed) for seed in (1, 2, 3))
    decays = np.linspace(0, 1, n, dtype=np.float32)

    last, o = _native.retain(kernels, state, q, k, v, decays)

    for i in range(n):
        one = slice(i, i + 1)
        state, expected = _native.retain(kernels, state, q[one], k[one], v[one], decays[one])
        np.testing.assert_array_equal(o[one], expected)
    np.testing.assert_array_equal(last, state)


def cached(values, dtype):
    """values (S, D) as a cache of that type gives them back, float64."""
    if dtype == "f16":
        return values.astype(np.float16).astype(np.float64)
    if dtype in ("int8", "int4"):
        levels = np.float32(127 if dtype == "int8" else 7)
        largest = np.abs(values).max(axis=1, keepdims=True)
        codes = np.rint(values * (levels / largest))
        return codes.astype(np.float64) * (largest / levels)
    return values.astype(np.float64)


@pytest.mark.parametrize("dtype", ["f32", "f16", "int8", "int4"])
@pytest.mark.parametrize(("begin", "end"), [(0, 1), (0, 32), (31, 33), (5, 100), (64, 100)])
@pytest.mark.parametrize(
    ("n", "D", "kv_split"), [(1, 8, 32), (3, 128, 64), (6, 24, 1024), (4, 136, 64)]
)
def test_attend_equals_float64_softmax_in_every_family(dtype, begin, end, n, D, kv_split):
    q, keys, values = 3 * random(n, D), random(100, D, seed=1), random(100, D, seed=2)

    o = all_equal(lambda name: _native.attend(name, q, keys, values, dtype, begin, end, kv_split))

    k, v = cached(keys, dtype)[begin:end], cached(values, dtype)[begin:end]
    scores = q.astype(np.float64) @ k.T / np.sqrt(D)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    exact = weights @ v / weights.sum(axis=1, keepdims=True)
    # A score errs by (D / 8 + 6) eps of its terms' magnitude, a weight by that much relatively;
    # sums over positions add their length, exp and tile corrections 4 each.
    score_error = (D / 8 + 6) * EPS * (np.abs(q) @ np.abs(k).T).max() / np.sqrt(D)
    weight_error = 0.0
    if dtype in ("int8", "int4"):  # half a step of 15 bits of each query, and of each weight
        step = 0.5 / 16383
        score_error += step * np.abs(q).max() * np.abs(k).sum(axis=1).max() / np.sqrt(D)
        weight_error = step * (end - begin)
    bound = (2 * score_error + weight_error + 2 * (end - begin + 10) * EPS) * np.abs(v).max()
    assert np.abs(o - exact).max() <= bound


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("q_sign", [1, -1])
@pytest.mark.parametrize("v_sign", [1, -1])
def test_attend_does_not_wrap_on_the_largest_sums_of_codes(dtype, q_sign, v_sign):
    """All codes are the largest ones: 1024 of a key by the query, 32 of a tile by the weights."""
    q = np.full((4, 1024), q_sign, np.float32)
    keys = np.full((96, 1024), 0.5, np.float32)
    keys[64:] = -0.5  # far below or far above the others
    values = np.full((96, 1024), v_sign, np.float32)
    values[64:] *= 3

    o = all_equal(lambda name: _native.attend(name, q, keys, values, dtype, 0, 96, 512))

    expected = v_sign * (1 if q_sign > 0 else 3)
    np.testing.assert_allclose(o, expected, rtol=1e-6)


@pytest.mark.parametrize("D", [8, 24, 64, 128, 1024])
def test_int4_cache_equals_its_definition(kernels, D):
    x = random(D, seed=D)
    x[:6] = [7, -7, 0.5, 1.5, -2.5, 6.5]  # ties, as 7 is the largest magnitude

    stored, scale = _native.store_int4(kernels, x)
    loaded = _native.load_int4(kernels, stored, scale, D)

    codes = np.zeros(-(-D // 16) * 16, dtype=int)
    codes[:D] = np.rint(x)
    low, high = codes.reshape(-1, 2, 8).transpose(1, 0, 2) & 15
    np.testing.assert_array_equal(stored, (low | high << 4).ravel())
    assert codes[:6].tolist() == [7, -7, 0, 2, -2, 6]
    assert scale == 1.0
    np.testing.assert_array_equal(loaded, np.rint(x))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf, 1e-38, 3e38])
def test_int4_cache_stays_in_range_for_any_input(kernels, value):
    x = np.full(16, value, dtype=np.float32)

    codes = _native.load_int4(kernels, _native.store_int4(kernels, x)[0], 1.0, 16)

    assert np.abs(codes).max() <= 7


@pytest.mark.parametrize("kv_split", [32, 64])
def test_attend_survives_scores_that_overflow_exp(kernels, kv_split):
    q, keys = np.full((1, 8), 100, dtype=np.float32), np.zeros((64, 8), dtype=np.float32)
    keys[40] = 100
    values = random(64, 8)

    o = _native.attend(kernels, q, keys, values, "f32", 0, 64, kv_split)

    np.testing.assert_array_equal(o[0], values[40])


# ---- errors ----


def test_unknown_kernels_are_rejected_by_name():
    with pytest.raises(ValueError, match="'neon' are not supported by this CPU"):
        _native.quantize_int8_row("neon", np.zeros(8, dtype=np.float32))


def test_mismatched_shapes_are_rejected(kernels):
    codes = pack_ternary(np.zeros((2, 256), dtype=np.int8))

    with pytest.raises(ValueError, match="more values than the codes have columns"):
        _native.low_bit_gemm(kernels, codes, 2, np.zeros((1, 257), dtype=np.int8), True)
