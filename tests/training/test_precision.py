"""Matmuls in bfloat16: rounding error, choice by CPU, and scope of the setting."""

import pytest
import torch
from rich.console import Console
from training_runs import run

from yocobit.config import ConfigError
from yocobit.model.bitlinear import BitLinear
from yocobit.training import loop
from yocobit.training.backend import choose_precision
from yocobit.training.config import load as load_config


@pytest.mark.parametrize("kind", ["ternary", "sign"])
def test_precision_does_not_change_quantised_matmuls(kind):
    linear, x, grad = make_problem(kind)

    found, expected = (matmuls(linear, x, grad, how) for how in ("medium", "highest"))

    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_dense_matmuls_change_by_bfloat16_rounding_only():
    linear, x, grad = make_problem("dense")

    found, expected = (matmuls(linear, x, grad, how) for how in ("medium", "highest"))

    assert all(tensor.dtype == torch.float32 for tensor in found)
    for fast, exact in zip(found, expected, strict=True):
        # Three roundings of at most 2^-9 each (two factors and the result), of random sign.
        assert 0 < (fast - exact).norm() < 3 * 2**-9 * exact.norm()


def make_problem(kind):
    """Return a linear, an input and a gradient of its output."""
    generator = torch.Generator().manual_seed(0)
    linear = BitLinear(64, 48, kind)
    torch.nn.init.normal_(linear.weight, generator=generator)
    x = torch.randn(5, 7, 64, generator=generator, requires_grad=True)
    return linear, x, torch.randn(5, 7, 48, generator=generator)


def matmuls(linear, x, grad, precision):
    """Return y and the gradients of x and of the weight, with matmuls of a precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        y = linear(x)
        return y.detach(), *torch.autograd.grad(y, (x, linear.weight), grad)
    finally:
        torch.set_float32_matmul_precision(before)


def test_train_restores_the_precision_of_matmuls(toml, tmp_path):
    before = torch.get_float32_matmul_precision()

    run(toml, tmp_path / "run", "run.steps=1")

    assert torch.get_float32_matmul_precision() == before


def test_bfloat16_is_refused_where_the_cpu_lacks_it(toml, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})

    with pytest.raises(ConfigError, match="'bfloat16' but this CPU has no avx512_bf16; set it to"):
        run(toml, tmp_path / "run", "run.precision=bfloat16")


BFLOAT16 = {"avx512_bf16": True, "avx512_vnni": True}


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"cpu_name": "AMD EPYC"} | BFLOAT16, "bfloat16"),
        ({"cpu_name": "Intel Xeon", "amx_bf16": True} | BFLOAT16, "bfloat16"),
        ({"cpu_name": "Intel Xeon", "amx_bf16": False} | BFLOAT16, "float32"),  # half as fast
        ({"cpu_name": "AMD EPYC", "avx512_vnni": True}, "float32"),
        ({}, "float32"),
    ],
)
def test_precision_is_the_faster_one_of_the_cpu(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    assert choose_precision(None) == expected
    assert choose_precision("float32") == "float32"


def test_bfloat16_can_be_requested_on_any_cpu_with_the_instructions(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: BFLOAT16)

    assert choose_precision("bfloat16") == "bfloat16"


def test_resume_with_another_precision_warns(toml, tmp_path, monkeypatch, capsys):
    run(toml, tmp_path / "run", "run.steps=1", "run.precision=float32")
    capabilities = {"cpu_name": "AMD EPYC"} | BFLOAT16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    loop.train(
        load_config(toml, ["run.steps=1"]),
        tmp_path / "run",
        resume=True,
        console=Console(width=300),
    )

    expected = "warning: 1 threads, bfloat16 now, 1 threads, float32 before: losses will differ"
    assert expected in capsys.readouterr().out
