"""Regression values of small models: packed codes, greedy tokens and losses.

tests/make_golden.py stores them, tests/engine/test_regression.py compares with them.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from packed_models import nano, packed

from yocobit import Engine
from yocobit.config import ModelConfig
from yocobit.model import Decoder
from yocobit.model.ops.dispatch import use_kernels

FILE = Path(__file__).parent / "golden" / "regression.json"
CASES = [(stack, kind) for stack in ("yoco-gret", "yoco-swa") for kind in ("ternary", "sign")]


def measure(stack: str, kind: str) -> dict[str, Any]:
    """Return the numbers of one case as JSON values."""
    model = seeded(nano(stack, kind))
    with tempfile.TemporaryDirectory() as directory:
        packed_model = packed(model, Path(directory))
        data = packed_model.file.read_bytes()
        codes = hashlib.sha256()
        for tensor in packed_model.tensors.values():
            if tensor.dtype in ("U8", "I8"):
                codes.update(data[tensor.begin : tensor.end])
        return {
            "codes_sha256": codes.hexdigest(),
            "greedy_tokens": greedy(Engine(packed_model, threads=1, kernels=None)),
            "losses": plain_losses(model),
        }


def seeded(config: ModelConfig) -> Decoder:
    """Return a model with weights from NumPy, which do not depend on the version of torch."""
    model = Decoder(config)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                values = rng.standard_normal(parameter.shape) * parameter.shape[1] ** -0.5
                parameter.copy_(torch.from_numpy(values))
    return model


def greedy(engine: Engine) -> list[int]:
    session, tokens = engine.session(80, "f32"), []
    logits = session.feed(range(16))
    for _ in range(64):
        tokens.append(int(logits.argmax()))
        logits = session.step(tokens[-1])
    return tokens


@use_kernels("pytorch")
def plain_losses(model: Decoder) -> list[float]:
    """Return the losses of 20 SGD steps on a fixed batch, with kernels that any CPU has."""
    rng = np.random.default_rng(1)
    batch = torch.from_numpy(rng.integers(0, 64, (4, 33)))
    found = []
    for _ in range(20):
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.02 * parameter.grad
                parameter.grad = None
        found.append(loss.item())
    return found
