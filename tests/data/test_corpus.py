"""Corpus: shards, windows of tokens, mixtures, and the loss mask of conversations.

Letters: B batch   T positions
"""

import hashlib
from collections import Counter
from dataclasses import replace

import corpora
import numpy as np
import pytest
from corpora import TEXT, read, write_jsonl

from yocobit.config import ConfigError
from yocobit.data import shards
from yocobit.data.config import DataConfig
from yocobit.data.corpus import IGNORED, Corpus, prepare
from yocobit.data.digest_set import DigestSet


@pytest.fixture
def config(tmp_path) -> DataConfig:
    return corpora.plain(tmp_path)


@pytest.fixture
def mixture(tmp_path) -> DataConfig:
    return corpora.mixture(tmp_path)


@pytest.fixture
def corpus(config, tmp_path) -> Corpus:
    return prepare(config, 270, tmp_path / "data")


def test_shard_has_every_document_followed_by_the_end_token(config, tmp_path):
    (tmp_path / "second.txt").write_text("second é")
    config = replace(config, train=(*config.train, str(tmp_path / "second.txt")))

    corpus = prepare(config, 270, tmp_path / "data")

    (train,) = corpus.train
    tokens = read(train)
    ends = [i for i, token in enumerate(tokens) if token == 0]
    assert len(ends) == 2 and ends[1] == len(tokens) - 1
    assert corpus.tokenizer.decode(tokens[: ends[0]]) == TEXT
    assert corpus.tokenizer.decode(tokens[ends[0] + 1 : -1]) == "second é"
    assert train.n_bytes == len((TEXT + "second é").encode())
    assert train.n_documents == 2


def test_shards_of_bounded_size_read_as_one_sequence(config, tmp_path, monkeypatch):
    whole = read(prepare(config, 270, tmp_path / "whole").train[0])
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)

    (train,) = prepare(config, 270, tmp_path / "parts").train

    sizes = [path.stat().st_size for path in sorted((tmp_path / "parts").glob("train-*.bin"))]
    assert len(sizes) > 5 and set(sizes[:-1]) == {100}
    assert read(train) == whole
    for start, end in ((0, 0), (49, 50), (50, 51), (10, 170), (len(whole) - 1, len(whole))):
        assert train.read(start, end).tolist() == whole[start:end]


def test_targets_are_inputs_one_position_later(corpus):
    inputs, targets = corpus.windows(seed=0, first=0, size=50, context=8)

    assert inputs.shape == targets.shape == (50, 8)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])


def test_pass_predicts_every_token_from_the_previous_one_and_the_first_from_an_end(corpus):
    tokens = read(corpus.train[0])
    pairs = Counter(zip([0, *tokens], tokens, strict=False))
    seen = Counter()
    n_windows = len(tokens) // 8

    inputs, targets = corpus.windows(seed=0, first=0, size=n_windows, context=8)
    for row in zip(inputs.tolist(), targets.tolist(), strict=True):
        seen.update(zip(*row, strict=True))

    assert seen <= pairs
    assert (pairs - seen).total() == len(tokens) - 8 * n_windows
    assert (0, tokens[0]) in seen


def test_windows_are_a_pure_function_of_the_arguments(corpus):
    whole, _ = corpus.windows(seed=3, first=0, size=600, context=8)

    corpus.windows(seed=4, first=77, size=3, context=8)
    again, _ = corpus.windows(seed=3, first=100, size=500, context=8)

    assert np.array_equal(whole[100:], again)


def test_one_window_is_enough_text(tmp_path):
    (tmp_path / "t.txt").write_text("abcdefg")  # 7 bytes and the end: 8 tokens
    path = str(tmp_path / "t.txt")
    config = DataConfig(train=(path,), valid=(path,), vocab_size=257, context=8)

    corpus = prepare(config, 257, tmp_path / "data")

    inputs, targets = corpus.windows(seed=0, first=5, size=2, context=8)
    assert inputs.shape == (2, 8)
    assert sorted(targets[0].tolist()) == sorted(read(corpus.train[0]))


# ---- several sources ----


def test_windows_come_from_the_sources_by_weight(mixture, tmp_path):
    corpus = prepare(mixture, 257, tmp_path / "data")

    _, targets = corpus.windows(seed=0, first=1024, size=1024, context=8)

    texts = [corpus.tokenizer.decode(row) for row in targets.tolist()]
    is_second = ["t" in text or "w" in text for text in texts]
    assert sum(is_second) == 256
    assert all(("n" in text) is not second for text, second in zip(texts, is_second, strict=True))


