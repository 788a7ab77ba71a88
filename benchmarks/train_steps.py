"""What train_throughput.py measures: training steps of one model in a process of its own.

Letters: B batch   T positions
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from yocobit.benchmark.shapes import transformer, yoco
from yocobit.config import ModelConfig, WeightKind
from yocobit.hardware.machine import peak_bytes
from yocobit.model import Decoder
from yocobit.model.ops import dispatch
from yocobit.training.allocator import keep_freed_memory
from yocobit.training.config import OptimConfig
from yocobit.training.corpus import Batch
from yocobit.training.guard import Guard
from yocobit.training.optim import Optimizers
from yocobit.training.precision import choose_precision, products_in
from yocobit.training.step import GradientStep, Objective

LLAMA = "llama dense"  # of transformers, float32; the others are ours
OURS = ("yoco ternary", "yoco dense", "transformer ternary", "transformer dense")
SHAPES: dict[str, ModelConfig] = {
    "20m": transformer(384, 8, 6, 6, 1024, 8192),
    "100m": transformer(768, 12, 12, 12, 2048, 16384),
}

Step = Callable[[Tensor, Tensor], object]  # of inputs and targets, each (B, T)


def measure(run: dict[str, Any]) -> dict[str, float]:
    """Time steps of run["model"] for run["seconds"]; return tokens/s of the median step, and MB.

    One step of a few positions makes threads and the optimizer's state before.
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
            begin = time.perf_counter()
            step(inputs, targets)
            times.append(time.perf_counter() - begin)
    return {
        "tokens_per_s": B * T / statistics.median(times),
        "peak_mb": peak_bytes() / 1e6,
        "steps": len(times),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


@contextlib.contextmanager
def _as_trained(cpu: str) -> Iterator[None]:
    """Use the products that `yocobit train` would use on that CPU."""
    if cpu == "native":
        with products_in(choose_precision(None)):
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
        Guard(),
        optim.grad_clip,
        optim.spike_factor,
    )

    def step(inputs: Tensor, targets: Tensor) -> None:
        resets = torch.zeros_like(inputs, dtype=torch.bool)
        gradient_step([Batch(inputs, targets, resets)], 1.0, 1.0)

    return model, step


def _llama(config: ModelConfig, length: int) -> tuple[nn.Module, Step]:
    """Return transformers' model of the same size and its step, by PyTorch's fused attention."""
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
