"""A run that starts from a packed model: master weights that quantise to its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from packed_models import nano, packed, text, trained
from published_checkpoint import save_checkpoint
from rich.console import Console

from yocobit import Engine
from yocobit.benchmark.random_model import write_random_model
from yocobit.config import ConfigError
from yocobit.data.tokenizer import train_tokenizer
from yocobit.exporters.weights import Weights
from yocobit.importers import import_model
from yocobit.model import Decoder
from yocobit.model.quantization import quantize_weight
from yocobit.packing import read_model
from yocobit.pretrained import TINY
from yocobit.training import configure, load_model, train
from yocobit.training.masters import master_weights, masters

KINDS = ("ternary", "ternary_row", "sign", "ternary_g64", "sign_g128")


def weight(kind: str) -> torch.Tensor:
    """Return integers times scales as a packed model has them, groups of zeros included."""
    random = torch.randn(24, 320, generator=torch.Generator().manual_seed(1))
    if kind == "ternary_g64":
        random[3, 64:128] = 0
    integers, scales = quantize_weight(random, kind)
    columns = {"ternary_g64": 64, "sign_g128": 128}.get(kind)
    return integers * (scales.repeat_interleave(columns, 1)[:, :320] if columns else scales)


@pytest.mark.parametrize("kind", KINDS)
def test_masters_quantise_to_the_weights_that_they_are_made_from(kind):
    expected = weight(kind)

    integers, scales = quantize_weight(masters(expected, kind), kind)

    columns = {"ternary_g64": 64, "sign_g128": 128}.get(kind)
    found = integers * (scales.repeat_interleave(columns, 1)[:, :320] if columns else scales)
    assert torch.equal(integers, expected.sign())
    # A mean of n float32 values has a relative error of about 2^-24 times log2 n.
    torch.testing.assert_close(found, expected, rtol=16 * 2**-24, atol=0)


def start_run(model: Path, directory: Path) -> Path:
    """Return the checkpoint of a run from a packed model with a learning rate of almost 0."""
    (directory / "text.txt").write_text(text()[:8000])
    overrides = ["run.steps=1", "run.threads=1", "optim.batch_size=1", "data.context=64",
                 "optim.learning_rate=1e-30", "optim.matrix_learning_rate=1e-30",
                 "run.sample_every=0", "run.eval_tokens=128"]  # fmt: skip
    config, _ = configure(str(directory / "text.txt"), overrides=overrides, init=model)
    console = Console(quiet=True)
    return train(config, directory / "run", resume=False, console=console, init=model)


@pytest.mark.parametrize("stack", ["packaged", "transformer"])
def test_a_run_from_a_packed_model_starts_with_its_logits(stack, tmp_path):
    """The transformer has interleaved RoPE, for which exporters reorder rows of Q and K."""
    model = TINY
    if stack != "packaged":
        model = packed(trained(nano(stack, "ternary")), tmp_path / "source").path
    engine = Engine.load(model)
    tokens = engine.encode(text()[:400])[:96]
    session = engine.session(max_tokens=128, cache="f32")
    expected = np.stack([session.feed([token]) for token in tokens])

    run = start_run(model, tmp_path)
    with torch.no_grad():
        found = load_model(run)(torch.tensor([list(tokens)]))[0].numpy()

    # The engine rounds the inputs of its int8 head, which training does not: losses agree to 0.1%.
    def loss(logits: np.ndarray) -> float:
        logits = logits[:-1].astype(np.float64)
        highest = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - highest).sum(axis=1)) + highest[:, 0]
        return float((log_sum - logits[range(len(logits)), tokens[1:]]).mean())

    assert loss(found) == pytest.approx(loss(expected), rel=1e-3)


def test_rows_without_a_token_are_dropped(tmp_path):
    source = save_checkpoint(tmp_path / "hf", train_tokenizer([text()], 300))  # of 512 rows
    model = import_model(source, tmp_path / "model").path

    run = start_run(model, tmp_path)

    embedding = load_model(run).state_dict()["embedding.weight"]
    stored = Weights(read_model(model)).floats_of("embedding.weight")
    np.testing.assert_allclose(embedding.numpy(), stored[:300], rtol=1e-6, atol=1e-29)  # one step


def test_all_parameters_of_a_packed_model_are_read():
    model = read_model(TINY)
    stored = Weights(model)

    weights = master_weights(TINY)

    assert weights.keys() == Decoder(model.config).state_dict().keys()
    for name in ("embedding.weight", "head.weight", "norm.weight"):
        np.testing.assert_array_equal(weights[name].numpy(), stored.floats_of(name))


def test_weights_that_cannot_be_trained_are_refused(tmp_path):
    path = write_random_model(nano("transformer", "odd_g128"), tmp_path / "model").path

    with pytest.raises(ConfigError, match=r"weights must be ternary, .* in training"):
        master_weights(path)


def test_a_damaged_packed_model_is_refused(tmp_path):
    path = write_random_model(nano("transformer", "ternary"), tmp_path / "model").path
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)

    with pytest.raises(ConfigError, match="must have sha256"):
        master_weights(path)
