"""Muon beside torch.optim.Muon: milliseconds a step for the matrices of a preset.

    python benchmarks/muon.py tiny
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/muon.py nano

The second is a CPU without bfloat16 instructions, as PyTorch sees it.
"""

from __future__ import annotations

import sys
import time

import torch

from yocobit.config import preset
from yocobit.model import Decoder
from yocobit.model.bitlinear import BitLinear
from yocobit.training.optim import Muon
from yocobit.training.precision import products_in

ROUNDS = 5


def parameters(name: str) -> list[torch.nn.Parameter]:
    """Return the matrices that Muon moves, with gradients."""
    torch.manual_seed(0)
    found = [m.weight for m in Decoder(preset(name)).modules() if isinstance(m, BitLinear)]
    for parameter in found:
        parameter.grad = torch.randn_like(parameter)
    return found


def main(name: str) -> None:
    settings = {"lr": 0.01, "momentum": 0.95, "weight_decay": 0.1}
    theirs = torch.optim.Muon(parameters(name), **settings, adjust_lr_fn="match_rms_adamw")
    ours = Muon(parameters(name), **settings)
    steps = {
        "torch.optim.Muon": (theirs, "float32"),
        "ours, float32": (ours, "float32"),
        "ours, bfloat16": (ours, "bfloat16"),
    }
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(ROUNDS):
        for label, (optimizer, precision) in steps.items():
            with products_in(precision):
                begin = time.perf_counter()
                optimizer.step()
                best[label] = min(best[label], time.perf_counter() - begin)
    for label, seconds in best.items():
        print(f"{label:18} {1e3 * seconds:8.1f} ms")


if __name__ == "__main__":
    main(sys.argv[1])
