"""Corpus and tokenizer: text in, windows of tokens out, and one clear line where text is missing.

Letters: B batch   T positions
"""

import hashlib
import json
import os
import random
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from yocobit.config import ConfigError
from yocobit.training import preparation, shards, sources
from yocobit.training.config import DataConfig, SourceConfig
from yocobit.training.corpus import IGNORED, Corpus, prepare
from yocobit.training.seen import Seen
from yocobit.training.shards import Tokens
from yocobit.training.tokenizer import END, end_token, load_tokenizer, train_tokenizer

TEXT = "def f(x):\n    return x + 1\n\n" * 40


@pytest.fixture
def config(tmp_path) -> DataConfig:
    (tmp_path / "train.txt").write_text(TEXT)
    (tmp_path / "valid.txt").write_text("def g(y):\n    return y\n")
    return DataConfig(
        train=(str(tmp_path / "train.txt"),),
        valid=(str(tmp_path / "valid.txt"),),
        vocab_size=270,
        context=8,
    )


@pytest.fixture
def corpus(config, tmp_path) -> Corpus:
    return prepare(config, 270, tmp_path / "data")


# ---- tokenizer ----


@pytest.mark.parametrize(
    "text",
    [
        bytes(range(256)).decode("latin-1"),
        random.Random(0).randbytes(5000).decode("latin-1"),
        "".join(map(chr, random.Random(1).sample(range(0x20, 0xD800), 3000))),
        "\U0001f600 e\u0301 \u0000 \u2028 \ufeff",
        "\tif x:\r\n        y\n\n\n    \n   z   \r\r\n",
        " ",
        "\n",
        f"a{END}b",
        "x" * 10_000,
    ],
)
def test_tokenizer_gives_back_every_text(text):
    tokenizer = train_tokenizer([TEXT], 300)

    tokens = tokenizer.encode(text, add_special_tokens=False).ids

    assert tokenizer.decode(tokens) == text


def test_text_that_spells_the_end_token_does_not_contain_it(tmp_path):
    trained = train_tokenizer([TEXT], 300)
    (tmp_path / "tokenizer.json").write_text(trained.to_str())
    loaded = load_tokenizer(tmp_path / "tokenizer.json")

    for tokenizer in (trained, loaded):
        assert end_token(tokenizer) not in tokenizer.encode(f"a{END}b").ids


def test_end_is_token_zero_and_the_vocabulary_has_the_size_asked_for():
    tokenizer = train_tokenizer([TEXT], 270)

    assert end_token(tokenizer) == 0
    assert tokenizer.get_vocab_size() == 270


def test_training_a_tokenizer_twice_gives_the_same():
    texts = [TEXT, "class A:\n    pass\n" * 9]

    assert train_tokenizer(texts, 300).to_str() == train_tokenizer(texts, 300).to_str()


# ---- corpus ----


def read(tokens: Tokens) -> list[int]:
    return tokens.read(0, len(tokens)).tolist()


