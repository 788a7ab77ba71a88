"""Tokenizers of GGUF files: equal to llama.cpp's and SentencePiece's; invalid ones rejected."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, trainers

from yocobit.config import ConfigError
from yocobit.importers.gguf import pre_tokenizers
from yocobit.importers.gguf.pre_tokenizers import PRE_TOKENIZERS
from yocobit.importers.gguf.text import read_text
from yocobit.text import check_lossless, parse_tokenizer
from yocobit.text.byte_decoder import _BYTES
from yocobit.text.encoder import TextEncoder

FILE = Path("model.gguf")
PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BLANK = "▁"
EXTRACTS = json.loads(
    (Path(__file__).parent / "data" / "gguf_vocabularies.json").read_text("utf-8")
)


def convert(metadata, vocab_size=1 << 20):
    files, warnings = read_text(metadata, FILE, vocab_size)
    assert files.tokenizer is not None
    return files, parse_tokenizer(files.tokenizer.decode(), FILE), warnings


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def metadata_of(extract):
    arrays = {"tokens": extract["tokens"], "token_type": np.array(extract["types"], np.int32)}
    if extract["scores"]:
        arrays["scores"] = np.array(extract["scores"], np.float32)
    if extract["merges"]:
        arrays["merges"] = extract["merges"]
    return extract["metadata"] | {PREFIX + key: value for key, value in arrays.items()}


# --- llama.cpp's vocabularies ---


@pytest.mark.parametrize("name", EXTRACTS)
def test_ids_equal_those_of_llama_cpp(name):
    extract = EXTRACTS[name]
    _, tokenizer, warnings = convert(metadata_of(extract))
    assert not warnings
    assert len(extract["cases"]) >= 15
    for text, expected in extract["cases"]:
        if name != "qwen35" or unicodedata.is_normalized("NFC", text):
            assert [extract["ids"][i] for i in encode(tokenizer, text)] == expected, text


def test_qwen_composes_characters_first():
    # As its own tokenizer.json; llama.cpp has no normalizer, and the letter and its accent apart.
    extract = EXTRACTS["qwen35"]
    (apart,) = (text for text, _ in extract["cases"] if not unicodedata.is_normalized("NFC", text))
    _, tokenizer, _ = convert(metadata_of(extract))
    assert encode(tokenizer, apart) == encode(tokenizer, unicodedata.normalize("NFC", apart))


@pytest.mark.parametrize("name", EXTRACTS)
def test_decoding_returns_the_text(name):
    _, tokenizer, _ = convert(metadata_of(EXTRACTS[name]))
    for text, _ in EXTRACTS[name]["cases"]:
        if name not in ("qwen2", "qwen35", "mpt") or unicodedata.is_normalized("NFC", text):
            assert tokenizer.decode(encode(tokenizer, text), skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("name", "bos", "ends"),
    [
        ("llama-bpe", "<|begin_of_text|>", ["<|end_of_text|>", "<|eot_id|>"]),
        ("qwen2", None, ["<|endoftext|>", "<|im_end|>"]),
        ("llama-spm", "<s>", ["</s>"]),
        ("gpt-2", None, ["<|endoftext|>"]),
        ("deepseek-llm", "<｜begin▁of▁sentence｜>", ["<｜end▁of▁sentence｜>"]),
    ],
)
def test_start_and_end_tokens_are_those_of_llama_cpp(name, bos, ends):
    files, tokenizer, _ = convert(metadata_of(EXTRACTS[name]))
    generation = files.generation
    assert [tokenizer.id_to_token(i) for i in generation["eos_token_id"]] == ends
    start = generation.get("bos_token_id")
    assert (start if start is None else tokenizer.id_to_token(start)) == bos


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pre_tokenizer_splits_and_keeps_a_text(name):
    metadata = byte_level() | {f"{PREFIX}pre": name}
    _, tokenizer, warnings = convert(metadata)
    text = "Hello, you'LL see\r\n 12345 日本 é\t//x  \n\n"
    assert tokenizer.decode(encode(tokenizer, text)) == text
    assert bool(warnings) == (name == "default")
    TextEncoder(tokenizer, "tokenizer")  # accepts it


@pytest.mark.parametrize("name", ["qwen2", "qwen35", "gpt-neox", "olmo"])
def test_characters_are_composed_where_the_models_own_tokenizer_does_so(name):
    _, tokenizer, _ = convert(byte_level(pre=name))
    assert encode(tokenizer, "e\u0301") == encode(tokenizer, "\xe9")


def test_a_pre_tokenizer_decides_how_digits_are_split():
    merges = ["1 2", "12 3", "123 4"]
    ids = {}
    for name in ("gpt-2", "qwen2", "llama-bpe"):
        _, tokenizer, _ = convert(byte_level(merges) | {f"{PREFIX}pre": name})
        ids[name] = tokenizer.encode("1234", add_special_tokens=False).tokens
    assert ids == {"gpt-2": ["1234"], "qwen2": [*"1234"], "llama-bpe": ["123", "4"]}


def test_a_known_vocabulary_has_its_pre_tokenizer_without_a_name(monkeypatch):
    merges = ["1 2", "12 3", "123 4"]
    digest = hashlib.sha256("\n".join(merges).encode()).hexdigest()
    monkeypatch.setitem(pre_tokenizers._KNOWN_MERGES, digest, "llama-bpe")
    for extra in ({}, {f"{PREFIX}pre": "default"}):
        _, tokenizer, warnings = convert(byte_level(merges) | extra)
        assert tokenizer.encode("1234", add_special_tokens=False).tokens == ["123", "4"]
        assert not warnings


def test_an_unnamed_pre_tokenizer_is_llama_cpps_default_and_a_warning():
    _, _, (warning,) = convert(byte_level())
    assert "does not name its pre-tokenizer" in warning
    assert "--tokenizer DIR" in warning


def test_a_whole_word_is_a_token_without_merges_where_llama3_does_so():
    metadata = byte_level(extra=["word"])
    for name, expected in (("llama-bpe", ["word"]), ("qwen2", [*"word"])):
        _, tokenizer, _ = convert(metadata | {f"{PREFIX}pre": name})
        assert tokenizer.encode("word", add_special_tokens=False).tokens == expected


def test_duplicate_merges_count_once():
    metadata = byte_level(["a b", "b c", "a b"]) | {f"{PREFIX}pre": "gpt-2"}
    _, tokenizer, _ = convert(metadata)
    assert tokenizer.encode("abc", add_special_tokens=False).tokens == ["ab", "c"]


def test_unassigned_characters_are_lost_as_in_the_own_tokenizer_if_a_byte_has_no_token():
    tokens, types = [name for name, byte in _BYTES.items() if byte not in (0xF1, 0xF2)], 254 * [1]
    metadata = byte_level() | {f"{PREFIX}pre": "smollm", f"{PREFIX}tokens": tokens}
    _, tokenizer, _ = convert(metadata | {f"{PREFIX}token_type": np.array(types)})
    continuation = next(name for name, byte in _BYTES.items() if byte == 0x80)
    ids = tokenizer.encode("a\U00040000b", add_special_tokens=False)
    assert ids.tokens == ["a", continuation, continuation, continuation, "b"]
    assert check_lossless(tokenizer, "it") == [
        "it drops characters that texts rarely have: U+40000 to U+7FFFF (unassigned), "
        "U+80000 to U+BFFFF (unassigned)"
    ]
    TextEncoder(tokenizer, "tokenizer")  # accepts it


# --- SentencePiece ---


def sentencepiece_ids(text, scores, prefix=True):
    """Merge the neighbours with the best score, of equal ones the leftmost: SentencePiece's BPE."""
    ids = {token: i for i, token in enumerate(scores)}
    text = text.replace(" ", BLANK)
    pieces = list(BLANK + text if prefix and text else text)
    while True:
        candidates = [
            (-scores[left + right], i)
            for i, (left, right) in enumerate(pairwise(pieces))
            if left + right in scores
        ]
        if not candidates:
            return [ids[piece] for piece in pieces]
        _, i = min(candidates)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def learned_scores(rng):
    """Return a vocabulary of random words as SentencePiece learns it: scores are ranks."""
    words = ["".join(rng.choice("abc") for _ in range(rng.randint(1, 7))) for _ in range(300)]
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=90, show_progress=False, min_frequency=1)
    tokenizer.train_from_iterator([BLANK + word for word in words], trainer)
    vocab = tokenizer.get_vocab()
    ranked = sorted((token for token in vocab if len(token) > 1), key=vocab.__getitem__)
    return {token: -float(i) for i, token in enumerate([*ranked, *"abc", BLANK])}


