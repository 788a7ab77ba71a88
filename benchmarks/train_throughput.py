"""Training steps compared with transformers' Llama of the same size in float32.

    python benchmarks/train_throughput.py [--rounds 3] [--shapes 20m 100m] [--lengths 512 4096]

A step is forward, loss, backward, clipping and AdamW over the same number of tokens for each
model. Every round executes every run once, each in a separate process. A ratio is the median over
rounds of yocobit / Llama. Other points in the results file are kept.

Letters: B batch   T positions
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from yocobit.benchmark.shapes import transformer, yoco
from yocobit.config import ModelConfig, WeightKind
from yocobit.hardware.host import peak_bytes, provenance
from yocobit.model import Decoder
from yocobit.model.ops import dispatch
from yocobit.training.backend import choose_precision, keep_freed_memory, matmul_precision
from yocobit.training.batch import Batch
from yocobit.training.config import OptimConfig
from yocobit.training.optim import Optimizers
from yocobit.training.state import GradientSpikeGuard
from yocobit.training.step import GradientStep, Objective

LLAMA = "llama dense"  # of transformers, float32; the others are ours
OURS = ("yoco ternary", "yoco dense", "transformer ternary", "transformer dense")
SHAPES: dict[str, ModelConfig] = {
    "20m": transformer(384, 8, 6, 6, 1024, 8192),
    "100m": transformer(768, 12, 12, 12, 2048, 16384),
}

RESULTS = Path(__file__).parent / "results" / "train_throughput.json"
LENGTHS = (512, 4096, 16384)
TOKENS = 4096  # per step; one window if T is longer
# Restricts every library to AVX2, as on a CPU without AVX-512.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
_POINT = ("cpu", "shape", "length", "threads")

Run = dict[str, Any]
Step = Callable[[Tensor, Tensor], object]  # of inputs and targets, each (B, T)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="time per run; at least one step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--models", nargs="+", choices=OURS, default=OURS)
    parser.add_argument("--avx2", action="store_true", help="restrict every library to AVX2")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(json.loads(arguments.one))))
        return
    runs = list(_measured(list(_runs(arguments)), arguments.rounds))
    report = _merge(arguments.out, runs)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _print_table(report["points"])
    print(f"wrote {arguments.out}")


def _runs(arguments: argparse.Namespace) -> Iterator[Run]:
    for shape in arguments.shapes:
        for length in arguments.lengths:
            for model in (LLAMA, *arguments.models):
                yield {
                    "cpu": "avx2" if arguments.avx2 else "native",
                    "shape": shape,
                    "length": length,
                    "batch": max(1, TOKENS // length),
                    "model": model,
                    "threads": arguments.threads,
                    "seconds": arguments.seconds,
                }


def _measured(runs: list[Run], rounds: int) -> Iterator[Run]:
    """Execute every run once per round, each in a separate process; yield its results."""
    for number in range(rounds):
        for run in runs:
            command = [sys.executable, __file__, "--one", json.dumps(run)]
            environment = os.environ | (AVX2 if run["cpu"] == "avx2" else {})
            output = subprocess.run(command, capture_output=True, text=True, env=environment)
            name = f"{number} {run['cpu']} {run['shape']} {run['length']} {run['model']}"
            if output.returncode != 0:
                print(f"{name}: {output.stderr.strip()[-300:]}", flush=True)
                continue
            found = json.loads(output.stdout.splitlines()[-1])
            print(f"{name}: {found['tokens_per_s']:.0f} tokens/s, {found['peak_mb']:.0f} MB",
                  flush=True)  # fmt: skip
            yield {**run, "round": number, **found}


def _merge(path: Path, runs: list[Run]) -> dict[str, Any]:
    """Return a report of the runs, and of the file's runs at other points."""
    before = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    points = {_point(run) for run in runs}
    runs = [run for run in before if _point(run) not in points] + runs
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {**provenance(), "versions": versions, "points": _summarize(runs), "runs": runs}