def write_jsonl(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_shard_is_the_documents_each_followed_by_the_end_token(config, tmp_path):
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
    for begin, end in ((0, 0), (49, 50), (50, 51), (10, 170), (len(whole) - 1, len(whole))):
        assert train.read(begin, end).tolist() == whole[begin:end]


def test_targets_are_inputs_one_position_later_and_the_end_token_resets(corpus):
    batch = corpus.batch(seed=0, first=0, size=50, context=8)

    assert batch.inputs.shape == batch.targets.shape == batch.resets.shape == (50, 8)
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert torch.equal(batch.resets, batch.inputs == 0)
    assert batch.resets.any()


def test_pass_predicts_every_token_from_the_one_before_and_the_first_from_an_end(corpus):
    tokens = read(corpus.train[0])
    pairs = Counter(zip([0, *tokens], tokens, strict=False))
    seen = Counter()
    n_windows = len(tokens) // 8

    batch = corpus.batch(seed=0, first=0, size=n_windows, context=8)
    for row in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        seen.update(zip(*row, strict=True))

    assert seen <= pairs
    assert (pairs - seen).total() == len(tokens) - 8 * n_windows
    assert (0, tokens[0]) in seen


def test_batch_is_a_function_of_its_arguments_alone(corpus):
    whole = corpus.batch(seed=3, first=0, size=600, context=8).inputs

    corpus.batch(seed=4, first=77, size=3, context=8)
    again = corpus.batch(seed=3, first=100, size=500, context=8).inputs

    assert torch.equal(whole[100:], again)


def test_one_window_is_enough_text(tmp_path):
    (tmp_path / "t.txt").write_text("abcdefg")  # 7 bytes and the end: 8 tokens
    path = str(tmp_path / "t.txt")
    config = DataConfig(train=(path,), valid=(path,), vocab_size=257, context=8)

    corpus = prepare(config, 257, tmp_path / "data")

    batch = corpus.batch(seed=0, first=5, size=2, context=8)
    assert batch.inputs.shape == (2, 8)
    assert sorted(batch.targets[0].tolist()) == sorted(read(corpus.train[0]))


# ---- several sources ----


@pytest.fixture
def mixture(tmp_path) -> DataConfig:
    """Two sources that share no word, with weights 3 and 1."""
    for name, word in (("a", "one "), ("b", "two ")):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": word * 20}] * 20)
    (tmp_path / "valid.txt").write_text("one two")
    return DataConfig(
        train=(
            SourceConfig(path=str(tmp_path / "a.jsonl"), weight=3.0),
            SourceConfig(path=str(tmp_path / "b.jsonl"), weight=1.0),
        ),
        valid=(str(tmp_path / "valid.txt"),),
        vocab_size=257,
        context=8,
    )


def test_windows_come_from_the_sources_by_weight(mixture, tmp_path):
    corpus = prepare(mixture, 257, tmp_path / "data")

    batch = corpus.batch(seed=0, first=1024, size=1024, context=8)

    texts = [corpus.tokenizer.decode(row) for row in batch.targets.tolist()]
    is_second = ["t" in text or "w" in text for text in texts]
    assert sum(is_second) == 256
    assert all(("n" in text) is not second for text, second in zip(texts, is_second, strict=True))


def test_weights_are_part_of_what_a_run_resumes_with_but_spare_the_tokens(mixture, tmp_path):
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


def test_source_shorter_than_a_window_is_named(mixture, tmp_path):
    write_jsonl(tmp_path / "b.jsonl", [{"text": "two"}])

    with pytest.raises(ConfigError, match=r"train\[1\] has 4 tokens but one window needs 8"):
        prepare(mixture, 257, tmp_path / "data")


def test_duplicates_are_left_out_and_counted_on_request(mixture, tmp_path):
    config = replace(mixture, deduplicate=True)
    write_jsonl(tmp_path / "b.jsonl", [{"text": t} for t in ("two " * 20, "one " * 20, "one two")])

    every = prepare(mixture, 257, tmp_path / "every")
    unique = prepare(config, 257, tmp_path / "unique")

    assert [tokens.n_documents for tokens in every.train] == [20, 3]
    assert [tokens.n_documents for tokens in unique.train] == [1, 1]
    assert unique.valid.n_documents == 1
    assert (every.n_duplicates, unique.n_duplicates) == (0, 21)
    assert any("left out 21 documents" in line for line in unique.describe())


def test_set_of_digests_knows_what_it_has_seen_while_it_grows():
    digests = [
        hashlib.blake2b(bytes([i % 251, i // 251]), digest_size=16).digest() for i in range(5000)
    ]
    digests[7] = bytes(16)
    seen = Seen()

    assert [seen.add(digest) for digest in digests] == [True] * 5000
    assert [seen.add(digest) for digest in digests] == [False] * 5000
    assert len(seen.slots) <= 43 * 5000


# ---- conversations ----


@pytest.fixture
def chat(tmp_path) -> DataConfig:
    messages = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so!"}]
    train = write_jsonl(tmp_path / "chat.jsonl", [{"text": "plain"}, {"messages": messages}] * 9)
    return DataConfig(train=(train,), valid=(train,), vocab_size=257, context=16)


def test_only_what_the_assistant_writes_is_a_target_in_a_conversation(chat, tmp_path):
    corpus = prepare(chat, 257, tmp_path / "data")
    (train,) = corpus.train
    tokens, is_scored = train.read(0, len(train)), train.is_scored(0, len(train))

    assert corpus.tokenizer.decode(tokens[is_scored].tolist()) == "plainso!\n<|end|>" * 9
    assert train.n_scored == is_scored.sum() == 9 * (len("plain") + 1 + len("so!\n<|end|>"))
    assert train.n_bytes == 9 * len("plainso!\n<|end|>")
    batch = corpus.batch(seed=0, first=0, size=len(train) // 16, context=16)
    learnt = batch.targets[batch.targets != IGNORED]
    assert Counter(learnt.tolist()) <= Counter(tokens[is_scored].tolist())
    assert 0 < len(learnt) < batch.targets.numel()


def test_mask_is_stored_beside_the_shards_that_need_it(chat, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 12)  # 6 tokens: "plain" and its end

    corpus = prepare(chat, 257, tmp_path / "data")

    assert not (tmp_path / "data" / "train-0-00000.mask").exists()
    assert (tmp_path / "data" / "train-0-00001.mask").read_bytes() == bytes(6)
    is_scored = corpus.train[0].is_scored(0, len(corpus.train[0]))
    assert is_scored.sum() == corpus.train[0].n_scored


def test_text_without_conversations_has_no_mask_and_no_template(corpus, chat, tmp_path):
    assert corpus.chat_template is None
    assert list((tmp_path / "data").glob("*.mask")) == []
    assert prepare(chat, 257, tmp_path / "chat").chat_template is not None


# ---- preparation ----


def test_valid_every_splits_by_name_whatever_the_other_files_are(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"text {i} " * 5)
    config = DataConfig(train=(str(tmp_path),), valid_every=4, vocab_size=257, context=4)
    before = prepare(config, 257, tmp_path / "data")
    held_out = before.tokenizer.decode(read(before.valid))
    (tmp_path / "aaa.txt").write_text("first now " * 5)

    after = prepare(config, 257, tmp_path / "data")

    # 60 names in one of 4 parts: 15 expected, 3.4 standard deviation.
    assert 5 <= held_out.count("text") / 5 <= 25
    assert held_out in after.tokenizer.decode(read(after.valid))


def test_prepare_reuses_what_it_made_until_the_text_changes(config, tmp_path):
    directory = tmp_path / "data"
    first = prepare(config, 270, directory)
    made = (directory / "train-0-00000.bin").stat().st_mtime_ns

    again = prepare(config, 270, directory)
    unchanged = (directory / "train-0-00000.bin").stat().st_mtime_ns
    Path(config.train[0]).write_text(TEXT + "# more\n")
    changed = prepare(config, 270, directory)

    assert unchanged == made
    assert again.sha256 == first.sha256
    assert changed.sha256 != first.sha256
    assert changed.train[0].n_bytes == first.train[0].n_bytes + 7


def test_files_that_did_not_change_are_not_read_again(config, tmp_path, monkeypatch):
    for path in (config.train[0], config.valid[0]):
        os.utime(path, (1, 1))
    first = prepare(config, 270, tmp_path / "data")
    monkeypatch.setattr(sources, "_sha256", None)

    assert prepare(config, 270, tmp_path / "data").sha256 == first.sha256


def test_files_that_moved_or_were_touched_are_the_same_text(config, tmp_path):
    first = prepare(config, 270, tmp_path / "data")
    made = (tmp_path / "data" / "train-0-00000.bin").stat().st_mtime_ns
    (tmp_path / "moved").mkdir()
    moved = Path(config.train[0]).rename(tmp_path / "moved" / "train.txt")
    os.utime(moved, (1, 1))

    again = prepare(replace(config, train=(str(moved),)), 270, tmp_path / "data")

    assert again.sha256 == first.sha256
    assert (tmp_path / "data" / "train-0-00000.bin").stat().st_mtime_ns == made


def test_file_that_changes_while_it_is_read_is_named(config, tmp_path, monkeypatch):
    run = preparation._Tokenising.run

    def changing(self):
        Path(config.train[0]).write_text("other")
        return run(self)

    monkeypatch.setattr(preparation._Tokenising, "run", changing)

    with pytest.raises(ConfigError, match=r"train\.txt: has changed while it was read"):
        prepare(config, 270, tmp_path / "data")
    assert not (tmp_path / "data" / "index.json").exists()


def test_preparation_that_was_killed_is_made_again(config, tmp_path, monkeypatch):
    whole = read(prepare(config, 270, tmp_path / "whole").train[0])
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            preparation, "check_unchanged", lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        prepare(config, 270, tmp_path / "data")
    assert len(list((tmp_path / "data").glob("train-*"))) > 5
    monkeypatch.undo()

    corpus = prepare(config, 270, tmp_path / "data")

    assert read(corpus.train[0]) == whole
    assert len(list((tmp_path / "data").glob("train-*"))) == 1


def test_shards_do_not_depend_on_threads_or_on_how_text_is_batched(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": f"{TEXT} {i}"} for i in range(40)])
    (tmp_path / "tokenizer.json").write_text(train_tokenizer([TEXT], 270).to_str())
    tokenizer = str(tmp_path / "tokenizer.json")
    config = DataConfig(train=(path,), valid_every=3, tokenizer=tokenizer)
    made = [prepare(config, 1, tmp_path / "data")]
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    made.append(prepare(config, 1, tmp_path / "serial"))
    monkeypatch.setattr(preparation, "_BATCH_LENGTH", 1)
    made.append(prepare(config, 1, tmp_path / "single"))

    assert len(made[0].valid) > 1000
    assert read(made[0].train[0]) == read(made[1].train[0]) == read(made[2].train[0])
    assert read(made[0].valid) == read(made[1].valid) == read(made[2].valid)


def test_preparing_a_large_corpus_takes_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_BATCH_LENGTH", 1 << 16)
    with (tmp_path / "big.jsonl").open("w") as file:
        for i in range(2500):
            file.write(json.dumps({"text": f"{i} " + "some words " * 100}) + "\n")
    (tmp_path / "tokenizer.json").write_text(train_tokenizer(["some words " * 9], 280).to_str())
    config = DataConfig(
        train=(str(tmp_path / "big.jsonl"),),
        valid_every=20,
        tokenizer=str(tmp_path / "tokenizer.json"),
    )

    tracemalloc.start()
    corpus = prepare(config, 1, tmp_path / "data")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert corpus.train[0].n_bytes > 2_500_000
    assert peak < 1_200_000


def test_tokenizer_is_trained_on_a_bounded_part_of_every_file_by_weight(
    mixture, tmp_path, monkeypatch
):
    taken = []

    def noting(texts, vocab_size):
        taken.extend(texts)
        return train_tokenizer(taken, vocab_size)

    monkeypatch.setattr(preparation, "SAMPLE_LENGTH", 1600)
    monkeypatch.setattr(preparation, "train_tokenizer", noting)
    prepare(mixture, 257, tmp_path / "data")

    # Whole texts of 80 characters: 1200 and 400 characters are 15 and 5 of them.
    assert Counter(text[:3] for text in taken) == {"one": 15, "two": 5}


def test_listing_thousands_of_files_reads_only_what_is_asked_for(tmp_path):
    for i in range(2000):
        (tmp_path / f"{i:05d}.txt").write_text("x")

    files = sources.list_files(SourceConfig(path=str(tmp_path)), ("0000*", "skipped"))

    assert len(files) == 1990


@pytest.mark.parametrize("damage", ["truncated", "no index", "index of another kind"])
def test_prepare_makes_again_what_is_not_whole(config, tmp_path, damage):
    directory = tmp_path / "data"
    whole = read(prepare(config, 270, directory).train[0])
    if damage == "truncated":
        (directory / "train-0-00000.bin").write_bytes(b"\0\0")
    else:
        (directory / "index.json").write_text("{" if damage == "no index" else "[]")

    assert read(prepare(config, 270, directory).train[0]) == whole


def test_given_tokenizer_is_used_as_it_is(config, tmp_path):
    tokenizer = train_tokenizer(["zzz " * 50], 260)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    config = DataConfig(
        train=config.train,
        valid=config.valid,
        tokenizer=str(tmp_path / "tokenizer.json"),
        context=8,
    )

    corpus = prepare(config, 1, tmp_path / "data")

    assert json.loads(corpus.tokenizer.to_str()) == json.loads(tokenizer.to_str())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "tokenizer.json: no such file"),
        ("{}", "tokenizer.json: is not a tokenizer.json"),
    ],
)
def test_tokenizer_that_cannot_be_read_is_named(config, tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    config = DataConfig(train=config.train, valid=config.valid, tokenizer=str(path), context=8)

    with pytest.raises(ConfigError, match=message):
        prepare(config, 1, tmp_path / "data")


def test_tokenizer_without_end_token_is_refused(config, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(train_tokenizer([TEXT], 260).to_str().replace(END, "<|other|>"))
    config = DataConfig(train=config.train, valid=config.valid, tokenizer=str(path), context=8)

    with pytest.raises(ConfigError, match=r"has no token <\|endoftext\|>"):
        prepare(config, 1, tmp_path / "data")


@pytest.mark.parametrize(
    ("split", "message"),
    [("train", r"no text for train\[0\]"), ("valid", "no text for valid")],
)
def test_empty_split_is_named(config, tmp_path, split, message):
    Path(getattr(config, split)[0]).write_text("")

    with pytest.raises(ConfigError, match=message):
        prepare(config, 270, tmp_path / "data")


def test_empty_split_by_valid_every_says_what_to_lower(tmp_path):
    (tmp_path / "only.txt").write_text(TEXT)
    config = DataConfig(train=(str(tmp_path),), valid_every=1000, vocab_size=270, context=8)

    with pytest.raises(ConfigError, match=r"no text for valid; lower data.valid_every"):
        prepare(config, 270, tmp_path / "data")


def test_text_shorter_than_one_window_is_refused_with_both_numbers(config, tmp_path):
    Path(config.train[0]).write_text("abc")

    with pytest.raises(ConfigError, match=r"has 4 tokens but one window needs 8"):
        prepare(config, 257, tmp_path / "data")
