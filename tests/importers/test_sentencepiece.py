"""tokenizer.model of SentencePiece: the ids are those of the sentencepiece library."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from published import publish, random_model
from tokenizers import Tokenizer

from yocobit.config import ConfigError
from yocobit.importers import import_model
from yocobit.importers.huggingface.sentencepiece import convert_sentencepiece

CHARACTERS = "▁abcdeilnoprstu."
MERGED = ("▁t", "in", "er", "▁tr", "on", "▁s", "st", "an", "inter", "▁st", "ate", "tion", "in▁")
PIECES = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    *((piece, -float(i), 1) for i, piece in enumerate((*MERGED, "at", "te", "ti", "ter", "ion"))),
    *((character, -100.0 - i, 1) for i, character in enumerate(CHARACTERS)),
]
# Of sentencepiece 0.2.3 for this model.
EXPECTED = {
    "interstate station": [277, 267, 265, 269, 268, 272, 276],
    "  in  two\nlines ": [277, 277, 277, 271, 259, 122, 286, 13, 284, 260, 282, 289, 277],
    "Café ☕ train.": [277, 70, 278, 105, 198, 172, 277, 229, 155, 152, 262, 278, 260, 292],
    "a": [277, 278],
    "\tstate": [277, 12, 265, 269],
}


def varint(value: int) -> bytes:
    head = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return head + (varint(value >> 7) if value > 0x7F else b"")


def field(number: int, value: int | bytes | float) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model(pieces=PIECES, kind=2, charsmap=b"", keep_spaces=True) -> bytes:
    """Return a tokenizer.model; its pieces have a text, a score and a type."""
    parts = [
        field(1, field(1, text.encode()) + field(2, score) + field(3, type))
        for text, score, type in pieces
    ]
    trainer = field(3, kind) + field(35, 1)
    normalizer = field(1, b"nmt" if charsmap else b"identity") + field(2, charsmap)
    normalizer += field(4, int(not keep_spaces))
    return b"".join([*parts, field(2, trainer), field(3, normalizer)])


@pytest.fixture
def directory(tmp_path) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(model())
    return tmp_path


@pytest.mark.parametrize("text", EXPECTED)
def test_ids_are_those_of_sentencepiece(directory, text):
    tokenizer = Tokenizer.from_str(convert_sentencepiece(directory, 512).decode())

    assert tokenizer.encode(text).ids == [1, *EXPECTED[text]]
    assert tokenizer.decode(EXPECTED[text]) == text


def test_added_tokens_and_settings_of_tokenizer_config_are_read(directory):
    n = len(PIECES)
    added = {str(n): {"content": "<pad>", "special": True}, str(n + 2): {"content": "two words"}}
    settings = {"added_tokens_decoder": added, "add_bos_token": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))

    tokenizer = Tokenizer.from_str(convert_sentencepiece(directory, n + 3).decode())

    assert tokenizer.token_to_id("<pad>") == n
    assert tokenizer.encode("two words").ids[-1] == n + 2
    assert 1 not in tokenizer.encode("a").ids


def test_import_of_a_checkpoint_with_tokenizer_model_only(tmp_path):
    source = publish(random_model("llama", vocab_size=512), tmp_path / "hf")
    (source / "tokenizer.model").write_bytes(model())

    packed = import_model(source, tmp_path / "model")

    stored = (packed.path / "tokenizer.json").read_bytes()
    assert stored == convert_sentencepiece(source, 512)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model(kind=1), r"model_type must be 2 \(BPE\) but is 1; give the directory"),
        (model(charsmap=b"x"), "the normaliser must be 'identity' but is 'nmt'"),
        (model(keep_spaces=False), "remove_extra_whitespaces must be false"),
        (model()[:-1], "is not a SentencePiece model"),
        (b"\x0b", r"is not a SentencePiece model \(field 1 has wire type 3\)"),
        (b"\xff" * 20, "is not a SentencePiece model"),
        (b"\x08\x01", "is not a SentencePiece model"),
        (model(pieces=[*PIECES, ("x", 0.0, 2**63)]), "is not a SentencePiece model"),
        (model(pieces=[*PIECES, ("x", 0.0, 9)]), "token_type must be 0 to 6 but is 9"),
        (model(pieces=[*PIECES, ("a", 0.0, 1)]), "tokens must differ"),
    ],
)
def test_invalid_model_is_one_line(tmp_path, content, message):
    (tmp_path / "tokenizer.model").write_bytes(content)

    with pytest.raises(ConfigError, match=message) as raised:
        convert_sentencepiece(tmp_path, 512)

    assert "\n" not in str(raised.value) and "tokenizer.model: " in str(raised.value)


@pytest.mark.parametrize("added", [5, {"x": {}}, {"400": 3}, {"300": {"content": 3}}])
def test_odd_added_tokens_are_one_line(directory, added):
    settings = {"added_tokens_decoder": added}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))

    with pytest.raises(ConfigError, match="added_tokens_decoder must map ids to tokens"):
        convert_sentencepiece(directory, 512)
