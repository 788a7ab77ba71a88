"""Conversations in transformers: the tokens of the engine, loss masks, stop strings."""

from __future__ import annotations

import pytest
import torch
from packed_models import nano, text, tokenizer, trained
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from yocobit import Engine
from yocobit.data import conversations
from yocobit.packing import pack
from yocobit.training import checkpoint

CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": " Hi\n"},
    {"role": "assistant", "content": "Hello <|end|> there"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Bye"},
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of a model that was trained on conversations."""
    state = checkpoint.RunState(corpus_sha256="", step=1)
    model = trained(nano("yoco-gret", "dense"), steps=2)
    template = conversations.CHAT_TEMPLATE
    directory = tmp_path_factory.mktemp("chats") / "run"
    return checkpoint.save(directory, state, model, {}, {}, tokenizer(), 1, template)


@pytest.fixture(scope="module")
def engine(saved, tmp_path_factory):
    return Engine.load(pack(saved, tmp_path_factory.mktemp("chats") / "model").path, threads=1)


@pytest.fixture
def hf_tokenizer(saved):
    return AutoTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("is_saved_again", [False, True])
def test_a_text_has_the_tokens_of_the_engine(hf_tokenizer, engine, tmp_path, is_saved_again):
    if is_saved_again:
        hf_tokenizer.save_pretrained(tmp_path)
        hf_tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    for each in ("", "a", text()[:300]):
        assert hf_tokenizer(each).input_ids == engine.encode(each)


@pytest.mark.parametrize("n_messages", [2, 4])
def test_a_chat_has_the_tokens_of_the_engine(hf_tokenizer, engine, n_messages):
    chat = CHAT[:n_messages]

    found = hf_tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]

    assert found == engine.encode(engine.chat_template.render(chat))


def test_assistant_mask_is_the_loss_mask_of_training(hf_tokenizer):
    parts = conversations.render(CHAT, "chat")

    found = hf_tokenizer.apply_chat_template(
        CHAT, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )

    tokens, mask = found["input_ids"][0], found["assistant_masks"][0].bool()
    assert hf_tokenizer.decode(tokens[1:]) == "".join(part for part, _ in parts)
    assert hf_tokenizer.decode(tokens[mask]) == "".join(p for p, is_learnt in parts if is_learnt)


def test_generation_ends_at_the_stop_strings_of_training(saved, hf_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(saved)
    ids = hf_tokenizer(f"{conversations.END_OF_TURN}a").input_ids[1:]
    replies = iter(ids)
    model.head.register_forward_hook(
        lambda *_: torch.nn.functional.one_hot(torch.tensor([[next(replies)]]), 512).float()
    )

    found = model.generate(**hf_tokenizer("Hi", return_tensors="pt"), max_new_tokens=len(ids))

    assert found[0].tolist() == [*hf_tokenizer("Hi").input_ids, *ids[:-1]]


def test_pipeline_answers_a_chat(saved):
    answer = pipeline("text-generation", model=str(saved))(CHAT[:2], max_new_tokens=3)

    assert answer[0]["generated_text"][:2] == CHAT[:2]
    assert answer[0]["generated_text"][2]["role"] == "assistant"
