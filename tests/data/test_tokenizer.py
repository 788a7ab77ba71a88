"""The tokenizer is lossless; end tokens, and tokenizers trained elsewhere."""

import json
import random

import corpora
import pytest
from corpora import TEXT
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from yocobit.config import ConfigError
from yocobit.data.config import DataConfig
from yocobit.data.corpus import prepare
from yocobit.data.tokenizer import (
    END,
    _without_long_words,
    end_token,
    fingerprint,
    load_tokenizer,
    train_tokenizer,
)
from yocobit.text import TextEncoder


@pytest.fixture
def config(tmp_path) -> DataConfig:
    return corpora.plain(tmp_path)


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
def test_tokenizer_is_lossless(text):
    tokenizer = train_tokenizer([TEXT], 300)

    tokens = tokenizer.encode(text, add_special_tokens=False).ids

    assert tokenizer.decode(tokens) == text


def test_end_token_spelled_in_a_text_is_ordinary_tokens(tmp_path):
    trained = train_tokenizer([TEXT], 300)
    (tmp_path / "tokenizer.json").write_text(trained.to_str())
    loaded = load_tokenizer(tmp_path / "tokenizer.json")

    for tokenizer in (trained, loaded):
        assert end_token(tokenizer) not in tokenizer.encode(f"a{END}b").ids


def test_end_is_token_zero_and_the_vocabulary_has_the_requested_size():
    tokenizer = train_tokenizer([TEXT], 270)

    assert end_token(tokenizer) == 0
    assert tokenizer.get_vocab_size() == 270


def test_training_a_tokenizer_twice_gives_the_same():
    texts = [TEXT, "class A:\n    pass\n" * 9]

    assert train_tokenizer(texts, 300).to_str() == train_tokenizer(texts, 300).to_str()


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
def test_unreadable_tokenizer_is_refused(config, tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    config = DataConfig(train=config.train, valid=config.valid, tokenizer=str(path), context=8)

    with pytest.raises(ConfigError, match=message):
        prepare(config, 1, tmp_path / "data")


@pytest.mark.parametrize("eos", ["</s>", {"content": "</s>", "special": True}])
def test_end_token_of_another_name_is_the_eos_token_of_the_tokenizer_config(tmp_path, eos):
    trained = train_tokenizer([TEXT], 270)
    path = tmp_path / "tokenizer.json"
    path.write_text(trained.to_str().replace(END, "</s>"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))

    loaded = load_tokenizer(path)

    assert loaded.get_vocab() == trained.get_vocab()
    assert loaded.encode(TEXT).ids == trained.encode(TEXT).ids
    assert end_token(loaded) not in loaded.encode(f"a</s>{END}b").ids


def test_end_token_of_a_packed_model_is_the_smallest_of_its_generation_config(tmp_path):
    trained = train_tokenizer([TEXT], 270)
    path = tmp_path / "tokenizer.json"
    path.write_text(trained.to_str().replace(END, "</s>"))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 0]}')

    loaded = load_tokenizer(path)

    assert end_token(loaded) == end_token(trained) == 0
    assert loaded.get_vocab() == trained.get_vocab()


def test_end_token_of_a_unigram_tokenizer_is_renamed(tmp_path):
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0), ("b", -1.5)]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=0))
    unigram.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')

    loaded = load_tokenizer(tmp_path / "tokenizer.json")

    assert (end_token(loaded), loaded.encode("ab").ids) == (1, [2, 3])


def byte_level(eos: str, unknown: str | None = None, merges: tuple = ()) -> Tokenizer:
    names = [eos, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocab = {name: i for i, name in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(models.BPE(vocab, list(merges), unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("eos", ["</s>", END])
@pytest.mark.parametrize("role", ["not added", "not special", "unknown", "merged"])
def test_end_token_becomes_special_whatever_its_tokenizer_says(tmp_path, eos, role):
    merges = [(eos[:i], eos[i]) for i in range(1, len(eos))] if role == "merged" else []
    tokenizer = byte_level(eos, eos if role == "unknown" else None, merges)
    if role == "not special":
        tokenizer.add_tokens([AddedToken(eos, special=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))

    loaded = load_tokenizer(tmp_path / "tokenizer.json")

    assert loaded.get_added_tokens_decoder()[end_token(loaded)].special
    encoder = TextEncoder(loaded, "it", [end_token(loaded)])
    for spelled in (f"a{END}b", "a</s>b"):
        assert end_token(loaded) not in encoder.encode(spelled)
        assert loaded.decode(encoder.encode(spelled)) == spelled


def test_fingerprint_of_a_tokenizer_with_a_special_end_token_is_kept(tmp_path):
    """A run is resumed with the corpus of its tokenizer."""
    fields = json.loads(train_tokenizer([TEXT], 270).to_str().replace(END, "</s>"))
    fields["added_tokens"][0] |= {"rstrip": True, "normalized": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')

    loaded = load_tokenizer(tmp_path / "tokenizer.json")

    expected = Tokenizer.from_str(json.dumps(fields).replace("</s>", END))
    assert fingerprint(loaded) == fingerprint(expected)


@pytest.mark.parametrize(
    "config_json", ["[]", "{", '{"eos_token": "</other>"}', '{"eos_token": 2}']
)
def test_eos_token_missing_from_the_vocabulary_is_refused(tmp_path, config_json):
    path = tmp_path / "tokenizer.json"
    path.write_text(train_tokenizer([TEXT], 260).to_str().replace(END, "</s>"))
    (tmp_path / "tokenizer_config.json").write_text(config_json)

    with pytest.raises(ConfigError, match=r"tokenizer_config.json: cannot be read|has no token"):
        load_tokenizer(path)


def test_tokenizer_without_end_token_is_refused(config, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(train_tokenizer([TEXT], 260).to_str().replace(END, "<|other|>"))
    config = DataConfig(train=config.train, valid=config.valid, tokenizer=str(path), context=8)

    with pytest.raises(ConfigError, match=r"has no token <\|endoftext\|>"):
        prepare(config, 1, tmp_path / "data")


def test_words_of_more_than_64_letters_are_cut_and_other_texts_are_not():
    """The time of a merge is the length of the words that have it."""
    text = "é" * 200 + " 12" + "x" * 64 + "_" * 99

    pieces = [*_without_long_words([text, "plain text", ""])]

    assert "".join(pieces) == text + "plain text"
    assert pieces == ["é" * 64] * 3 + ["é" * 8 + " 12" + "x" * 64 + "_" * 99, "plain text", ""]
