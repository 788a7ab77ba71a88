"""tokenizer.json files of others: switches are off, and what loses text is rejected in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata

import pytest
from sample_tokenizers import KINDS, TEXT, definition
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from yocobit.errors import ConfigError
from yocobit.text import TextEncoder, check_lossless, n_ids, parse_tokenizer, read_tokenizer
from yocobit.text.byte_decoder import _BYTES
from yocobit.text.tokenizer import _WITHOUT_CHARACTERS


def changed(kind: str, **changes) -> str:
    fields = json.loads(definition(kind))
    for name, value in changes.items():
        fields.get("model" if name in fields["model"] else "", fields)[name] = value
    return json.dumps(fields)


def in_model(kind: str, **changes) -> str:
    fields = json.loads(definition(kind))
    fields["model"] |= changes
    return json.dumps(fields)


def encoded(content: str, text: str = TEXT) -> list[int]:
    return TextEncoder(parse_tokenizer(content, "it"), "it").encode(text)


TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 4096},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "</s>",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("switch", [{"truncation": TRUNCATION}, {"padding": PADDING}])
def test_truncation_and_padding_are_off(kind, switch):
    assert encoded(changed(kind, **switch)) == encoded(definition(kind))


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_dropout_is_off(kind):
    assert encoded(in_model(kind, dropout=0.9)) == encoded(definition(kind))


def test_sampling_of_unigram_is_off():
    content = in_model("unigram", alpha=0.1, nbest_size=-1)

    assert encoded(content) == encoded(definition("unigram")) == encoded(content)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_without_switches_is_unchanged(kind):
    tokenizer = parse_tokenizer(definition(kind), "it")

    assert tokenizer.to_str() == Tokenizer.from_str(definition(kind)).to_str()


def bpe(names, **options) -> Tokenizer:
    return Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], **options))


def without_alphabet() -> Tokenizer:
    tokenizer = bpe([*"Ġabcde", "Ċ"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def without_bytes(*bytes_: int) -> Tokenizer:
    names = {byte: name for name, byte in _BYTES.items()}
    tokenizer = bpe([name for byte, name in names.items() if byte not in bytes_])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def without_unknown_token() -> Tokenizer:
    tokenizer = bpe(["▁", *map(chr, range(0x21, 0x7F))])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return tokenizer


def without_byte_tokens(*bytes_: int) -> Tokenizer:
    names = [f"<0x{byte:02X}>" for byte in range(256) if byte not in bytes_]
    tokenizer = bpe(names, byte_fallback=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def with_normalizer(normalizer) -> Tokenizer:
    tokenizer = Tokenizer.from_str(definition("byte_level"))
    tokenizer.normalizer = normalizer
    return tokenizer


def with_words_split_at(pattern) -> Tokenizer:
    tokenizer = Tokenizer.from_str(definition("wordpiece"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed")
    return tokenizer


def with_split(split) -> Tokenizer:
    tokenizer = Tokenizer.from_str(definition("byte_level"))
    if isinstance(split, str):
        split = pre_tokenizers.Split(Regex(split), "removed")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "example"),
    [
        (without_alphabet(), "'3.14159' becomes ''|'2024' becomes ''"),
        (without_bytes(0xC3), "'naïve' becomes 'na�"),
        (without_bytes(0xF0), "'🙂' becomes '�"),
        (without_bytes(0xF3), r"'\\U000e0067' becomes '�"),
        (without_bytes(0x99, 0xF1), "'🙂' becomes '�"),
        (without_byte_tokens(0xC6, 0xF4), "'Ư' becomes ''"),
        (without_unknown_token(), "becomes ''|'a.nb' becomes 'ab'"),
        (with_normalizer(normalizers.Replace(Regex(r"\d"), "")), "'2024' becomes ''"),
        (with_normalizer(normalizers.Replace(" ", "")), "'a b' becomes 'ab'"),
        (with_split(r"\s+"), "'a b' becomes 'ab'"),
        (with_split(r"\p{Han}"), "'日' becomes ''"),
        (with_split(r"  "), "'a  b' becomes 'ab'"),
        (with_split(r"\n\n"), r"'a.n.nb' becomes 'ab'"),
        (with_split(r"\n$"), r"'a.n' becomes 'a'"),
        (with_split(r"the"), "a step removes matches of 'the'"),
        (with_split(pre_tokenizers.Split("the", "removed")), "a step removes 'the'"),
        (with_split(pre_tokenizers.Split(5 * " ", "removed")), "a step removes ' "),
        (with_split(pre_tokenizers.Split("\t", "removed")), "a step removes '.t'"),
        (with_split(pre_tokenizers.CharDelimiterSplit("€")), "a step removes '€'"),
        (with_normalizer(normalizers.Strip()), r"'a.n' becomes 'a'"),
        (with_normalizer(normalizers.Strip(right=False)), r"'.na' becomes 'a'"),
        (with_normalizer(normalizers.Replace("the", "")), "a step removes 'the'"),
        (with_normalizer(normalizers.Replace(Regex("the"), "")), "a step removes matches of"),
    ],
    ids=[
        "no alphabet",
        "no byte C3",
        "no byte F0",
        "no byte F3",
        "no byte 99",
        "no byte token C6",
        "no unknown",
        "digits",
        "blanks",
        "split",
        "split Han",
        "split blanks",
        "split lines",
        "split end",
        "split regex",
        "split string",
        "split five blanks",
        "split tab",
        "split delimiter",
        "strip",
        "strip left",
        "replace string",
        "replace regex",
    ],
)
def test_a_tokenizer_that_loses_text_is_rejected_with_an_example(tokenizer, example):
    with pytest.raises(ConfigError, match=rf"^it: loses text: ({example}).*; use a tokenizer"):
        encoded(tokenizer.to_str())


@pytest.mark.parametrize(
    ("missing", "lost"),
    [
        ((0xF1, 0xF2), "U+40000 to U+7FFFF (unassigned), U+80000 to U+BFFFF (unassigned)"),
        ((0xEE, 0xF4), "U+E000 to U+EFFF (private use), U+100000 to U+10FFFF (private use)"),
        ((0x04, 0x7F, 0xF1), "U+0004, U+007F, U+40000 to U+7FFFF (unassigned)"),
        ((0x09,), "U+0009"),
        ((0xC0, 0xC1, *range(0xF5, 0x100)), None),  # in no text
    ],
    ids=["unassigned", "private", "control", "tab", "never"],
)
def test_a_tokenizer_that_loses_only_unassigned_or_control_characters_is_accepted(missing, lost):
    tokenizer = without_bytes(*missing)

    warnings = check_lossless(tokenizer, "it")

    expected = [f"it drops characters that texts rarely have: {lost}"] if lost else []
    assert warnings == expected
    assert tokenizer.decode(TextEncoder(tokenizer, "it").encode("aé日🙂")) == "aé日🙂"


@pytest.mark.parametrize(
    "tokenizer",
    [
        with_split(pre_tokenizers.Split(Regex(r"\s+|\S+"), "removed", invert=True)),
        with_split(pre_tokenizers.Split("the", "isolated")),
        with_words_split_at(r"\s+"),
        with_normalizer(normalizers.Replace("\u200b", "")),
        with_normalizer(normalizers.Replace("the", "a")),
    ],
    ids=["split of everything else", "split", "restored", "invisible", "replaced"],
)
def test_a_step_that_removes_no_visible_text_is_accepted(tokenizer):
    assert check_lossless(tokenizer, "it") == []


def test_lead_bytes_without_assigned_characters_are_those_of_unicode():
    def is_assigned(code: int) -> bool:
        return unicodedata.category(chr(code)) not in ("Cn", "Co")

    assigned = {
        chr(code).encode()[0] for code in range(0xE000) if code < 0xD800 and is_assigned(code)
    } | {chr(code).encode()[0] for code in range(0xE000, 0x110000) if is_assigned(code)}
    leads = {*range(0xC2, 0xF5)}

    without = {text.encode()[0] for text in _WITHOUT_CHARACTERS}

    assert leads - assigned == without


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalizer", [normalizers.NFC(), normalizers.NFKC(), None])
def test_tokenizers_with_unknown_tokens_bytes_or_normalisation_are_accepted(kind, normalizer):
    tokenizer = Tokenizer.from_str(definition(kind))
    if normalizer is not None and kind != "sentencepiece":
        tokenizer.normalizer = normalizer

    assert encoded(tokenizer.to_str())


STRIP_OF_NOTHING = {
    "type": "Sequence",
    "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}],
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is not a tokenizer.json"),
        ("[" * 100_000, "is not a tokenizer.json"),
        ('{"version": "1.0"', "is not a tokenizer.json"),
        (
            changed(
                "byte_level", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
            ),
            "is not a tokenizer.json",
        ),
        (
            json.dumps({"model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "nope"}}),
            "cannot encode text",
        ),
        (
            json.dumps({"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}}),
            "cannot encode text",
        ),
        (
            changed("byte_level", decoder=STRIP_OF_NOTHING),
            "cannot decode its tokens",
        ),
    ],
    ids=["empty", "nested", "cut", "panic", "no unknown", "no unknown id", "decoder panics"],
)
def test_a_damaged_tokenizer_is_rejected_in_one_line(content, message, capfd):
    with pytest.raises(ConfigError, match=f"^it: {message}") as raised:
        encoded(content)

    assert "\n" not in str(raised.value)
    assert capfd.readouterr().err == ""  # no backtrace of the library


def replacing(*steps: tuple[str, str]) -> dict:
    """A normalizer or decoder that replaces text in several steps."""
    made = [{"type": "Replace", "pattern": {"String": a}, "content": b} for a, b in steps]
    return {"type": "Sequence", "normalizers": made, "decoders": made}


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize(
    "steps",
    [[("a", "a" * 65)], [("a", "a" * 16)] * 8, [("a", "bc" * 16), ("x", "y"), ("cb", "a" * 16)]],
)
def test_replacements_that_multiply_text_are_refused(part, steps):
    with pytest.raises(ConfigError, match=r"it replaces text by [0-9]+ characters, more than 64"):
        parse_tokenizer(changed("byte_level", **{part: replacing(*steps)}), "it")


def test_many_replacements_of_different_characters_are_accepted():
    steps = [(chr(0x2460 + i), f"({i + 1})") for i in range(20)]

    encoded(changed("byte_level", normalizer=replacing(*steps)))


def test_a_tokenizer_is_read_without_a_directory_for_temporary_files(monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: os.open("/absent/x", os.O_RDWR))
    if not hasattr(os, "memfd_create"):
        pytest.skip("this system has no memfd_create")

    assert encoded(definition("byte_level"))


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("a", r"ids must be below the model's vocab_size 404 but 'a' has 999999"),
        (None, r"has 404 tokens but the model's vocab_size is 300"),
    ],
)
def test_ids_outside_the_vocabulary_of_the_model_are_rejected(token, message):
    fields = json.loads(definition("byte_level"))
    size = Tokenizer.from_str(definition("byte_level")).get_vocab_size()
    if token is not None:
        fields["model"]["vocab"][token] = 999_999
    message = message.replace("404", str(size))

    with pytest.raises(ConfigError, match=message):
        parse_tokenizer(json.dumps(fields), "it", size if token else 300)


def test_least_vocabulary_of_a_tokenizer_is_its_largest_id_and_one():
    assert n_ids(bpe("abc")) == 3
    assert n_ids(Tokenizer(models.BPE({"a": 0, "b": 7}, []))) == 8


def test_byte_order_mark_of_the_file_is_no_content(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("\ufeff" + definition("byte_level"))

    assert read_tokenizer(path).to_str() == parse_tokenizer(definition("byte_level"), "").to_str()


def test_a_fifo_is_no_tokenizer(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")

    with pytest.raises(ConfigError, match="must be a regular file"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_other_output_while_a_tokenizer_is_read_is_kept():
    code = (
        "import os, sys\nfrom yocobit.text import tokenizer\n"
        "with tokenizer.without_panic_messages():\n    os.write(2, b'kept')\n"
        "os.close(2)\nwith tokenizer.without_panic_messages():\n    pass\n"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    assert ran.stderr == b"kept"