def test_weights_are_part_of_the_corpus_hash_but_shards_are_reused(mixture, tmp_path):
    before = prepare(mixture, 257, tmp_path / "data")
    first, second = mixture.train
    made = (tmp_path / "data" / "train-0-00000.bin").stat().st_mtime_ns
    other = replace(mixture, tokenizer=str(tmp_path / "data" / "tokenizer.json"), vocab_size=None)
    same = prepare(other, 1, tmp_path / "data")
    changed = replace(other, train=(first, replace(second, weight=2.0)))

    after = prepare(changed, 1, tmp_path / "data")

    assert before.weights == (3.0, 1.0) and after.weights == (3.0, 2.0)
    assert after.sha256 != same.sha256
    assert (tmp_path / "data" / "train-1-00000.bin").stat().st_mtime_ns >= made


def test_source_shorter_than_a_window_is_refused(mixture, tmp_path):
    write_jsonl(tmp_path / "b.jsonl", [{"text": "two"}])

    with pytest.raises(ConfigError, match=r"train\[1\] has 4 tokens but one window needs 8"):
        prepare(mixture, 257, tmp_path / "data")


def test_duplicates_are_omitted_and_counted_on_request(mixture, tmp_path):
    config = replace(mixture, deduplicate=True)
    write_jsonl(tmp_path / "b.jsonl", [{"text": t} for t in ("two " * 20, "one " * 20, "one two")])

    every = prepare(mixture, 257, tmp_path / "every")
    unique = prepare(config, 257, tmp_path / "unique")

    assert [tokens.n_documents for tokens in every.train] == [20, 3]
    assert [tokens.n_documents for tokens in unique.train] == [1, 1]
    assert unique.valid.n_documents == 1
    assert (every.n_duplicates, unique.n_duplicates) == (0, 21)
    assert any("omitted 21 duplicate documents" in line for line in unique.describe())


def test_digest_set_contains_all_inserted_digests_while_it_grows():
    digests = [
        hashlib.blake2b(bytes([i % 251, i // 251]), digest_size=16).digest() for i in range(5000)
    ]
    digests[7] = bytes(16)
    seen = DigestSet()

    assert [seen.add(digest) for digest in digests] == [True] * 5000
    assert [seen.add(digest) for digest in digests] == [False] * 5000
    assert len(seen.slots) <= 43 * 5000


# ---- conversations ----


@pytest.fixture
def chat(tmp_path) -> DataConfig:
    messages = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so!"}]
    train = write_jsonl(tmp_path / "chat.jsonl", [{"text": "plain"}, {"messages": messages}] * 9)
    return DataConfig(train=(train,), valid=(train,), vocab_size=257, context=16)


def test_only_assistant_messages_of_a_conversation_are_targets(chat, tmp_path):
    corpus = prepare(chat, 257, tmp_path / "data")
    (train,) = corpus.train
    tokens, loss_mask = train.read(0, len(train)), train.loss_mask(0, len(train))

    assert corpus.tokenizer.decode(tokens[loss_mask].tolist()) == "plainso!\n<|end|>" * 9
    assert train.n_in_loss == loss_mask.sum() == 9 * (len("plain") + 1 + len("so!\n<|end|>"))
    assert train.n_bytes == 9 * len("plainso!\n<|end|>")
    _, targets = corpus.windows(seed=0, first=0, size=len(train) // 16, context=16)
    in_loss = targets[targets != IGNORED]
    assert Counter(in_loss.tolist()) <= Counter(tokens[loss_mask].tolist())
    assert 0 < len(in_loss) < targets.size


def test_mask_is_stored_for_the_shards_that_need_it(chat, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 12)  # 6 tokens: "plain" and its end

    corpus = prepare(chat, 257, tmp_path / "data")

    assert not (tmp_path / "data" / "train-0-00000.mask").exists()
    assert (tmp_path / "data" / "train-0-00001.mask").read_bytes() == bytes(6)
    loss_mask = corpus.train[0].loss_mask(0, len(corpus.train[0]))
    assert loss_mask.sum() == corpus.train[0].n_in_loss


def test_text_without_conversations_has_no_mask_and_no_template(corpus, chat, tmp_path):
    assert corpus.chat_template is None
    assert list((tmp_path / "data").glob("*.mask")) == []
    assert prepare(chat, 257, tmp_path / "chat").chat_template is not None
