"""Tokenizers in exported GGUF files: the importer reads the same tokens; others are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from exported_models import random_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from yocobit.config import ConfigError
from yocobit.exporters import export_gguf
from yocobit.exporters.gguf.tokenizer import tokenizer_metadata
from yocobit.importers import import_model
from yocobit.importers.gguf.container import GGUFFile
from yocobit.importers.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from yocobit.text import GenerationConfig

TEXT = (
    "It's 12,345.67 degrees; they DON'T know! Größe, naïve, 漢字 and 日本語 ...\n\n"
    "\tdef f(x):\n  1\n"
)
TEMPLATE = b"{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
V = 420


@cache
def trained():
    """A byte-level BPE tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT * 3], trainer)
    special = [AddedToken(name, special=True) for name in ("<|begin|>", "<|end|>", "<|im_end|>")]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return tokenizer.to_str()


def definition(pre_tokenizer: PreTokenizer):
    """The fields of a tokenizer.json with a pre-tokenizer of llama.cpp."""
    fields = json.loads(trained())
    fields["pre_tokenizer"] = pre_tokenizer.fields()
    fields["normalizer"] = pre_tokenizer.normalizer and {"type": pre_tokenizer.normalizer}
    fields["model"]["ignore_merges"] = pre_tokenizer.ignores_merges
    return fields


def export(tmp_path, fields, **generation):
    text = (json.dumps(fields).encode(), generation, TEMPLATE)
    model = random_model(tmp_path / "model", text=text, vocab_size=V)
    notes = export_gguf(model, tmp_path / "x.gguf")
    return [note for note in notes if "float16" not in note]


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "gpt-2", "starcoder", "tekken"])
def test_import_of_an_export_encodes_the_same_tokens(tmp_path, name):
    fields = definition(PRE_TOKENIZERS[name])
    known = Tokenizer.from_str(json.dumps(fields))
    bos, end, im_end = (known.token_to_id(text) for text in ("<|begin|>", "<|end|>", "<|im_end|>"))

    sampling = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.1}
    notes = export(tmp_path, fields, bos_token_id=bos, eos_token_id=[end, im_end], **sampling)

    assert notes == []
    metadata = GGUFFile(tmp_path / "x.gguf").metadata
    assert metadata["tokenizer.ggml.pre"] == name
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    again = import_model(tmp_path / "x.gguf", tmp_path / "again")
    read = Tokenizer.from_file(str(again.path / "tokenizer.json"))
    for text in (TEXT, "<|begin|>a <tool> b<|im_end|>"):
        expected = known.encode(text, add_special_tokens=False).ids
        assert read.encode(text, add_special_tokens=False).ids == expected
    generation = json.loads((again.path / "generation_config.json").read_text())
    assert generation == {"bos_token_id": bos, "eos_token_id": [end, im_end], **sampling}
    template = (again.path / "chat_template.jinja").read_bytes()
    assert template.endswith(TEMPLATE)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_known_pre_tokenizer_is_exported_by_a_name_of_the_same_rules(name):
    known = PRE_TOKENIZERS[name]

    metadata = tokenizer_metadata(definition(known), GenerationConfig(), V, Path("tokenizer.json"))

    found = PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]]
    assert replace(found, adds_bos=known.adds_bos) == known


def test_normalizer_of_our_importer_for_missing_bytes_is_left_out():
    fields = definition(PRE_TOKENIZERS["qwen2"])
    private = "[\U00040000-\U0007ffff\U000c0000-\U000fffff]"
    replace = {"type": "Replace", "pattern": {"Regex": private}, "content": "?"}
    fields["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, replace]}

    metadata = tokenizer_metadata(fields, GenerationConfig(), V, Path("tokenizer.json"))

    assert metadata["tokenizer.ggml.pre"] == "qwen2"
    replace["pattern"] = {"Regex": "[a-z]"}
    with pytest.raises(ConfigError, match="normalizer='NFC and Replace'"):
        tokenizer_metadata(fields, GenerationConfig(), V, Path("tokenizer.json"))


def test_digits_and_the_split_of_byte_level_are_known_too(tmp_path):
    fields = definition(PRE_TOKENIZERS["gpt-2"])
    byte_level = {**fields["pre_tokenizer"]["pretokenizers"][-1], "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    fields["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}

    export(tmp_path, fields)

    assert GGUFFile(tmp_path / "x.gguf").metadata["tokenizer.ggml.pre"] == "starcoder"


def test_rows_without_a_token_are_unused_tokens(tmp_path):
    export(tmp_path, definition(PRE_TOKENIZERS["gpt-2"]))

    metadata = GGUFFile(tmp_path / "x.gguf").metadata
    assert len(metadata["tokenizer.ggml.tokens"]) == V
    assert metadata["tokenizer.ggml.tokens"][-1] == f"[PAD{V - 1}]"
    assert metadata["tokenizer.ggml.token_type"][-1] == 5
    assert metadata["tokenizer.ggml.add_bos_token"] is False


def test_what_gguf_has_no_key_for_is_named(tmp_path):
    fields = definition(PRE_TOKENIZERS["gpt-2"])

    notes = export(tmp_path, fields, eos_token_id=[1, 2, 3, 4], stop_strings=["x"], top_k=5)

    assert notes == [
        "stop strings are left out: GGUF has no key for them",
        "only the first 3 EOS tokens are kept: GGUF has no key for more",
    ]
    metadata = GGUFFile(tmp_path / "x.gguf").metadata
    assert metadata["tokenizer.ggml.eom_token_id"] == 3
    assert metadata["general.sampling.top_k"] == 5


def with_split(fields):
    fields["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+"


def with_prefix_space(fields):
    fields["pre_tokenizer"]["pretokenizers"][-1]["add_prefix_space"] = True


def with_normalizer(fields):
    fields["normalizer"] = {"type": "Lowercase"}


def with_stripping(fields):
    fields["added_tokens"][0]["rstrip"] = True


def with_fallback(fields):
    fields["model"]["byte_fallback"] = True


REFUSED = {
    with_split: "pre_tokenizer must be one that llama.cpp has by name",
    with_normalizer: "pre_tokenizer must be one that llama.cpp has by name",
    with_prefix_space: "pre_tokenizer must be regular expressions and ByteLevel",
    with_stripping: "added tokens must not have single_word, lstrip or rstrip",
    with_fallback: "model.vocab must have <0x00> to <0xFF> for llama.cpp but lacks <0x00>",
}


@pytest.mark.parametrize("change", REFUSED)
def test_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path, change):
    fields = definition(PRE_TOKENIZERS["gpt-2"])
    change(fields)

    with pytest.raises(ConfigError, match=REFUSED[change]):
        export(tmp_path, fields)

    assert not (tmp_path / "x.gguf").exists()