def sentencepiece(scores, types=None, **fields):
    tokens = list(scores)
    return {
        f"{PREFIX}model": "llama",
        f"{PREFIX}tokens": tokens,
        f"{PREFIX}scores": np.array([scores[t] for t in tokens], np.float32),
        f"{PREFIX}token_type": np.array([(types or {}).get(t, NORMAL) for t in tokens], np.int32),
        f"{PREFIX}bos_token_id": 0,
        f"{PREFIX}eos_token_id": 0,
        f"{PREFIX}unknown_token_id": 0,
        **{PREFIX + key: value for key, value in fields.items()},
    }


@pytest.mark.parametrize("seed", range(5))
def test_merges_from_scores_equal_sentencepiece(seed):
    rng = random.Random(seed)
    scores = learned_scores(rng)
    _, tokenizer, _ = convert(sentencepiece(scores))
    for _ in range(200):
        text = "".join(rng.choice("abc ") for _ in range(rng.randint(0, 40)))
        assert encode(tokenizer, text) == sentencepiece_ids(text, scores), text


def test_runs_of_one_score_grow_from_the_left_as_in_sentencepiece():
    # Llama's runs of 2 to 16 blanks have one score.
    scores = {BLANK * n: -1e9 for n in range(2, 17)} | {BLANK: -5.0, "a": -6.0, BLANK + "a": -1.0}
    _, tokenizer, _ = convert(sentencepiece(scores))
    for n in range(80):
        for text in (" " * n, " " * n + "a", "a" + " " * n + "a" + " " * (n // 2)):
            assert encode(tokenizer, text) == sentencepiece_ids(text, scores), n


def test_without_a_space_prefix_nothing_is_prepended():
    scores = learned_scores(random.Random(7))
    _, tokenizer, _ = convert(sentencepiece(scores, add_space_prefix=False))
    for text in ("abc", " abc ab", "a  b"):
        assert encode(tokenizer, text) == sentencepiece_ids(text, scores, prefix=False)
        assert tokenizer.decode(encode(tokenizer, text)) == text


def test_characters_without_a_token_become_their_bytes():
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    scores = {"<unk>": 0.0} | dict.fromkeys(names, 0.0) | {BLANK: -1.0, "a": -2.0}
    types = {"<unk>": UNKNOWN} | dict.fromkeys(names, BYTE)
    _, tokenizer, _ = convert(sentencepiece(scores, types))
    assert tokenizer.encode("aé", add_special_tokens=False).tokens == [
        BLANK, "a", "<0xC3>", "<0xA9>",
    ]  # fmt: skip
    assert tokenizer.decode(encode(tokenizer, "aé<0x41>🙂")) == "aé<0x41>🙂"


def test_without_byte_tokens_characters_become_the_unknown_token():
    scores = {"<unk>": 0.0, BLANK: -1.0, "a": -2.0}
    _, tokenizer, _ = convert(sentencepiece(scores, {"<unk>": UNKNOWN}))
    assert tokenizer.encode("aé!a", add_special_tokens=False).tokens == [BLANK, "a", "<unk>", "a"]


def test_token_types_decide_which_tokens_text_can_become():
    scores = {c: -float(i) for i, c in enumerate(["<unk>", *"abcd<>", BLANK])}
    scores |= {"ab": -20.0, "cd": -21.0, "<a": -22.0, "<a>": -23.0, "bc": -24.0}
    types = {"<unk>": UNKNOWN, "cd": UNUSED, "<a>": CONTROL, "bc": USER_DEFINED}
    _, tokenizer, _ = convert(sentencepiece(scores, types))
    encoder = TextEncoder(tokenizer)

    def names(ids):
        return [tokenizer.id_to_token(i) for i in ids]

    assert names(encode(tokenizer, "ab cd")) == [BLANK, "ab", BLANK, "c", "d"]
    assert names(encode(tokenizer, "d<a>ab")) == [BLANK, "d", "<a>", BLANK, "ab"]
    assert names(encoder.encode("d<a>ab")) == [BLANK, "d", "<a", ">", "ab"]
    assert names(encode(tokenizer, "abcd")) == [BLANK, "a", "bc", BLANK, "d"]
    assert {t.content: t.special for t in tokenizer.get_added_tokens_decoder().values()} == {
        "<unk>": True,
        "<a>": True,
        "bc": False,
    }


# --- special tokens and the chat template ---


def byte_level(merges=(), extra=(), **fields):
    formed = [merge.replace(" ", "") for merge in dict.fromkeys(merges)]
    tokens = [*_BYTES, *formed, *extra]
    return {
        f"{PREFIX}model": "gpt2",
        f"{PREFIX}tokens": tokens,
        f"{PREFIX}merges": list(merges),
        f"{PREFIX}token_type": np.array([NORMAL] * len(tokens), np.int32),
        **{PREFIX + key: value for key, value in fields.items()},
    }


def test_tokens_that_end_a_turn_are_special_in_every_type():
    metadata = byte_level(extra=["<|eot_id|>", "<s>"], pre="qwen2", bos_token_id=257)
    files, tokenizer, _ = convert(metadata)
    assert files.generation == {"eos_token_id": [256]}
    special = tokenizer.get_added_tokens_decoder()
    assert {i: each.special for i, each in special.items()} == {256: True, 257: True}


def test_a_token_that_merges_form_is_text_even_if_it_names_an_end():
    # Qwen's vocabulary has "</s>" as HTML.
    merges = ["< /", "</ s", "</s >"]
    files, tokenizer, _ = convert(byte_level(merges, pre="qwen2", padding_token_id=0))
    assert files.generation == {"pad_token_id": 0}
    assert tokenizer.get_added_tokens_decoder() == {}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pre": "llama-bpe"}, 256),
        ({"pre": "qwen2"}, None),
        ({"pre": "qwen2", "add_bos_token": True}, 256),
        ({"pre": "llama-bpe", "add_bos_token": False}, None),
    ],
)
def test_texts_start_with_the_bos_token_where_the_file_or_its_kind_says_so(fields, expected):
    files, tokenizer, _ = convert(byte_level(extra=["<s>"], bos_token_id=256, **fields))
    assert files.generation.get("bos_token_id") == expected
    ids = tokenizer.encode("a", add_special_tokens=True).ids
    assert ids == ([] if expected is None else [expected]) + encode(tokenizer, "a")


