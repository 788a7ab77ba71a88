"""Products of training with ternary and sign weights, beside PyTorch's of the same shapes.

    python benchmarks/train_products.py [--threads 2] [--rounds 5] [--shapes 20m,100m]

Times are of rounding, packing and multiplying together, minima of interleaved rounds. With --avx2
both sides are held to AVX2. `whole` is forward and backward of the layers as a model calls them.

Letters: M output features   K input features   N tokens
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch
from measures import seconds
from torch import Tensor

from yocobit.model.bitlinear import BitLinear, project
from yocobit.model.ops.dispatch import kernels, use_kernels

N = 2048
SHAPES = {  # M of the weights of one input, K: retention, its output, feed-forward, its output
    "20m": [((384,) * 4, 384), ((384,), 384), ((1024,) * 2, 384), ((384,), 1024)],
    "100m": [((768,) * 4, 768), ((768,), 768), ((2048,) * 2, 768), ((768,), 2048)],
}
AVX2 = ("ATEN_CPU_CAPABILITY=avx2", "ONEDNN_MAX_CPU_ISA=AVX2", "MKL_ENABLE_INSTRUCTIONS=AVX2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--avx2", action="store_true", help=f"needs {' '.join(AVX2)}")
    arguments = parser.parse_args()
    if arguments.avx2 and any(os.environ.get(a.split("=")[0]) is None for a in AVX2):
        parser.error(f"--avx2 needs PyTorch held to it: {' '.join(AVX2)}")
    torch.set_num_threads(arguments.threads)

    with use_kernels("avx2" if arguments.avx2 else kernels()):
        print(f"{kernels()} kernels, {arguments.threads} threads, G multiply-adds/s; N = {N}")
        print("                  forward            dX           dW          whole, ms")
        print(
            "   M     K   ours fp32  int8   ours fp32 bf16  ours fp32 bf16  ternary  sign  fp32  x"
        )
        for name in arguments.shapes.split(","):
            totals = [0.0, 0.0]
            for Ms, K in SHAPES[name]:
                for i, elapsed in enumerate(show(Ms, K, arguments.rounds, not arguments.avx2)):
                    totals[i] += elapsed
            print(f"{name}: ternary layers {totals[1] / totals[0]:.2f} times as fast as dense")


def show(Ms: tuple[int, ...], K: int, rounds: int, has_bfloat16: bool) -> tuple[float, float]:
    """Measure and print one projection; return seconds of ternary and dense layers."""
    x, dy, w = torch.randn(N, K), torch.randn(N, sum(Ms)), torch.randn(sum(Ms), K)
    codes, w_codes = (t.clamp(-1, 1).to(torch.int8) for t in (x, w))
    runs: dict[str, Callable[[], object]] = {
        **native_products(x, Ms, K),
        "forward fp32": lambda: x @ w.mT,
        "forward int8": lambda: torch._int_mm(codes, w_codes.mT),
        "dx fp32": lambda: dy @ w,
        "dw fp32": lambda: dy.mT @ x,
    }
    if has_bfloat16:
        x16, dy16, w16 = x.bfloat16(), dy.bfloat16(), w.bfloat16()
        runs["dx bf16"], runs["dw bf16"] = lambda: dy16 @ w16, lambda: dy16.mT @ x16
    for kind in ("ternary", "sign", "dense"):
        runs[f"whole {kind}"] = whole(kind, x, Ms)
    best: dict[str, float] = {}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            best[name] = min(best.get(name, float("inf")), seconds(run))
    rate = {name: N * sum(Ms) * K / elapsed / 1e9 for name, elapsed in best.items()}
    ms = {kind: best[f"whole {kind}"] * 1e3 for kind in ("ternary", "sign", "dense")}
    print(
        f"{sum(Ms):5}{K:6}"
        f"{rate['forward']:7.0f}{rate['forward fp32']:5.0f}{rate['forward int8']:6.0f}"
        f"{rate['dx']:7.0f}{rate['dx fp32']:5.0f}{rate.get('dx bf16', 0):5.0f}"
        f"{rate['dw']:6.0f}{rate['dw fp32']:5.0f}{rate.get('dw bf16', 0):5.0f}"
        f"{ms['ternary']:9.2f}{ms['sign']:7.2f}{ms['dense']:7.2f}"
        f"{ms['dense'] / ms['ternary']:6.2f}",
        flush=True,
    )
    return best["whole ternary"], best["whole dense"]


def native_products(x: Tensor, Ms: tuple[int, ...], K: int) -> dict[str, Callable[[], object]]:
    """Return the operators' forward, and their backward for x alone and for the weights alone."""
    weights, grads = [torch.randn(M, K) for M in Ms], [torch.randn(N, M) for M in Ms]
    forward, backward = torch.ops.yocobit.project, torch.ops.yocobit.project_backward
    codes, x_scales, scales = forward(x, weights, True, kernels())[len(Ms) :]
    saved = (grads, codes, x_scales, weights, scales, True, kernels())
    return {
        "forward": lambda: forward(x, weights, True, kernels()),
        "dx": lambda: backward(*saved, True, False),
        "dw": lambda: backward(*saved, False, True),
    }


def whole(kind: str, x: Tensor, Ms: tuple[int, ...]) -> Callable[[], object]:
    """Return a run of forward and backward of layers of a kind."""
    x = x.detach().requires_grad_()
    linears = [BitLinear(x.shape[1], M, kind) for M in Ms]
    for linear in linears:
        torch.nn.init.normal_(linear.weight, std=x.shape[1] ** -0.5)
    grads = [torch.randn(N, M) for M in Ms]
    leaves = [x, *(linear.weight for linear in linears)]

    def run() -> object:
        return torch.autograd.grad(project(x, *linears), leaves, grads)

    return run


if __name__ == "__main__":
    main()
