"""Quantisation against NumPy, and its straight-through gradients.

Letters: N tokens   M output features   K input features   B batch   T positions   G KV heads
         D head size
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from yocobit import _native
from yocobit.config import ModelConfig, preset
from yocobit.model.bitlinear import BitLinear, project, sign
from yocobit.model.feed_forward import FeedForward
from yocobit.model.mixers.cross import SharedKeysValues
from yocobit.model.ops import dispatch
from yocobit.model.ops.dispatch import matmul_kernels, use_kernels
from yocobit.model.quantization import (
    fake_quantize,
    quantize_activations,
    quantize_weight,
)

NATIVE = ("ternary", "sign")  # supported by the training kernels
QUANTIZED = (*NATIVE, "ternary_row")


def activation_codes(x: np.ndarray, levels: int = 127) -> tuple[np.ndarray, np.ndarray]:
    largest = np.abs(x).max(axis=-1, keepdims=True)
    codes = np.clip(np.rint(levels * x / largest), -levels, levels)
    return codes.astype(np.int64), largest / levels


def weight_codes(weight: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    if kind == "ternary_row":
        scales = np.abs(weight).mean(axis=1, keepdims=True)
        return np.clip(np.rint(weight / scales), -1, 1).astype(np.int64), scales
    scale = np.abs(weight).mean()
    if kind == "ternary":
        return np.clip(np.rint(weight / scale), -1, 1).astype(np.int64), scale
    return np.where(weight - weight.mean() > 0, 1, -1), scale


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("N, M, K", [(1, 1, 8), (5, 3, 64), (7, 96, 136)])
def test_bitlinear_equals_scaled_integer_matmul(kind, N, M, K):
    layer, x = _random_layer(kind, N, M, K)
    x_codes, x_scale = activation_codes(x.numpy())
    w_codes, w_scale = weight_codes(layer.weight.detach().numpy(), kind)

    y = layer(x).detach()

    # float64: the sums are exact, three roundings remain.
    np.testing.assert_allclose(y, (x_codes @ w_codes.T) * x_scale * w_scale.T, rtol=1e-15, atol=0)


@pytest.mark.parametrize("levels", [127, 7])
def test_activations_equal_absmax_rounding(levels):
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected_codes, expected_scale = activation_codes(x.numpy(), levels)

    codes, scale = quantize_activations(x, levels)

    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_allclose(scale, expected_scale, rtol=1e-15)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_weights_equal_absmean_rounding(kind):
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected_codes, expected_scale = weight_codes(weight.numpy(), kind)

    codes, scale = quantize_weight(weight, kind)

    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_allclose(scale, expected_scale, rtol=1e-14)


def test_activations_halfway_round_to_even():
    x = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5])

    codes, scale = quantize_activations(x)

    assert codes.tolist() == [127, 0, 2, 2, 0, -2, -2, 126]
    assert scale.item() == 1


def test_ternary_weights_halfway_round_to_even_and_clip():
    weight = torch.tensor([[0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 0.0, 0.0, 0.0]])  # mean|W| is 1

    codes, scale = quantize_weight(weight, "ternary")

    assert scale.item() == 1
    assert codes.tolist() == [[0, 0, 1, -1, 1, -1, 0, 0, 0]]


def test_sign_weights_are_split_at_their_mean_which_is_negative():
    weight = torch.tensor([[1.0, 2.0, 3.0, 2.0], [0.0, 4.0, 2.0, 2.0]])  # mean 2

    codes, scale = quantize_weight(weight, "sign")

    assert scale.item() == 2
    assert codes.tolist() == [[-1, -1, 1, -1], [-1, 1, -1, -1]]


@pytest.mark.parametrize("magnitude", [1e-30, 1e-5, 1.0, 1e30])
def test_activation_codes_of_float32_stay_within_127(magnitude):
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)) * magnitude

    codes, scale = quantize_activations(x)

    assert codes.abs().max() <= 127
    assert codes.isfinite().all() and scale.isfinite().all()
    assert (codes == codes.round()).all()


@pytest.mark.parametrize("magnitude", [1e-5, 1.0, 1e30])
def test_largest_activation_of_each_row_has_code_127(magnitude):
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)) * magnitude

    codes, _ = quantize_activations(x)

    assert (codes.abs().amax(dim=-1) == 127).all()


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_rows_give_zero_and_leave_other_rows_alone(kind, zero):
    layer, x = _random_layer(kind, N=3, M=5, K=16)
    x[1] = zero

    y = layer(x).detach()

    assert (y[1] == 0).all()
    assert torch.equal(y[[0, 2]], layer(x[[0, 2]]).detach())


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("kind, code", [("ternary", 0), ("sign", -1)])
def test_all_zero_weights_have_one_code_and_a_finite_output(kind, code, zero):
    layer, x = _random_layer(kind, N=3, M=5, K=16)
    torch.nn.init.constant_(layer.weight, zero)

    codes, scale = quantize_weight(layer.weight, kind)
    y = layer(x)

    assert (codes == code).all()
    assert 0 < scale.item() < 1e-9
    assert y.isfinite().all()


def test_negative_zeros_have_the_code_of_zero():
    x_codes, _ = quantize_activations(torch.tensor([1.0, -0.0, 0.0]))
    w_codes, _ = quantize_weight(torch.tensor([[1.0, -0.0, 0.0]]), "ternary")

    assert x_codes.tolist() == [127, 0, 0]
    assert w_codes.tolist() == [[1, 0, 0]]


def test_activations_are_quantised_for_each_token_alone():
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))

    codes, scale = quantize_activations(x)

    assert scale.shape == (2, 5, 1)
    assert torch.equal(codes[1, 3], quantize_activations(x[1, 3])[0])


def test_zero_columns_change_neither_activation_codes_nor_integer_sums():
    layer, x = _random_layer("ternary", N=4, M=3, K=40)
    x_codes, x_scale = quantize_activations(x)
    w_codes, _ = quantize_weight(layer.weight.detach(), "ternary")

    padded_codes, padded_scale = quantize_activations(F.pad(x, (0, 88)))

    assert torch.equal(padded_codes, F.pad(x_codes, (0, 88)))
    assert torch.equal(padded_scale, x_scale)
    assert torch.equal(padded_codes @ F.pad(w_codes, (0, 88)).T, x_codes @ w_codes.T)


@pytest.mark.parametrize("number", [1, -1])
def test_largest_sum_is_exact_in_float32(number):
    K = 1 << 17  # 127 K is just below 2^24
    layer = BitLinear(K, 1, "ternary")
    torch.nn.init.ones_(layer.weight)

    y = layer(torch.full((1, K), 127.0 * number)).item()

    assert y == 127 * K * number


@pytest.mark.parametrize("kind", QUANTIZED)
def test_bitlinear_gradients_are_straight_through(kind):
    layer, x = _random_layer(kind, N=6, M=5, K=16)
    x = x.unflatten(0, (2, 3)).requires_grad_()
    upstream = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)).double()

    leaves = (x, layer.weight)
    expected = torch.autograd.grad(_straight_through(*leaves, kind), leaves, upstream)

    actual = torch.autograd.grad(layer(x), leaves, upstream)

    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture
def native():
    """Use the native kernels, the scalar reference if the CPU has no others."""
    with use_kernels(_native.supported_kernels()[-1]):
        yield


@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize("shape", [(200,), (1, 200), (3, 37, 200), (2, 300, 200)])
def test_native_matmuls_equal_plain_pytorch(native, kind, shape):
    linears, x = _float32_layers(kind, (40, 24, 7), shape)

    with use_kernels("pytorch"):
        expected_ys, expected_grad_x, *expected_grads = _matmuls(x, linears)
    ys, grad_x, *grads = _matmuls(x, linears)

    for y, expected in zip(ys, expected_ys, strict=True):
        assert torch.equal(y, expected)
    assert (grad_x - expected_grad_x).abs().max() <= 1e-5 * expected_grad_x.abs().max()
    for grad, expected in zip(grads, expected_grads, strict=True):
        assert (grad - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_scale_per_row_is_trained_by_plain_pytorch(native):
    layer, x = _random_layer("ternary_row", N=3, M=5, K=16)
    layer, x = layer.float(), x.float()

    y = layer(x)

    with use_kernels("pytorch"):
        assert torch.equal(y, layer(x))


@pytest.mark.parametrize("kind", NATIVE)
def test_native_matmuls_accept_inputs_and_gradients_of_any_strides(native, kind):
    linears, x = _float32_layers(kind, (16,), (2, 24, 5))
    upstream = torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(1)).mT

    strided = torch.autograd.grad(linears[0](x.mT), linears[0].weight, upstream)
    dense = torch.autograd.grad(
        linears[0](x.mT.contiguous()), linears[0].weight, upstream.contiguous()
    )

    assert torch.equal(strided[0], dense[0])


def test_native_matmuls_compute_only_the_requested_gradients(native):
    linears, x = _float32_layers("ternary", (16,), (3, 24))
    weight = linears[0].weight

    (only_x,) = torch.autograd.grad(linears[0](x).sum(), x)
    weight.requires_grad_(False)
    (without_weight,) = torch.autograd.grad(linears[0](x).sum(), x)
    weight.requires_grad_(True)
    (only_weight,) = torch.autograd.grad(linears[0](x.detach()).sum(), weight)

    assert torch.equal(only_x, without_weight)
    assert only_weight.shape == weight.shape


def test_native_matmuls_pass_the_checks_of_pytorch_operators(native):
    linears, x = _float32_layers("ternary", (5, 8), (3, 24))
    weights = [linear.weight for linear in linears]

    torch.library.opcheck(torch.ops.yocobit.matmul, (x, weights, "ternary", "scalar"))


@pytest.mark.parametrize("kernels", ["native", "pytorch"])
def test_compiled_matmuls_equal_eager_ones(native, kernels):
    linears, x = _float32_layers("sign", (5, 8), (3, 24))
    compiled = torch.compile(project, backend="aot_eager", fullgraph=True)
    name = kernels if kernels == "pytorch" else dispatch.kernels()

    with use_kernels(name):
        actual = torch.autograd.grad([y.sum() for y in compiled(x, *linears)], x)
        expected = torch.autograd.grad([y.sum() for y in project(x, *linears)], x)

    assert torch.equal(actual[0], expected[0])


@pytest.mark.parametrize("kind", NATIVE)
def test_second_derivatives_of_native_matmuls_equal_plain_ones(native, kind):
    linears, x = _float32_layers(kind, (16,), (3, 24))

    def twice():
        (grad,) = torch.autograd.grad(linears[0](x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    with use_kernels("pytorch"):
        expected = twice()
    actual = twice()

    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_kernels_are_native_for_float32_on_a_cpu_only(native):
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    name = dispatch.kernels()

    assert matmul_kernels(x, [weight]) == name
    assert matmul_kernels(x.double(), [weight.double()]) == "pytorch"
    assert matmul_kernels(x, [weight.bfloat16()]) == "pytorch"
    assert matmul_kernels(x.to("meta"), [weight.to("meta")]) == "pytorch"
    assert matmul_kernels(x[:0], [weight]) == "pytorch"
    assert name in dispatch.describe()
    with use_kernels("pytorch"):
        assert matmul_kernels(x, [weight]) == "pytorch"
        assert dispatch.describe() == "plain PyTorch"


def test_unknown_kernels_are_rejected_with_the_known_names():
    with pytest.raises(ValueError, match=r"must be one of pytorch, scalar.* but are 'sse'"):
        use_kernels("sse").__enter__()


def test_dense_bitlinear_is_a_plain_matmul_with_its_gradients():
    layer, x = _random_layer("dense", N=3, M=2, K=8)
    x.requires_grad_()

    assert torch.equal(layer(x), x @ layer.weight.T)
    assert torch.autograd.gradcheck(layer, (x,))


def test_weight_kind_without_quantisation_is_rejected():
    with pytest.raises(ValueError, match=r"must be ternary or .* but is 'dense'"):
        quantize_weight(torch.ones(1, 1), "dense")


def test_sign_is_minus_one_at_zero_and_passes_gradient_where_inputs_are_at_most_1():
    x = torch.tensor([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.5], requires_grad=True)

    y = sign(x)
    y.backward(torch.arange(1.0, 9.0))

    assert y.tolist() == [-1, -1, -1, -1, -1, 1, 1, 1]
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]


def test_sign_feed_forward_trains_only_units_within_the_window():
    ffn = FeedForward(preset("nano").replace(ffn="sign", weights="dense", d_ff=8)).double()
    up = torch.tensor([-3.0, -1.5, -0.5, 0.0, 0.25, 0.75, 1.25, 9.0]).double()
    torch.nn.init.zeros_(ffn.up_proj.weight)
    ffn.up_proj.weight.data[:, 0] = up
    torch.nn.init.ones_(ffn.down_proj.weight)
    x = torch.zeros(1, 1, 64, dtype=torch.float64)
    x[..., 0] = 1

    y = ffn(x)
    y.sum().backward()

    assert (y == torch.where(up > 0, 1.0, -1.0).sum()).all()
    assert (ffn.up_proj.weight.grad[:, 0] != 0).tolist() == (up.abs() <= 1).tolist()


@pytest.mark.parametrize("levels", [127, 7])
def test_fake_quantize_rounds_to_levels_and_has_gradient_1(levels):
    x = torch.randn(2, 3, 4, 16, generator=torch.Generator().manual_seed(0)).double()
    x.requires_grad_()
    codes, scale = activation_codes(x.detach().numpy(), levels)

    y = fake_quantize(x, levels)
    y.backward(upstream := torch.randn_like(x))

    np.testing.assert_allclose(y.detach(), codes * scale, rtol=1e-12, atol=1e-15)
    assert torch.equal(x.grad, upstream)


@pytest.mark.parametrize("kind, levels", [("int8", 127), ("int4", 7)])
def test_shared_keys_and_values_are_rounded_per_position_and_head(kind, levels):
    exact, rounded = (_shared_keys_values(kind) for kind in ("float", kind))
    rounded.load_state_dict(exact.state_dict())
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).double()

    pairs = zip(exact(x, 0, None), rounded(x, 0, None), strict=True)

    for unrounded, cached in pairs:  # (B, G, T, D)
        codes, scale = activation_codes(unrounded.detach().numpy(), levels)
        np.testing.assert_allclose(cached.detach(), codes * scale, rtol=1e-12, atol=1e-15)


def test_appending_positions_does_not_change_rounded_shared_keys_and_values():
    shared = _shared_keys_values("int4")
    x = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0)).double()

    cached = shared(x[:, 5:], 5, shared(x[:, :5], 0, None))

    torch.testing.assert_close(cached, shared(x, 0, None))


def _random_layer(kind: str, N: int, M: int, K: int) -> tuple[BitLinear, torch.Tensor]:
    """Return a layer and x (N, K), both in float64."""
    generator = torch.Generator().manual_seed(N * M * K)
    layer = BitLinear(K, M, kind).double()
    torch.nn.init.normal_(layer.weight, std=0.3, generator=generator)
    return layer, torch.randn(N, K, generator=generator, dtype=torch.float64)


def _float32_layers(
    kind: str, Ms: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[list[BitLinear], torch.Tensor]:
    """Return layers of K input features and x, whose shape ends in K or (K, B)."""
    generator = torch.Generator().manual_seed(sum(Ms))
    K = shape[1] if shape[-1] == 5 else shape[-1]
    linears = [BitLinear(K, M, kind) for M in Ms]
    for linear in linears:
        torch.nn.init.normal_(linear.weight, std=0.3, generator=generator)
    return linears, torch.randn(shape, generator=generator).requires_grad_()


def _matmuls(x: torch.Tensor, linears: list[BitLinear]) -> list[Any]:
    """Return the outputs, then the gradients of x and of the weights for random upstream ones."""
    ys = project(x, *linears)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(y.shape, generator=generator) for y in ys]
    leaves = [x, *(linear.weight for linear in linears)]
    return [ys, *torch.autograd.grad(ys, leaves, upstream)]


def _straight_through(x: torch.Tensor, weight: torch.Tensor, kind: str) -> torch.Tensor:
    """Compute the layer such that autograd treats both roundings as the identity."""
    x_codes, x_scale = activation_codes(x.detach().numpy())
    w_codes, w_scale = weight_codes(weight.detach().numpy(), kind)
    rounded_x = torch.from_numpy(x_codes * x_scale)
    rounded_weight = torch.from_numpy(w_codes * w_scale)
    return (x + (rounded_x - x).detach()) @ (weight + (rounded_weight - weight).detach()).T


def _shared_keys_values(kind: str) -> SharedKeysValues:
    config: ModelConfig = preset("nano").replace(shared_kv=kind, weights="dense")
    torch.manual_seed(0)
    shared = SharedKeysValues(config).double()
    for projection in (shared.k_proj, shared.v_proj):
        torch.nn.init.normal_(projection.weight, std=0.1)
    return shared