def test_an_end_token_is_added_for_other_readers_where_the_file_says_so():
    metadata = byte_level(extra=["</s>"], pre="qwen2", eos_token_id=256, add_eos_token=True)
    _, tokenizer, _ = convert(metadata)
    assert tokenizer.encode("a", add_special_tokens=True).ids == [*encode(tokenizer, "a"), 256]


def test_the_chat_template_has_the_names_of_special_tokens():
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    fields = {"pre": "qwen2", "bos_token_id": 256, "eos_token_id": 257}
    metadata = byte_level(extra=["<s>", "</s>"], **fields)
    files, _, _ = convert(metadata | {"tokenizer.chat_template": template})
    text = files.template.decode()
    assert text.endswith(template)
    assert '{% set bos_token = "<s>" %}{% set eos_token = "</s>" %}' in text
    assert convert(metadata | {"tokenizer.chat_template": ""})[0].template is None


@pytest.mark.parametrize("metadata", [{}, {f"{PREFIX}model": "none"}])
def test_a_file_without_a_tokenizer_is_a_model_without_text_and_a_warning(metadata):
    files, (warning,) = read_text(metadata, FILE, 10)
    assert files == (None, {}, None)
    assert "--tokenizer DIR" in warning


def test_empty_tokens_keep_their_ids():
    _, tokenizer, _ = convert(byte_level(extra=["", "", "x y"], pre="qwen2"))
    assert tokenizer.id_to_token(258) == "x y"


