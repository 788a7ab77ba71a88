"""Fine-tuning: runs that start from another, and conversations from training to packing."""

import json
import math
from pathlib import Path

import pytest
import torch
from packed_models import text
from rich.console import Console

from yocobit.config import ConfigError, preset
from yocobit.data.conversations import CHAT_TEMPLATE
from yocobit.data.corpus import prepare
from yocobit.data.tokenizer import load_tokenizer
from yocobit.model import Decoder
from yocobit.packing import checkpoints, pack
from yocobit.packing.verify import verify
from yocobit.training import TrainConfig, checkpoint, load, train
from yocobit.training.step import Objective
from yocobit.training.validation import bits_per_byte

COMMON = """
[optim]
batch_size = 2
[schedule]
kind = "step"
[run]
steps = 2
eval_tokens = 64
threads = 1
[data]
context = 32
"""
TALK = [
    {"role": "user", "content": "What is this?"},
    {"role": "assistant", "content": "A licence."},
    {"role": "user", "content": "And so?"},
    {"role": "assistant", "content": "You may copy it."},
]


def run(toml: Path, out: Path, *overrides: str, init: Path | None = None, resume=False) -> Path:
    return train(
        load(toml, overrides, init), out, resume=resume, console=Console(quiet=True), init=init
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A run on plain text."""
    directory = tmp_path_factory.mktemp("base")
    (directory / "text.txt").write_text(text()[:4000])
    (directory / "base.toml").write_text(
        f'{COMMON}train = ["text.txt"]\nvalid = ["text.txt"]\nvocab_size = 300\n'
        '[model]\npreset = "nano"\n'
    )
    run(directory / "base.toml", directory / "run")
    return directory / "run"


@pytest.fixture
def chat(tmp_path) -> Path:
    """A configuration for fine-tuning on conversations, without [model]."""
    (tmp_path / "talk.jsonl").write_text(f"{json.dumps({'messages': TALK})}\n" * 9)
    (tmp_path / "chat.toml").write_text(
        f'{COMMON}train = ["talk.jsonl"]\nvalid = ["talk.jsonl"]\nvocab_size = 1000\n'
    )
    return tmp_path / "chat.toml"


def test_run_starts_from_the_weights_tokenizer_and_model_of_another(base, chat, tmp_path):
    config: TrainConfig = load(chat, init=base)
    frozen = ("optim.learning_rate=1e-30", "optim.weight_decay=0.0")

    made = checkpoint.load_model(run(chat, tmp_path / "run", *frozen, init=base))

    before = checkpoint.load_model(base)
    assert config.model == before.config == made.config
    assert config.data.vocab_size is None
    assert load_tokenizer(checkpoints.find(tmp_path / "run") / "tokenizer.json").to_str() == (
        load_tokenizer(checkpoints.find(base) / "tokenizer.json").to_str()
    )
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, made.state_dict()[name])


def test_training_and_validation_reset_the_model_at_document_starts(
    base, chat, tmp_path, monkeypatch
):
    seen = []
    hidden = Decoder.hidden

    def recording(self, tokens, resets=None):
        seen.append((torch.is_grad_enabled(), tokens, resets))
        return hidden(self, tokens, resets)

    monkeypatch.setattr(Decoder, "hidden", recording)
    run(chat, tmp_path / "run", "data.context=256", init=base)

    assert {has_gradients for has_gradients, _, _ in seen} == {True, False}
    for _, tokens, resets in seen:
        assert torch.equal(resets, tokens == 0) and resets[:, 1:].any()


def test_resumed_run_continues_from_its_own_checkpoint(base, chat, tmp_path):
    whole = run(chat, tmp_path / "whole", "run.steps=4", init=base)
    run(chat, tmp_path / "parts", "run.steps=2", init=base)

    parts = run(chat, tmp_path / "parts", "run.steps=4", init=base, resume=True)

    weights = [(saved / "model.safetensors").read_bytes() for saved in (whole, parts)]
    assert weights[0] == weights[1]


def test_model_of_another_shape_is_refused_with_both_shapes(base, chat, tmp_path):
    chat.write_text(chat.read_text() + '[model]\npreset = "nano"\nd_ff = 64\n')

    shapes = r"\[128, 64\] in the checkpoint but \[64, 64\] in the model"
    with pytest.raises(ConfigError, match=rf"'layers\.0\.ffn\.\w+_proj\.weight' is {shapes}"):
        run(chat, tmp_path / "run", init=base)


def test_packed_model_cannot_be_packed_again_but_can_be_trained_on(base, chat, tmp_path):
    packed = pack(base, tmp_path / "packed").path

    with pytest.raises(ConfigError, match=r"packed: is a packed model, .* name the run or ch"):
        pack(packed, tmp_path / "again")
    assert load(chat, init=packed).model == checkpoint.load_model(base).config


def test_init_that_is_no_run_is_refused(chat, tmp_path):
    with pytest.raises(ConfigError, match="absent: no such run or checkpoint"):
        load(chat, init=tmp_path / "absent")


def test_model_of_conversations_is_packed_with_their_template(base, chat, tmp_path):
    saved = run(chat, tmp_path / "run", init=base)

    packed = pack(saved, tmp_path / "packed").path

    assert (packed / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    generation = json.loads((packed / "generation_config.json").read_text())
    assert generation["stop_strings"] == ["\n<|end|>", "<|end|>"]
    assert verify(packed) == []


def test_model_of_plain_text_is_packed_without_a_template(base, tmp_path):
    packed = pack(base, tmp_path / "packed").path

    assert not (packed / "chat_template.jinja").exists()
    assert "stop_strings" not in json.loads((packed / "generation_config.json").read_text())


def test_checkpoint_without_its_template_is_torn(base, chat, tmp_path):
    saved = run(chat, tmp_path / "run", init=base)

    (saved / "chat_template.jinja").unlink()

    assert checkpoints.last(tmp_path / "run") is None


@pytest.mark.parametrize("max_tokens", [None, 40])
def test_bits_per_byte_of_conversations_count_assistant_messages_only(
    base, chat, tmp_path, max_tokens
):
    corpus = prepare(load(chat, init=base).data, 1, tmp_path / "data")
    valid, n_tokens = corpus.valid, corpus.tokenizer.get_vocab_size()
    torch.manual_seed(0)
    model = Decoder(preset("nano").replace(vocab_size=n_tokens))
    torch.nn.init.zeros_(model.head.weight)

    found = bits_per_byte(Objective(model, 0.0), valid, end=0, context=16, max_tokens=max_tokens)

    # A uniform model: float32 log-probabilities, and a few roundings.
    n_bytes = 9 * len("A licence.\n<|end|>You may copy it.\n<|end|>")
    assert valid.n_bytes == n_bytes
    assert found == pytest.approx(valid.n_in_loss * math.log2(n_tokens) / n_bytes, rel=1e-6)
