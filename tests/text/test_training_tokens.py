"""What is trained is what is served: stored tokens, loss masks, and evaluation."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from sample_tokenizers import END, KINDS, SPECIAL, TEXT, definition, sample_tokenizer

from yocobit.config import ConfigError
from yocobit.data.config import DataConfig
from yocobit.data.conversations import CHAT_TEMPLATE
from yocobit.data.corpus import prepare
from yocobit.data.documents import Piece
from yocobit.data.loss_mask import LossMask
from yocobit.text import TextEncoder
from yocobit.text.chat_template import ChatTemplate
from yocobit.text.windows import Span

CONVERSATION = [
    {"role": "user", "content": "Capital of the earth?"},
    {"role": "assistant", "content": "Paris, 日本."},
    {"role": "user", "content": f"Sure? {END}"},
    {"role": "assistant", "content": "Yes, it's the heaven."},
]


def stored(tmp_path, kind: str, record: dict, tokenizer: str | None = None):
    """Return the tokens and the loss mask of a corpus of one record, without the end token."""
    (tmp_path / "tokenizer.json").write_text(tokenizer or definition(kind))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    (tmp_path / "train.jsonl").write_text(json.dumps(record))
    (tmp_path / "valid.txt").write_text("and the earth")
    data = DataConfig(
        train=(str(tmp_path / "train.jsonl"),),
        valid=(str(tmp_path / "valid.txt"),),
        tokenizer=str(tmp_path / "tokenizer.json"),
        context=4,
    )
    corpus = prepare(data, 1, tmp_path / "data")
    (tokens,) = corpus.train
    n = len(tokens) - 1
    assert tokens.read(n, n + 1).tolist() == [sample_tokenizer(kind).token_to_id(END)]
    return tokens.read(0, n).tolist(), tokens.loss_mask(0, n)


def rendered(messages, add_generation_prompt: bool) -> str:
    template = ChatTemplate(CHAT_TEMPLATE, "template")
    return str(template.render(messages, add_generation_prompt=add_generation_prompt))


@pytest.mark.parametrize("kind", KINDS)
def test_conversation_has_the_same_tokens_in_training_and_when_served(tmp_path, kind):
    tokens, _ = stored(tmp_path, kind, {"messages": CONVERSATION})
    encoder = TextEncoder(sample_tokenizer(kind))

    assert tokens == encoder.encode(rendered(CONVERSATION, add_generation_prompt=False))
    # The prompt of the second answer, as served, is what precedes it in training.
    prompt = encoder.encode(rendered(CONVERSATION[:3], add_generation_prompt=True))
    n_equal = next(i for i, (a, b) in enumerate(zip(tokens, [*prompt, -1], strict=False)) if a != b)
    assert n_equal >= len(prompt) - 1  # the last token may join the line break and the answer


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_that_of_the_answers(tmp_path, kind):
    tokens, mask = stored(tmp_path, kind, {"messages": CONVERSATION})
    tokenizer = sample_tokenizer(kind)
    scored = tokenizer.decode([t for t, is_in_loss in zip(tokens, mask, strict=True) if is_in_loss])

    answers = [m["content"] for m in CONVERSATION if m["role"] == "assistant"]
    expected = "\n<|end|>".join(answers) + "\n<|end|>"
    encoded = tokenizer.decode(TextEncoder(tokenizer).encode(expected))
    assert scored.split() == encoded.split() or scored.replace(" ", "") == encoded.replace(" ", "")


@pytest.mark.parametrize("kind", KINDS)
def test_long_document_has_the_tokens_of_the_whole(tmp_path, kind):
    text = TEXT * 400 + "x" * 70_000 + " " + END

    tokens, mask = stored(tmp_path, kind, {"text": text})

    assert tokens == TextEncoder(sample_tokenizer(kind)).encode(text)
    assert mask.all()
    assert not {sample_tokenizer(kind).token_to_id(name) for name in SPECIAL} & set(tokens)


def test_long_conversation_has_the_tokens_of_the_whole(tmp_path):
    messages = [
        {"role": role, "content": TEXT * 30} for _ in range(5) for role in ("user", "assistant")
    ]

    tokens, mask = stored(tmp_path, "sentencepiece", {"messages": messages})

    encoder = TextEncoder(sample_tokenizer("sentencepiece"))
    assert tokens == encoder.encode(rendered(messages, add_generation_prompt=False))
    assert 0.4 < mask.mean() < 0.6


def test_switches_of_the_tokenizer_do_not_cut_training_text(tmp_path):
    fields = json.loads(definition("byte_level"))
    fields["truncation"] = {
        "direction": "Right",
        "max_length": 5,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    fields["model"]["dropout"] = 0.5

    tokens, _ = stored(tmp_path, "byte_level", {"text": TEXT}, json.dumps(fields))

    assert tokens == TextEncoder(sample_tokenizer("byte_level")).encode(TEXT)


def test_tokenizer_that_loses_text_is_rejected_before_training(tmp_path):
    fields = json.loads(definition("byte_level"))
    fields["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[a-f]"}, "content": ""}

    with pytest.raises(ConfigError, match=r"tokenizer.json: loses text: 'a b' becomes ' '"):
        stored(tmp_path, "byte_level", {"text": TEXT}, json.dumps(fields))


def test_tokenizer_with_few_tokens_and_a_huge_id_is_rejected(tmp_path):
    fields = json.loads(definition("byte_level"))
    fields["model"]["vocab"]["a"] = 999_999

    with pytest.raises(ConfigError, match=r"ids must be below \d+, twice .* largest is 999999"):
        stored(tmp_path, "byte_level", {"text": TEXT}, json.dumps(fields))


@pytest.mark.parametrize(
    ("starts", "ends", "expected"),
    [
        ([0, 3, 5], [3, 5, 9], [False, True, True]),
        ([0, 2, 4], [2, 4, 9], [False, True, True]),  # a token of both parts is in the loss
        ([0, 3, 3], [3, 3, 9], [False, True, True]),  # a token without characters
        ([6, 8, 9], [8, 9, 10], [True, False, False]),
    ],
)
def test_token_is_in_the_loss_if_one_of_its_characters_is(starts, ends, expected):
    mask = LossMask()
    for text, in_loss in (("abc", False), ("d", True), ("éfgh", True), ("ij", False)):
        mask.add(Piece(text, in_loss))

    assert mask.of(Span([0] * 3, starts, ends)).tolist() == expected
    assert (mask.n_bytes, mask.in_loss) == (6, False)


def test_memory_of_encoding_a_document_does_not_grow_with_it():
    encoder = TextEncoder(sample_tokenizer("byte_level"))
    encoder.encode(TEXT * 100)
    peaks = []
    for n in (700, 2100):
        tracemalloc.start()
        n_tokens = sum(len(ids) for ids in encoder.encode_pieces(TEXT for _ in range(n)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert n_tokens > 50 * n

    assert peaks[1] < 1.5 * peaks[0]
    assert np.mean(peaks) < 1 << 26