def _summarize(runs: list[Run]) -> list[dict[str, Any]]:
    """Return the medians of each model at each point, and their ratios to Llama."""
    found = []
    for point in sorted({_point(run) for run in runs}):
        here = [run for run in runs if _point(run) == point]
        theirs = {run["round"]: run for run in here if run["model"] == LLAMA}
        for model in dict.fromkeys(run["model"] for run in here):
            own = [run for run in here if run["model"] == model]
            row = dict(zip(_POINT, point, strict=True)) | {"model": model, "rounds": len(own)}
            for key in ("tokens_per_s", "peak_mb"):
                pairs = [(run[key], theirs[run["round"]][key]) for run in own
                         if run["round"] in theirs]  # fmt: skip
                row[key] = round(statistics.median(run[key] for run in own), 1)
                if pairs:
                    row[f"{key}_ratio"] = round(statistics.median(a / b for a, b in pairs), 3)
            found.append(row)
    return found


def _point(run: Run) -> tuple[Any, ...]:
    return tuple(run[key] for key in _POINT)


def _print_table(points: list[dict[str, Any]]) -> None:
    print(f"{'':48} {'tokens/s':>10} {'ratio':>6} {'peak MB':>9} {'ratio':>6}")
    for row in points:
        name = f"{row['cpu']}, {row['shape']}, T {row['length']}, {row['model']}"
        ratios = (row.get(f"{key}_ratio", float("nan")) for key in ("tokens_per_s", "peak_mb"))
        speed, memory = ratios
        print(f"{name:48} {row['tokens_per_s']:10,.0f} {speed:6.2f} {row['peak_mb']:9,.0f} "
              f"{memory:6.2f}")  # fmt: skip


def measure(run: dict[str, Any]) -> dict[str, float]:
    """Time steps of run["model"] for run["seconds"]; return tokens/s of the median step, and MB.

    A short step before creates the threads and the optimizer's state.
    """
    torch.set_num_threads(run["threads"])
    torch.manual_seed(0)
    config, B, T = SHAPES[run["shape"]], run["batch"], run["length"]
    tokens = torch.randint(config.vocab_size, (B, T + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    is_llama = run["model"] == LLAMA
    model, step = _llama(config, T) if is_llama else _ours(config, run["model"])
    if not is_llama:
        keep_freed_memory()  # as `yocobit train` does
    times: list[float] = []
    with contextlib.nullcontext() if is_llama else _as_trained(run["cpu"]):
        step(inputs[:, :64].contiguous(), targets[:, :64].contiguous())
        while sum(times) < run["seconds"]:
            started = time.perf_counter()
            step(inputs, targets)
            times.append(time.perf_counter() - started)
    return {
        "tokens_per_s": B * T / statistics.median(times),
        "peak_mb": peak_bytes() / 1e6,
        "steps": len(times),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


@contextlib.contextmanager
def _as_trained(cpu: str) -> Iterator[None]:
    """Use the matmuls that `yocobit train` would use on that CPU."""
    if cpu == "native":
        with matmul_precision(choose_precision(None)):
            yield
    else:
        with dispatch.use_kernels(cpu):
            yield


def _ours(config: ModelConfig, name: str) -> tuple[nn.Module, Step]:
    """Return a model and its training step, as `yocobit train` makes it."""
    stack, weights = name.split()
    config = config.replace(
        layers=yoco(config).layers if stack == "yoco" else config.layers,
        weights=cast(WeightKind, weights),
        sub_norm=weights != "dense",
    )
    model = Decoder(config)
    optim = OptimConfig(optimizer="adamw")
    gradient_step = GradientStep(
        Objective(model, optim.z_loss),
        Optimizers(model, optim),
        GradientSpikeGuard(),
        optim.grad_clip,
        optim.spike_factor,
    )

    def step(inputs: Tensor, targets: Tensor) -> None:
        resets = torch.zeros_like(inputs, dtype=torch.bool)
        gradient_step([Batch(inputs, targets, resets)], 1.0, 1.0)

    return model, step


def _llama(config: ModelConfig, length: int) -> tuple[nn.Module, Step]:
    """Return transformers' Llama of the same size and its step, with PyTorch's fused attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=len(config.layers),
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            max_position_embeddings=length,
            attn_implementation="sdpa",
            use_cache=False,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step(inputs: Tensor, targets: Tensor) -> None:
        model(input_ids=inputs, labels=targets, shift_labels=targets).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return model, step


if __name__ == "__main__":
    main()