def test_padding_id_without_a_token_is_left_out():
    files, _, _ = convert(byte_level(pre="qwen2", padding_token_id=2**32 - 1))
    assert files.generation == {}


# --- invalid metadata ---

SCORES = {"<unk>": 0.0, BLANK: -1.0, "a": -2.0, "b": -3.0, "ab": -4.0}


def changed(metadata, **fields):
    return {**metadata, **{PREFIX + key: value for key, value in fields.items()}}


def without(metadata, key):
    return {name: value for name, value in metadata.items() if name != PREFIX + key}


BYTE_LEVEL = byte_level(["a b"], pre="qwen2")
PIECES = sentencepiece(SCORES, {"<unk>": UNKNOWN})
TIED = dict.fromkeys(["ab", "bc"], -9.0) | {BLANK: 0.0, "a": -1.0, "b": -2.0, "c": -3.0}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (changed(BYTE_LEVEL, model="gemma4"), "model must be 'gpt2'.* but is 'gemma4'; .*--token"),
        (changed(BYTE_LEVEL, model="t5"), "is 't5'"),
        (changed(BYTE_LEVEL, model="bert"), "is 'bert'"),
        (changed(BYTE_LEVEL, model=7), "is 7"),
        (changed(BYTE_LEVEL, model=["gpt2"]), r"is \['gpt2'\]"),
        (changed(BYTE_LEVEL, pre="new-kind"), "pre must be one of llama-bpe.*'new-kind'.*--token"),
        (changed(BYTE_LEVEL, pre=3), "pre must be a string but is 3"),
        (without(BYTE_LEVEL, "merges"), "'tokenizer.ggml.merges' is missing"),
        (without(BYTE_LEVEL, "tokens"), "'tokenizer.ggml.tokens' is missing"),
        (without(PIECES, "scores"), "'tokenizer.ggml.scores' is missing"),
        (changed(BYTE_LEVEL, tokens=[]), "1 to 300 tokens.* but has 0"),
        (changed(BYTE_LEVEL, tokens=["x"] * 301), "1 to 300 tokens.* but has 301"),
        (changed(BYTE_LEVEL, tokens=np.arange(3)), "tokens must be an array of strings"),
        (changed(BYTE_LEVEL, tokens=["a", 1]), "tokens must be an array of strings"),
        (changed(BYTE_LEVEL, tokens=["a", "b", "a"]), "tokens must differ but 0 and 2.* 'a'"),
        (changed(PIECES, tokens=["x" * 10_000_000]), "at most 1024 char.* has 10,000,000"),
        (changed(BYTE_LEVEL, merges=["ab"]), "two tokens with a space.* merge 0 is 'ab'"),
        (changed(BYTE_LEVEL, merges=["a b c"]), "merge 0 is 'a b c'"),
        (changed(BYTE_LEVEL, merges=[" b"]), "merge 0 is ' b'"),
        (changed(BYTE_LEVEL, merges=["a b", "b c"]), "merge 1, 'b c', needs the token 'bc'"),
        (changed(BYTE_LEVEL, token_type=np.array([1, 1])), "one value per token, 257, but has 2"),
        (changed(BYTE_LEVEL, token_type=[1] * 257), "token_type must be an array of numbers"),
        (changed(BYTE_LEVEL, token_type=np.full(257, 9)), "0 to 6 but is 9 for token 0"),
        (changed(BYTE_LEVEL, token_type=np.full(257, 1.0)), "must be an array of numbers"),
        (changed(PIECES, scores=np.zeros(4)), "one value per token, 5, but has 4"),
        (changed(PIECES, scores=np.full(5, np.nan)), "finite but token 0, '<unk>', has nan"),
        (changed(PIECES, scores=np.full(5, -np.inf)), "finite but token 0, '<unk>', has -inf"),
        (changed(PIECES, bos_token_id=5), "bos_token_id must be below the number of tokens, 5,"),
        (changed(PIECES, eos_token_id=-1), "eos_token_id must be below .* but is -1"),
        (changed(PIECES, eot_token_id=2**63), "eot_token_id must be below"),
        (changed(PIECES, eos_token_id="</s>"), "eos_token_id must be an integer but is '</s>'"),
        (changed(PIECES, add_bos_token=1), "add_bos_token must be a bool but is 1"),
        (changed(PIECES, add_space_prefix="yes"), "add_space_prefix must be a bool"),
        (changed(PIECES, remove_extra_whitespaces=True), "remove_extra_whitespaces must be false"),
        (sentencepiece(TIED), "scores must order the merges but 'ab' and 'bc' have the same"),
        (
            sentencepiece(TIED | {"bc": -8.0, "bca": -9.0}),
            "'bca' and 'ab' have the same|'ab' and 'bca' have the same",
        ),
        (
            sentencepiece(TIED | {"bc": -8.0, "aa": -9.0}),
            "'aa' and 'ab' have the same|'ab' and 'aa' have the same",
        ),
        (sentencepiece({"a": 0.0, "ab": -1.0}), "'ab' needs a token for its character 'b'"),
        (sentencepiece({"<0x00>": 0.0, "a": -1.0}, {"<0x00>": BYTE}), "'<0x01>' is missing"),
        (sentencepiece({"<x>": 0.0, "a": -1.0}, {"<x>": BYTE}), "'<0x00>' is missing"),
        (BYTE_LEVEL | {"tokenizer.chat_template": 3}, "chat_template must be a string but is 3"),
        (BYTE_LEVEL | {"tokenizer.chat_template": "{% if %}"}, "is not a Jinja template"),
        (BYTE_LEVEL | {"tokenizer.chat_template": "x" * 131073}, "at most 131,072 bytes but"),
    ],
)
def test_invalid_metadata_is_one_clear_line(metadata, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_text(metadata, FILE, 300)
    line = str(error.value)
    assert line.startswith("model.gguf: ")
    assert "\n" not in line
    assert len(line) < 1000


def test_random_metadata_converts_or_is_one_line():
    rng = random.Random(3)
    odd = [None, 0, -1, 2**40, 1.5, "", "\x00", "a b", [], ["a"], [""] * 5, np.zeros(5), True]
    odd += [np.arange(5), np.zeros((5, 1)), [["a"]], b"x", "<s>", np.array(["a"] * 5)]
    for _ in range(400):
        metadata = dict(rng.choice((BYTE_LEVEL, PIECES)))
        for key in rng.sample(sorted(metadata), rng.randint(1, 2)):
            metadata[key] = rng.choice(odd)
        try:
            read_text(metadata, FILE, 300)
        except ConfigError as error:
            assert str(error).startswith("model.gguf: ")
            assert "\n" not in str(error)
