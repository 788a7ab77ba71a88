"""The PyTorch model against vectors that independent float64 implementations computed.

One test per claim and case of the directory given by --golden. Errors are measured as the files
ask: largest difference relative to the largest expected magnitude.
"""

from __future__ import annotations

from pathlib import Path

import golden_cases
import pytest
import torch
import torch.nn.functional as F
from golden_cases import Case

from yocobit.model import Cache, Decoder
from yocobit.model.mixers import retention
from yocobit.model.mixers.retention import GatedRetention

FLOAT64_BOUND = 1e-10  # the files' "fp64_impl"

FORMS = {
    "recurrent": retention.recurrent,
    "parallel": retention.parallel,
    "chunkwise": retention.chunkwise,
    "chunkwise-by-7": lambda *args: retention.chunkwise(*args, chunk=7),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Fill `<kind>_path` arguments with the golden cases of that kind."""
    selections = {
        "kernel_path": (golden_cases.KERNEL, "o"),
        "kernel_gradient_path": (golden_cases.KERNEL, "grad.q"),
        "kernel_cut_path": (golden_cases.KERNEL, "state_at_cut"),
        "gate_path": (golden_cases.KERNEL, "gate_logit"),
        "module_path": (golden_cases.MODULE, "y"),
        "model_path": (golden_cases.MODEL, "logits"),
        "model_loss_path": (golden_cases.MODEL, "loss"),
    }
    for argument, selection in selections.items():
        if argument in metafunc.fixturenames:
            paths = golden_cases.cases(metafunc.config.getoption("golden"), *selection)
            metafunc.parametrize(argument, paths, ids=[path.stem for path in paths])


@pytest.fixture(params=FORMS)
def form(request):
    """Each of the equal ways to compute gated retention."""
    return FORMS[request.param]


def test_golden_directory_holds_kernel_module_and_model_cases(golden_directory: Path):
    prefixes = (golden_cases.KERNEL, golden_cases.MODULE, golden_cases.MODEL)

    assert all(golden_cases.cases(golden_directory, prefix) for prefix in prefixes)


def test_retention_equals_golden_in_float64(form, kernel_path):
    case = golden_cases.load(kernel_path)

    outputs, state = form(*_inputs(case, torch.float64))

    _assert_near(outputs, case["o"], FLOAT64_BOUND)
    _assert_near(state, case["final_state"], FLOAT64_BOUND)


def test_retention_is_within_the_files_bound_in_float32(form, kernel_path):
    case = golden_cases.load(kernel_path)
    bound = case.info["suggested_tolerance"]["fp32_recurrent_or_segment_sum_impl"]

    outputs, state = form(*_inputs(case, torch.float32))

    assert outputs.dtype == state.dtype == torch.float32
    _assert_near(outputs, case["o"], bound)
    _assert_near(state, case["final_state"], bound)


def test_retention_in_two_calls_equals_golden_at_the_cut_and_the_end(form, kernel_cut_path):
    case = golden_cases.load(kernel_cut_path)
    *sequences, state = _inputs(case, torch.float64)
    n = golden_cases.cut(case)

    first, state_at_cut = form(*(x[:, :, :n] for x in sequences), state)
    second, final_state = form(*(x[:, :, n:] for x in sequences), state_at_cut)

    _assert_near(state_at_cut, case["state_at_cut"], FLOAT64_BOUND)
    _assert_near(torch.cat((first, second), dim=2), case["o"], FLOAT64_BOUND)
    _assert_near(final_state, case["final_state"], FLOAT64_BOUND)


def test_retention_gradients_equal_golden_in_float64(form, kernel_gradient_path):
    case = golden_cases.load(kernel_gradient_path)

    gradients = _kernel_gradients(form, case, torch.float64)

    for name, gradient in gradients.items():
        _assert_near(gradient, case[f"grad.{name}"], FLOAT64_BOUND)


def test_retention_gradients_are_within_the_files_bound_in_float32(form, kernel_gradient_path):
    case = golden_cases.load(kernel_gradient_path)
    bound = case.info["suggested_tolerance"]["fp32_recurrent_or_segment_sum_impl"]

    gradients = _kernel_gradients(form, case, torch.float32)

    for name, gradient in gradients.items():
        _assert_near(gradient, case[f"grad.{name}"], bound)


def test_retention_layer_equals_golden_in_float64(module_path):
    case = golden_cases.load(module_path)
    mixer = GatedRetention(golden_cases.mixer_config(case))
    mixer.load_state_dict(golden_cases.mixer_state_dict(case))

    y, *_ = mixer.double()(case["x"], start=0, state=None)

    _assert_near(y, case["y"], FLOAT64_BOUND)


def test_model_equals_golden_logits_and_self_decoder_output_in_float64(model_path):
    case = golden_cases.load(model_path)
    model = _model(case)
    self_decoder_out = []
    last = model.layers[model.config.n_self_layers - 1]
    last.register_forward_hook(lambda _module, _args, result: self_decoder_out.append(result[0]))

    logits = model(case["tokens"])

    _assert_near(logits, case["logits"], FLOAT64_BOUND)
    _assert_near(self_decoder_out[0], case["self_decoder_out"], FLOAT64_BOUND)


def test_model_is_within_the_files_bound_of_golden_logits_in_float32(model_path):
    case = golden_cases.load(model_path)
    bound = case.info["suggested_tolerance"]["fp32_impl_logits_max_abs"]

    logits = _model(case).float()(case["tokens"])

    assert (logits - case["logits"]).abs().max() <= bound


def test_model_caches_equal_golden_after_prefill_in_two_chunks(model_path):
    case = golden_cases.load(model_path)
    model, cache, n = _model(case), Cache(), case.info["prefill_len"]

    model.prefill(case["tokens"][:, : n // 2], cache)
    model.prefill(case["tokens"][:, n // 2 : n], cache)

    assert cache.position == n
    expected_shared = (
        case[f"state_after_prefill.prev_{name}"].transpose(1, 2) for name in ("key", "value")
    )
    for cached, expected in zip(cache.shared, expected_shared, strict=True):
        _assert_near(cached, expected, FLOAT64_BOUND)
    if model.config.layers[0] == "retention":
        for i in range(model.config.n_self_layers):
            expected = case[f"state_after_prefill.layer{i}.S"]
            _assert_near(cache.layers[i], expected, FLOAT64_BOUND)


def test_model_prefilled_then_stepped_equals_golden_logits(model_path):
    case = golden_cases.load(model_path)
    model, cache, n = _model(case), Cache(), case.info["prefill_len"]
    tokens = case["tokens"]

    model.prefill(tokens[:, :n], cache)
    stepped = [model.step(token, cache) for token in tokens[:, n:].split(1, dim=1)]

    _assert_near(torch.cat(stepped, dim=1), case["logits"][:, n:], FLOAT64_BOUND)


def test_model_loss_and_gradients_equal_golden_in_float64(model_loss_path):
    case = golden_cases.load(model_loss_path)
    model = _model(case).requires_grad_(True)
    expected = golden_cases.gradients(case)

    logits = model(case["tokens"])[:, :-1]
    loss = F.cross_entropy(logits.flatten(0, 1), case["tokens"][:, 1:].flatten())
    loss.backward()

    _assert_near(loss.detach(), case["loss"][0], FLOAT64_BOUND)
    parameters = dict(model.named_parameters())
    assert expected
    for name, gradient in expected.items():
        _assert_near(parameters[name].grad, gradient, FLOAT64_BOUND)


def test_log_decay_is_a_sixteenth_of_the_gates_log_sigmoid(gate_path):
    case = golden_cases.load(gate_path)
    exact = F.logsigmoid(case["gate_logit"]) / 16
    was_set = case["log_decay"] == -torch.inf  # overwritten by hard resets

    # The stored log_decay is float32: half a unit in its last place, and the same of its inputs.
    error = (exact - case["log_decay"]).abs() / exact.abs()

    assert error[~was_set].max() < 2**-22


def _inputs(case: Case, dtype: torch.dtype) -> list[torch.Tensor | None]:
    names = ("q", "k", "v", "log_decay", "initial_state")
    return [case[name].to(dtype) if name in case else None for name in names]


def _kernel_gradients(form, case: Case, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    names = ("q", "k", "v", "log_decay", "initial_state")
    inputs = _inputs(case, dtype)
    leaves = {n: x.requires_grad_() for n, x in zip(names, inputs, strict=True) if x is not None}
    outputs, state = form(*inputs)
    upstream = (case["grad_out.o"].to(dtype), case["grad_out.final_state"].to(dtype))
    gradients = torch.autograd.grad((outputs, state), tuple(leaves.values()), upstream)
    return dict(zip(leaves, gradients, strict=True))


def _model(case: Case) -> Decoder:
    model = Decoder(golden_cases.model_config(case))
    model.load_state_dict(golden_cases.state_dict(case))
    return model.double().requires_grad_(False)


def _assert_near(actual: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    assert actual.shape == expected.shape
    error, largest = (actual.double() - expected).abs().max(), expected.abs().max()
    assert error <= bound * largest, f"error {error:.3g} of {largest:.3g} is above {bound:.3g}"
