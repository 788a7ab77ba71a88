"""Corpus and tokenizer: text in, windows of tokens out, and one clear line where text is missing.

Letters: B batch   T positions
"""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from yocobit.config import ConfigError
from yocobit.training.config import DataConfig
from yocobit.training.corpus import Corpus, prepare
from yocobit.training.documents import Documents
from yocobit.training.tokenizer import END, end_token, load_tokenizer, train_tokenizer

TEXT = "def f(x):\n    return x + 1\n\n" * 40


def documents(*sources: Path, exclude: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    found = Documents([str(source) for source in sources], exclude)
    return [(document.name, document.text) for document in found]


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


# ---- documents ----


def test_documents_are_files_sorted_by_name_and_lines_of_jsonl(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("a")
    (tmp_path / "b.md").write_text("b")
    (tmp_path / "c.jsonl").write_text('{"text": "c1"}\n\n{"text": "c2", "more": 1}\n{"text": ""}\n')
    (tmp_path / "ignored.bin").write_text("no")
    (tmp_path / "empty.txt").write_text("")

    found = documents(tmp_path)

    assert found == [("b.md", "b"), ("c.jsonl:1", "c1"), ("c.jsonl:3", "c2"), ("sub/a.py", "a")]


@pytest.mark.parametrize("pattern", ["skip", "skip/*", "*/x.py", "skip/x.py"])
def test_exclude_matches_a_name_or_any_part_of_it(tmp_path, pattern):
    (tmp_path / "skip").mkdir()
    (tmp_path / "skip" / "x.py").write_text("x")
    (tmp_path / "kept.py").write_text("k")

    assert documents(tmp_path, exclude=(pattern,)) == [("kept.py", "k")]


def test_python_file_in_another_encoding_is_skipped_and_counted(tmp_path):
    (tmp_path / "latin.py").write_bytes(b"# \xe9")

    found = Documents([str(tmp_path)])

    assert list(found) == []
    assert found.skipped == {str(tmp_path / "latin.py")}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"ab\xff", r"x\.txt: is not UTF-8 \(byte 0xff at 2\)"),
        ("x.jsonl", b'{"text": "a"}\n{', r"x\.jsonl:2: is not valid JSON"),
        ("x.jsonl", b'{"text": "\xff"}', r"x\.jsonl:1: is not valid JSON"),
        ("x.jsonl", b"[]", r"x\.jsonl:1: must be an object with a string 'text'"),
        ("x.jsonl", b'{"text": 1}', r"x\.jsonl:1: must be an object with a string 'text'"),
        ("x.pdf", b"", r"x\.pdf: must end in one of \.txt, \.md, \.py, \.jsonl"),
    ],
)
def test_document_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ConfigError, match=message):
        documents(tmp_path / name)


def test_source_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match="absent: no such file or directory"):
        documents(tmp_path / "absent")


# ---- corpus ----


def test_shard_is_the_documents_each_followed_by_the_end_token(config, tmp_path):
    (tmp_path / "second.txt").write_text("second é")
    config = DataConfig(
        train=(*config.train, str(tmp_path / "second.txt")),
        valid=config.valid,
        vocab_size=270,
        context=8,
    )

    corpus = prepare(config, 270, tmp_path / "data")

    tokens = corpus.train.tokens
    ends = np.flatnonzero(tokens == 0).tolist()
    assert len(ends) == 2 and ends[1] == len(tokens) - 1
    assert corpus.tokenizer.decode(tokens[: ends[0]].tolist()) == TEXT
    assert corpus.tokenizer.decode(tokens[ends[0] + 1 : -1].tolist()) == "second é"
    assert corpus.train.n_bytes == len((TEXT + "second é").encode())
    assert isinstance(tokens, np.memmap)


def test_targets_are_inputs_one_position_later(corpus):
    inputs, targets = corpus.batch(seed=0, first=0, size=5, context=8)

    assert inputs.shape == targets.shape == (5, 8)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_windows_of_a_pass_are_pieces_of_the_text_that_do_not_overlap(corpus):
    n_windows = (len(corpus.train.tokens) - 1) // 8 - 1
    inputs, _ = corpus.batch(seed=0, first=0, size=n_windows, context=8)
    # Positions instead of tokens: the same cuts in a text where every token is its own place.
    places = Corpus(
        corpus.tokenizer,
        type(corpus.train)(np.arange(len(corpus.train.tokens)), 1),
        corpus.valid,
        "",
        0,
    )
    cuts, _ = places.batch(seed=0, first=0, size=n_windows, context=8)

    assert len(cuts.unique()) == cuts.numel()
    assert (cuts[:, 1:] - cuts[:, :-1] == 1).all()
    assert torch.equal(inputs, torch.from_numpy(corpus.train.tokens[cuts.numpy()].astype(np.int64)))


