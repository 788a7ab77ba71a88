"""Models for tests of the engine: briefly trained, packed, and their PyTorch twins.

A twin has the weights of the packed model: its embedding and head are quantised in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from yocobit import Engine
from yocobit.config import ModelConfig, preset
from yocobit.data.tokenizer import train_tokenizer
from yocobit.model import Decoder
from yocobit.model.quantization import quantize_activations
from yocobit.packing import PackedModel, pack, quantize_rows
from yocobit.training import checkpoint

STACKS = {
    "yoco-gret": ("retention", "retention", "cross", "cross"),
    "yoco-swa": ("window", "window", "cross", "cross"),
    "transformer": ("full", "full", "full", "full"),
    "retention": ("retention", "retention"),
    "yoco-gmu": ("retention", "retention", "cross", "gmu"),
    "mixed": ("window", "retention", "full", "gmu", "cross"),
    "yoco-gate": ("window", "gate", "cross", "gmu"),
}
KINDS = ("ternary", "ternary_row", "sign", "dense")
T = 136  # tokens of a test: more than two chunks of 64, and eight windows of 16


def weights_on(
    stack: str, weights: Collection[str], parameters: Iterable[tuple[str, ...]]
) -> list[Any]:
    """Mark as slow the (stack, weights, ...) with some kinds of weights, except on one stack.

    A mixer does not see the format of its matrices.
    """
    return [
        pytest.param(
            *values, marks=[pytest.mark.slow] * (values[1] in weights and values[0] != stack)
        )
        for values in parameters
    ]


def nano(stack: str, weights: str, **changes) -> ModelConfig:
    """Return the nano preset with one of STACKS."""
    return preset("nano").replace(layers=STACKS[stack], weights=weights, **changes)


@cache
def text() -> str:
    """Return a constant text: the licence of the package."""
    return (Path(__file__).resolve().parent.parent / "LICENSE").read_text()


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer([text()], preset("nano").vocab_size)


@cache
def tokens() -> torch.Tensor:
    return torch.tensor(tokenizer().encode(text()).ids)


def trained(config: ModelConfig, steps: int = 30) -> Decoder:
    """Return a model after a few steps of Adam; deterministic."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_num_threads(1)  # the fastest for such a small model
        model = Decoder(config)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(steps):
            starts = torch.randint(len(tokens()) - 65, (8,))
            batch = torch.stack([tokens()[start : start + 65] for start in starts])
            loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def packed(
    model: Decoder, directory: Path, weights: str | None = None, head: str = "int8"
) -> PackedModel:
    """Save a model as a checkpoint in `directory` and pack it there."""
    saved = checkpoint.save(
        directory / "run",
        checkpoint.RunState(corpus_sha256="", step=1),
        model,
        {},
        {},
        tokenizer(),
        keep=1,
    )
    return pack(saved, directory / "model", weights, head)


def engines(new_directory: Callable[[str], Path]) -> Callable[[str], Engine]:
    """Return a cached function from one of STACKS to the engine of a ternary model."""

    @cache
    def make(stack: str) -> Engine:
        model = trained(nano(stack, "ternary"), steps=5)
        return Engine.load(packed(model, new_directory(stack)).path, threads=1)

    return make


@torch.no_grad()
def as_packed(model: Decoder) -> Decoder:
    """Return the twin of `model`: embedding, head and its input are quantised as when packed."""
    twin = Decoder(model.config)
    twin.load_state_dict(model.state_dict())
    if model.config.weights != "dense":
        for weight in {twin.embedding.weight, twin.head.weight}:
            codes, scales = quantize_rows(weight.numpy())
            weight.copy_(torch.from_numpy(codes.astype("float32") * scales[:, None]))
        twin.head.register_forward_pre_hook(lambda _, inputs: (_rounded(inputs[0]),))
    return twin.eval()


def _rounded(x: torch.Tensor) -> torch.Tensor:
    codes, scale = quantize_activations(x, levels=16383)
    return codes * scale
