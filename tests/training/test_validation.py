"""Bits per byte compared with sums over single predictions."""

import math

import pytest
import torch
from training_runs import records, run

from yocobit.config import preset
from yocobit.data.corpus import prepare
from yocobit.data.tokenizer import end_token
from yocobit.model import Decoder
from yocobit.training import checkpoint, load_model
from yocobit.training.config import load as load_config
from yocobit.training.step import Objective
from yocobit.training.validation import bits_per_byte


@pytest.fixture
def corpus(toml, tmp_path):
    config = load_config(toml)
    return prepare(config.data, 270, tmp_path / "data")


@pytest.mark.parametrize("context", [1, 7, 16, 1000])
def test_bits_per_byte_equals_a_sum_over_single_predictions(corpus, context):
    torch.manual_seed(0)
    model = Decoder(preset("nano").replace(vocab_size=270)).double()
    tokens, half = corpus.valid.read(0, len(corpus.valid)).tolist(), (context + 1) // 2
    end = end_token(corpus.tokenizer)
    text = [end, *tokens]  # the context of token i: text[:i + 1]

    nats = 0.0
    for i, token in enumerate(tokens):
        last = (i // half + 1) * half  # of the window with token i in the loss, exclusive
        document = max((j for j in range(i + 1) if text[j] == end), default=0)
        seen = text[max(0, last - context, document) : i + 1]
        with torch.inference_mode():
            log_p = model(torch.tensor([seen]))[0, -1].log_softmax(dim=-1)
        nats -= log_p[token].item()
    n_bytes = len((corpus.tokenizer.decode(tokens)).encode())

    found = bits_per_byte(Objective(model, 0.0), corpus.valid, end, context)
    # float64, but the int8 rounding of activations may fall differently for a last-bit difference.
    assert found == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-4)


def test_bits_per_byte_of_a_uniform_model_is_log2_of_the_vocabulary_per_token(corpus):
    model = Decoder(preset("nano").replace(vocab_size=270))
    torch.nn.init.zeros_(model.head.weight)

    whole = bits_per_byte(Objective(model, 0.0), corpus.valid, 0, 16)
    part = bits_per_byte(Objective(model, 0.0), corpus.valid, 0, 16, max_tokens=40)

    expected = len(corpus.valid) * math.log2(270) / corpus.valid.n_bytes
    # float32 log-probabilities: eps relative to ln 270, and a few roundings.
    assert whole == pytest.approx(expected, rel=1e-6)
    assert part == pytest.approx(expected, rel=1e-6)


def test_last_record_is_of_the_whole_validation_text_and_the_saved_model(toml, tmp_path):
    out = tmp_path / "run"
    saved = run(toml, out, "run.eval_tokens=20")
    config = load_config(toml)
    corpus = prepare(config.data, 270, out / "data")

    found = bits_per_byte(Objective(load_model(saved), 0.0), corpus.valid, 0, config.data.context)

    # The run's head matmul is in bfloat16 where the CPU has it: 2^-9 of a logit.
    assert records(out)[-1]["valid_bits_per_byte"] == pytest.approx(found, rel=2e-3)
    assert checkpoint.load_state(saved).valid_bits_per_byte == pytest.approx(found, rel=2e-3)
