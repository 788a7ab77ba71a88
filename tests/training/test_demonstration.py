"""configs/demonstration.toml has the original architecture, and trains, packs and serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from packed_models import as_packed
from training_runs import records, run, write_toml

from yocobit import Engine
from yocobit.packing import pack
from yocobit.training import checkpoint
from yocobit.training.config import load

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demonstration.toml"


def test_demonstration_has_the_parts_of_the_earliest_demonstrations():
    config = load(CONFIG)

    assert set(config.model.layers) == {"gate", "window", "cross"}
    assert (config.model.ffn, config.model.weights) == ("sign", "sign")
    assert (config.optim.optimizer, config.optim.weight_decay) == ("adam", 0.0)
    assert (config.schedule.kind, config.optim.z_loss, config.distill) == ("step", 0.0, None)


def test_demonstration_trains_packs_and_serves(tmp_path):
    overrides = [
        f'data.train=[{{path = "{write_toml(tmp_path).with_name("train.txt")}", by_line = true}}]',
        *("data.vocab_size=270", "data.context=16", "run.steps=30", "schedule.step_size=10"),
        *("model.d_model=64", "model.d_ff=128", "model.n_heads=4", "run.threads=1"),
    ]

    out = run(CONFIG, tmp_path / "run", *overrides)

    model = pack(out, tmp_path / "model")
    losses = [record["loss"] for record in records(tmp_path / "run")]
    rates = [record["lr"] for record in records(tmp_path / "run")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert rates[::10] == [3e-3, 1.5e-3, 0.75e-3]
    tokens = np.arange(20)
    logits = Engine.load(model.path, threads=1).logits(tokens, "f32")
    with torch.no_grad():
        twin = as_packed(checkpoint.load_model(out))
        expected = twin(torch.from_numpy(tokens)[None])[0].numpy()
    errors = np.abs(logits - expected).max(axis=1) / np.abs(expected).max()
    # As in tests/engine/test_engine_pytorch.py: a feature whose sign() flips moves by 2.
    assert np.median(errors) < 1e-4 and errors.max() < 0.2
