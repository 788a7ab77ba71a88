"""SentencePiece tokenizers in exported GGUF files: the ids are those of llama.cpp."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from exported_models import random_model
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import generate_merges

from yocobit.config import ConfigError
from yocobit.exporters import export_gguf
from yocobit.exporters.gguf.tokenizer import tokenizer_metadata
from yocobit.importers import import_model
from yocobit.importers.gguf.text import read_text
from yocobit.text import GenerationConfig

FILE = Path("tokenizer.json")
PREFIX = "tokenizer.ggml."
DATA = Path(__file__).parents[1] / "importers/data/gguf_vocabularies.json"
EXTRACTS = {
    name: extract
    for name, extract in json.loads(DATA.read_text("utf-8")).items()
    if extract["scores"]
}
BLANK = "▁"
RUNS = [c * n for c in " !p" for n in range(1, 12)]


def metadata_of(extract):
    arrays = {
        "tokens": extract["tokens"],
        "token_type": np.array(extract["types"], np.int32),
        "scores": np.array(extract["scores"], np.float32),
    }
    return extract["metadata"] | {PREFIX + key: value for key, value in arrays.items()}


def definition(metadata):
    """The tokenizer.json of a vocabulary in GGUF."""
    files, _ = read_text(metadata, FILE, 1 << 20)
    return json.loads(files.tokenizer)


def exported(fields):
    size = len(fields["model"]["vocab"])
    return tokenizer_metadata(fields, GenerationConfig(bos_token_id=1), size, FILE)


def encode(fields, text):
    return Tokenizer.from_str(json.dumps(fields)).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", EXTRACTS)
def test_ids_of_an_export_are_those_of_llama_cpp(name):
    extract = EXTRACTS[name]

    metadata = exported(definition(metadata_of(extract)))

    again = definition(metadata)
    for text, expected in extract["cases"]:
        assert [extract["ids"][i] for i in encode(again, text)] == expected, text
    own = metadata_of(extract)
    for key in ("model", "tokens", "add_bos_token", "bos_token_id", "unknown_token_id"):
        assert metadata[PREFIX + key] == own[PREFIX + key]
    # Phi-3's file has the unknown token, the first, as a control token.
    types = own[PREFIX + "token_type"].tolist()
    assert metadata[PREFIX + "token_type"].tolist() == [2, *types[1:]]


@pytest.mark.parametrize("name", EXTRACTS)
def test_scores_have_the_order_of_those_of_llama_cpp(name):
    own = metadata_of(EXTRACTS[name])
    fields = definition(own)

    metadata = exported(fields)

    formed = {left + right for left, right in fields["model"]["merges"]}
    ids = [i for i, token in enumerate(own[PREFIX + "tokens"]) if token in formed]
    pairs = sorted(zip(own[PREFIX + "scores"][ids], metadata[PREFIX + "scores"][ids], strict=True))
    for (own_low, low), (own_high, high) in pairwise(pairs):
        assert low < high or (own_low == own_high and low == high)


def legacy(fields, scores):
    """Merges as in tokenizer.json files of 2023: the splits of a token are ordered by ids."""
    vocab = fields["model"]["vocab"]
    by_score = sorted(scores, key=lambda token: -scores[token])
    splits = ([(t[:i], t[i:]) for i in range(1, len(t))] for t in by_score)
    known = ([each for each in every if set(each) <= vocab.keys()] for every in splits)
    return [m for each in known for m in sorted(each, key=lambda m: (vocab[m[0]], vocab[m[1]]))]


@pytest.mark.parametrize("is_legacy", [False, True])
def test_merges_of_transformers_converter_are_exported(is_legacy):
    extract = EXTRACTS["llama-spm"]
    fields = definition(metadata_of(extract))
    scores = {t: s for t, s, k in zip(*(extract[n] for n in ("tokens", "scores", "types")),
                                      strict=True) if k == 1}  # fmt: skip
    special = set(extract["tokens"]) - scores.keys()
    merges = generate_merges(fields["model"]["vocab"], scores, special)
    fields["model"]["merges"] = legacy(fields, scores) if is_legacy else merges

    again = definition(exported(fields))

    for text in (*(text for text, _ in extract["cases"]), *RUNS):
        assert encode(again, text) == encode(fields, text), text


def test_import_of_an_export_has_the_same_tokenizer(tmp_path):
    fields = definition(metadata_of(EXTRACTS["llama-spm"]))
    generation = {"bos_token_id": 1, "eos_token_id": [2]}
    template = b"{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    text = (json.dumps(fields).encode(), generation, template)
    model = random_model(tmp_path / "model", text=text, vocab_size=440)

    notes = export_gguf(model, tmp_path / "x.gguf")

    assert all("float16" in note for note in notes)
    again = import_model(tmp_path / "x.gguf", tmp_path / "again")
    read = json.loads((again.path / "tokenizer.json").read_text())
    assert read["model"]["merges"] == [list(merge) for merge in fields["model"]["merges"]]
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        assert read[part] == fields[part]
    for content in ("Hello <s> world", "  ½ 🦙", "a</s>b"):
        assert encode(read, content) == encode(fields, content)
    assert json.loads((again.path / "generation_config.json").read_text()) == generation


def metaspace(fields, scheme):
    split = {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": scheme, "split": False}
    fields |= {"normalizer": None, "pre_tokenizer": split}


@pytest.mark.parametrize(
    ("scheme", "note"),
    [
        ("never", None),
        ("always", "llama.cpp encodes texts that start with a space with a space in front"),
        ("first", "llama.cpp encodes texts that start with a space, or follow a special token,"),
    ],
)
def test_spaces_that_llama_cpp_adds_are_named(tmp_path, scheme, note):
    fields = definition(metadata_of(EXTRACTS["llama-spm"]))
    metaspace(fields, scheme)
    text = (json.dumps(fields).encode(), {}, None)
    model = random_model(tmp_path / "model", scale_dtype="<f2", text=text, vocab_size=440)

    notes = export_gguf(model, tmp_path / "x.gguf")

    assert len(notes) == (note is not None)
    assert all(each.startswith(note) for each in notes)
    again = import_model(tmp_path / "x.gguf", tmp_path / "again")
    read = json.loads((again.path / "tokenizer.json").read_text())
    for content in ("Hello, world!", "x  y", *([] if note else [" a"])):
        assert encode(read, content) == encode(fields, content)


def without_prefix(fields):
    fields["normalizer"] = fields["normalizer"]["normalizers"][1]
    fields["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }


def test_tokenizer_without_prefix_is_exported_as_one():
    fields = definition(metadata_of(EXTRACTS["llama-spm"]))
    without_prefix(fields)

    again = definition(exported(fields))

    for text in ("Hello, world!", " a", "  b  c"):
        assert encode(again, text) == encode(fields, text)


def with_case(fields):
    fields["normalizer"]["normalizers"].append({"type": "Lowercase"})


def with_words(fields):
    metaspace(fields, "first")
    fields["pre_tokenizer"]["split"] = True


def with_whole_words(fields):
    fields["model"]["ignore_merges"] = True


def without_a_split(fields):
    fields["model"]["merges"].remove(["H", "ello"])


def with_mixed_merges(fields):
    merges = fields["model"]["merges"]
    merges.append(merges.pop(merges.index(["H", "ello"])))


def without_a_byte(fields):
    vocab = fields["model"]["vocab"]
    vocab["x1F"] = vocab.pop("<0x1F>")


REFUSED = {
    with_case: "normalizer and pre_tokenizer must replace spaces by '▁' and split nothing",
    with_words: "normalizer and pre_tokenizer must replace spaces by '▁' and split nothing",
    with_whole_words: "model.ignore_merges must be false for llama.cpp but is true",
    without_a_split: "model.merges must be all splits of a token into two tokens for llama.cpp but "
    "lack 'H ello'; --to hf exports any tokenizer",
    with_mixed_merges: "model.merges must be ordered by the tokens they form",
    without_a_byte: "model.vocab must have <0x00> to <0xFF> for llama.cpp but lacks <0x1F>",
}


@pytest.mark.parametrize("change", REFUSED)
def test_tokenizer_that_llama_cpp_encodes_otherwise_is_refused(change):
    fields = copy.deepcopy(definition(metadata_of(EXTRACTS["llama-spm"])))
    change(fields)

    with pytest.raises(ConfigError, match=REFUSED[change]):
        exported(fields)