def test_batch_is_a_function_of_its_arguments_alone(corpus):
    whole = corpus.batch(seed=3, first=0, size=600, context=8)[0]

    corpus.batch(seed=4, first=77, size=3, context=8)
    again = corpus.batch(seed=3, first=100, size=500, context=8)[0]

    assert torch.equal(whole[100:], again)


def test_passes_and_seeds_have_orders_of_their_own(corpus):
    n_windows = (len(corpus.train.tokens) - 1) // 8 - 1
    first = corpus.batch(seed=0, first=0, size=n_windows, context=8)[0]
    second = corpus.batch(seed=0, first=n_windows, size=n_windows, context=8)[0]
    other = corpus.batch(seed=1, first=0, size=n_windows, context=8)[0]

    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_one_window_is_enough_text(tmp_path):
    (tmp_path / "t.txt").write_text("abcdefgh")  # 8 bytes and the end: 9 tokens
    path = str(tmp_path / "t.txt")
    config = DataConfig(train=(path,), valid=(path,), vocab_size=257, context=8)

    corpus = prepare(config, 257, tmp_path / "data")

    inputs, targets = corpus.batch(seed=0, first=5, size=2, context=8)
    assert inputs.shape == (2, 8) and targets[:, -1].tolist() == [0, 0]


def test_valid_every_splits_by_name_whatever_the_other_files_are(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"text {i} " * 5)
    config = DataConfig(train=(str(tmp_path),), valid_every=4, vocab_size=257, context=4)
    before = prepare(config, 257, tmp_path / "data")
    held_out = before.tokenizer.decode(before.valid.tokens.tolist())
    (tmp_path / "aaa.txt").write_text("first now " * 5)

    after = prepare(config, 257, tmp_path / "data")

    # 60 names in one of 4 parts: 15 expected, 3.4 standard deviation.
    assert 5 <= held_out.count("text") / 5 <= 25
    assert held_out in after.tokenizer.decode(after.valid.tokens.tolist())


def test_prepare_reuses_what_it_made_until_the_text_changes(config, tmp_path):
    directory = tmp_path / "data"
    first = prepare(config, 270, directory)
    made = (directory / "train.bin").stat().st_mtime_ns

    again = prepare(config, 270, directory)
    unchanged = (directory / "train.bin").stat().st_mtime_ns
    Path(config.train[0]).write_text(TEXT + "# more\n")
    changed = prepare(config, 270, directory)

    assert unchanged == made
    assert again.sha256 == first.sha256
    assert changed.sha256 != first.sha256
    assert changed.train.n_bytes == first.train.n_bytes + 7


@pytest.mark.parametrize("damage", ["truncated", "no index"])
def test_prepare_makes_again_what_is_not_whole(config, tmp_path, damage):
    directory = tmp_path / "data"
    whole = np.array(prepare(config, 270, directory).train.tokens)
    if damage == "truncated":
        (directory / "train.bin").write_bytes(b"\0\0")
    else:
        (directory / "index.json").write_text("{")

    assert np.array_equal(prepare(config, 270, directory).train.tokens, whole)


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
    [("train", "no text for the train split"), ("valid", "no text for the valid split")],
)
def test_empty_split_is_named(config, tmp_path, split, message):
    Path(getattr(config, split)[0]).write_text("")

    with pytest.raises(ConfigError, match=message):
        prepare(config, 270, tmp_path / "data")


def test_empty_split_by_valid_every_says_what_to_lower(tmp_path):
    (tmp_path / "only.txt").write_text(TEXT)
    config = DataConfig(train=(str(tmp_path),), valid_every=1000, vocab_size=270, context=8)

    with pytest.raises(ConfigError, match=r"no text for the valid split; lower data.valid_every"):
        prepare(config, 270, tmp_path / "data")


def test_text_shorter_than_one_window_is_refused_with_both_numbers(config, tmp_path):
    Path(config.train[0]).write_text("abc")

    with pytest.raises(ConfigError, match=r"has 4 tokens but one window needs 9"):
        prepare(config, 257, tmp_path / "data")
