"""data.valid_every with few documents: the end of the text is held out."""

import json
from pathlib import Path

import pytest
from corpora import TEXT, read, write_jsonl

from yocobit.config import ConfigError
from yocobit.data.config import DataConfig, SourceConfig
from yocobit.data.corpus import Corpus, prepare
from yocobit.data.documents import Document, Piece
from yocobit.data.held_out import Splitter


def corpus_of(tmp_path: Path, *texts: str, every: int = 10, **settings) -> Corpus:
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    paths = tuple(str(tmp_path / f"{i}.txt") for i in range(len(texts)))
    config = DataConfig(train=paths, valid_every=every, vocab_size=270, context=8, **settings)
    return prepare(config, 270, tmp_path / "data")


def texts_of(corpus: Corpus, tokens) -> str:
    ids = [i for i in read(tokens) if i != corpus.tokenizer.token_to_id("<|endoftext|>")]
    return corpus.tokenizer.decode(ids)


@pytest.mark.parametrize("every", [2, 10, 1000, 10**9])
def test_end_of_one_file_is_held_out_and_reported(tmp_path, every):
    corpus = corpus_of(tmp_path, TEXT, every=every)
    train, valid = (texts_of(corpus, tokens) for tokens in (corpus.train[0], corpus.valid))

    assert train + valid == TEXT
    assert train.endswith("\n")
    assert 0 < len(valid) <= len(TEXT) // min(every, 10)
    assert "too few documents to hold out whole ones, so the last" in "\n".join(corpus.describe())


def test_tokenizer_is_not_trained_on_the_held_out_end(tmp_path):
    end = "zqzqzqzq " * 20
    corpus = corpus_of(tmp_path, TEXT + end, every=(len(TEXT) + len(end)) // len(end))

    assert "zqzqzqzq" not in texts_of(corpus, corpus.train[0])
    assert not any("zq" in token for token in corpus.tokenizer.get_vocab())


def test_last_of_few_files_are_held_out(tmp_path):
    corpus = corpus_of(tmp_path, TEXT, "last file\n" * 20, every=10**6)

    assert texts_of(corpus, corpus.train[0]).startswith("def f(x)")
    assert set(texts_of(corpus, corpus.valid).split()) <= {"last", "file"}


def test_single_line_is_cut_at_a_word(tmp_path):
    corpus = corpus_of(tmp_path, "some words " * 300)

    assert texts_of(corpus, corpus.valid)[0] == " "
    assert texts_of(corpus, corpus.train[0])[-1] in "se"


def test_each_source_with_a_weight_has_its_own_end(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name * 5}\n" * 200)
    sources = tuple(SourceConfig(path=str(tmp_path / f"{n}.txt"), weight=1.0) for n in "ab")
    config = DataConfig(train=sources, valid_every=10**6, vocab_size=262, context=8)

    corpus = prepare(config, 262, tmp_path / "data")

    assert len(corpus.train) == 2 and min(map(len, corpus.train)) > 8
    assert set(texts_of(corpus, corpus.valid)) == {"a", "b", "\n"}


def test_documents_are_held_out_by_name_where_there_are_enough(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": f"{i} {TEXT}"} for i in range(60)])
    config = DataConfig(train=(path,), valid_every=10, vocab_size=270, context=8)

    corpus = prepare(config, 270, tmp_path / "data")

    assert corpus.valid.n_documents + corpus.train[0].n_documents == 60
    assert len(corpus.describe()) == 2
    assert (
        "held_out_from" not in json.loads((tmp_path / "data" / "index.json").read_text())["inputs"]
    )


def test_corpus_is_prepared_again_when_another_share_is_held_out(tmp_path):
    few, many = (corpus_of(tmp_path, TEXT, every=every) for every in (10, 2))

    assert few.sha256 != many.sha256 and len(few.valid) < len(many.valid)
    assert corpus_of(tmp_path, TEXT, every=2).sha256 == many.sha256


def test_conversation_is_not_cut():
    split = Splitter(10, 15)
    conversations = [Document(name, [Piece("question ", False), Piece("answer")]) for name in "ab"]

    assert [[held for _, held in split(each)] for each in conversations] == [[False], [True]]


def test_file_without_text_is_refused_before_it_is_tokenised(tmp_path):
    with pytest.raises(ConfigError, match=r"0\.txt: no text for the train split"):
        corpus_of(tmp_path, "")
    assert not (tmp_path / "data" / "tokenizer.json").exists()
