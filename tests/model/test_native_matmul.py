"""The native training kernels: every family against the bits of the scalar one, and the scalar one
against NumPy.

Letters: M output features   K input features   N tokens
"""

import numpy as np
import pytest
from kernel_families import KERNELS

from yocobit import _native

EPS = float(np.finfo(np.float32).eps)
BLOCK = {"ternary": 128, "sign": 256}
SHAPES = [  # N, M of each weight, K: below a block, off it, and across weights
    (1, (1,), 1),
    (3, (5,), 7),
    (33, (8,), 128),
    (70, (20, 3, 9), 200),
    (300, (33, 40), 257),
    (17, (3,), 2700),
    (5, (300,), 40),
]

kinds = pytest.mark.parametrize("kind", ["ternary", "sign"])


class Case:
    """Random x (N, K), weights (M, K), and gradients (N, M) of the outputs."""

    def __init__(self, kind, N, Ms, K):
        rng = np.random.default_rng(N + K)
        self.kind, self.N, self.Ms, self.K = kind, N, Ms, K
        self.x = rng.standard_normal((N, K)).astype(np.float32)
        self.weights = [rng.standard_normal((M, K)).astype(np.float32) for M in Ms]
        self.grads = [rng.standard_normal((N, M)).astype(np.float32) for M in Ms]

    def run(self, kernels, n_threads=1):
        """Return codes, scales of x, outputs; gradients of x and of the weights."""
        N, K, is_ternary = self.N, self.K, self.kind == "ternary"
        weights, scales = self.weights, self.scales()
        codes = np.full((N, -(-K // BLOCK[self.kind]) * BLOCK[self.kind]), 99, dtype=np.int8)
        x_scales, grad_x = empty(N), empty(N, K)
        ys, grad_ws = [empty(N, M) for M in self.Ms], [empty(M, K) for M in self.Ms]
        _native.training_forward(
            kernels, n_threads, self.x, weights, scales, is_ternary, codes, x_scales, ys
        )
        _native.training_backward(
            kernels, n_threads, self.grads, codes, x_scales, weights, scales, is_ternary,
            grad_x, grad_ws,
        )  # fmt: skip
        return codes, x_scales, ys, grad_x, grad_ws

    def scales(self):
        return np.array([(np.abs(w).mean(), w.mean()) for w in self.weights], dtype=np.float32)

    def integers(self):
        """The quantised weights, (M, K) int64 each."""
        pairs = zip(self.weights, self.scales(), strict=True)
        if self.kind == "sign":
            return [np.where(w > mean, 1, -1) for w, (_, mean) in pairs]
        return [np.clip(np.rint(w / scale), -1, 1).astype(np.int64) for w, (scale, _) in pairs]


def empty(*shape):
    """Return an array for results, filled with a value that no result has."""
    return np.full(shape, np.float32(1e33))


def assert_same_bits(results, expected):
    codes, x_scales, ys, grad_x, grad_ws = results
    expected_codes, expected_scales, expected_ys, expected_grad_x, expected_grad_ws = expected
    arrays = (codes, x_scales, *ys, grad_x, *grad_ws)
    others = (expected_codes, expected_scales, *expected_ys, expected_grad_x, *expected_grad_ws)
    for array, other in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(array.view(np.uint8), other.view(np.uint8))


@kinds
@pytest.mark.parametrize("N, Ms, K", SHAPES)
@pytest.mark.parametrize("kernels", KERNELS[1:])
def test_every_family_returns_the_bits_of_the_scalar_one(kernels, kind, N, Ms, K):
    case = Case(kind, N, Ms, K)

    assert_same_bits(case.run(kernels), case.run("scalar"))


@kinds
@pytest.mark.parametrize("kernels", _native.supported_kernels())
def test_number_of_threads_does_not_change_a_bit(kernels, kind):
    case = Case(kind, 75, (20, 35), 72)

    assert_same_bits(case.run(kernels, n_threads=3), case.run(kernels, n_threads=1))


@kinds
@pytest.mark.parametrize("N, Ms, K", SHAPES)
def test_outputs_are_exact_integers_times_both_scales(kind, N, Ms, K):
    case = Case(kind, N, Ms, K)

    codes, x_scales, ys, *_ = case.run("scalar")

    largest = np.abs(case.x).max(axis=1, keepdims=True)
    np.testing.assert_array_equal(codes[:, :K], np.rint(case.x * (np.float32(127) / largest)))
    np.testing.assert_array_equal(x_scales, largest[:, 0] / np.float32(127))
    assert (codes[:, K:] == 0).all()
    for y, w, (w_scale, _) in zip(ys, case.integers(), case.scales(), strict=True):
        sums = codes[:, :K].astype(np.int64) @ w.T
        np.testing.assert_array_equal(y, sums.astype(np.float32) * (x_scales[:, None] * w_scale))


@kinds
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_largest_sums_do_not_wrap(kernels, kind, sign):
    case = Case(kind, 300, (9,), 1100)
    case.x[:] = 1
    case.weights[0][:] = sign
    case.weights[0][0, 0] = -2 * 1100  # so that the mean of sign weights is below the others
    case.grads[0][:] = -1

    codes, x_scales, ys, _, grad_ws = case.run(kernels)

    w = case.integers()[0][1]
    assert (codes[:, :1100] == 127).all()
    y = np.float32(127 * w.sum()) * (x_scales[0] * case.scales()[0, 0])
    assert (ys[0][:, 1:] == y).all()
    # 300 tokens of codes -32767 and 127 in two blocks, each times two scales: four roundings.
    np.testing.assert_allclose(grad_ws[0], -300, rtol=4 * EPS)


@kinds
@pytest.mark.parametrize("N, Ms, K", SHAPES)
def test_gradients_are_straight_through(kind, N, Ms, K):
    case = Case(kind, N, Ms, K)

    codes, x_scales, _, grad_x, grad_ws = case.run("scalar")

    x = codes[:, :K].astype(np.float64) * x_scales[:, None]
    terms = zip(case.grads, case.integers(), case.scales(), strict=True)
    scaled = [(grad.astype(np.float64), w * np.float64(scale)) for grad, w, (scale, _) in terms]
    # A sum of M / 4 sums of 4, each rounding at most EPS / 2 of the magnitudes so far.
    bound = (sum(Ms) / 4 + 6) * EPS * sum(np.abs(grad) @ np.abs(w) for grad, w in scaled)
    assert (np.abs(grad_x - sum(grad @ w for grad, w in scaled)) <= bound).all()
    for actual, grad in zip(grad_ws, case.grads, strict=True):
        # Half of the int16 step of each token's gradient, times its x; and float32 rounding.
        step = np.abs(grad * x_scales[:, None]).max(axis=0) / 32767
        slack = step[:, None] / 2 * np.abs(codes[:, :K]).sum(axis=0, dtype=np.int64)
        magnitude = np.abs(grad.astype(np.float64)).T @ np.abs(x)
        error = np.abs(actual - grad.T.astype(np.float64) @ x)
        assert (error <= slack + 8 * EPS * magnitude).all()


@kinds
@pytest.mark.parametrize("kernels", _native.supported_kernels())
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_propagate(kernels, kind, bad):
    case = Case(kind, 40, (9, 4), 72)
    case.x[5, 3] = bad
    case.grads[1][7, 2] = bad

    _, x_scales, ys, grad_x, grad_ws = case.run(kernels)

    for y in ys:
        assert not np.isfinite(y[5]).any()
        assert np.isfinite(np.delete(y, 5, axis=0)).all()
    assert not np.isfinite(x_scales[5])
    reached = case.integers()[1][2] != 0
    assert not np.isfinite(grad_x[7, reached]).any()
    assert not np.isfinite(grad_ws[1][2]).any()
    assert not np.isfinite(grad_ws[0]).any()  # of token 5 the input is not finite


@kinds
@pytest.mark.parametrize("kernels", _native.supported_kernels())
def test_zeros_give_zeros(kernels, kind):
    case = Case(kind, 35, (9,), 72)
    case.x[:], case.grads[0][:] = 0, 0

    codes, _, ys, grad_x, grad_ws = case.run(kernels)

    for array in (codes, *ys, grad_x, *grad_ws):
        assert (array == 0).all()


def test_arrays_of_wrong_shape_are_rejected_with_the_rule():
    case = Case("ternary", 3, (5,), 7)
    case.grads[0] = case.grads[0][:2]

    with pytest.raises(ValueError, match=r"one array \(N, M\) for each weight"):
        case.run("scalar")


def test_unknown_kernels_are_rejected():
    with pytest.raises(ValueError, match="kernels 'sse' are not supported"):
        Case("ternary", 1, (1,), 1).run("sse")
