"""The boundary around files that users provide."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer

from yocobit.errors import ConfigError, printable
from yocobit.reading import (
    boundary,
    parse_json,
    parse_toml,
    read_bytes,
    read_json,
    read_text,
    read_toml,
)


class Point(msgspec.Struct):
    x: int
    label: str = ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe{}",
        b'{"a": NaN}',
        b'{"a": 1e400}',
        b'"' + b"a" * 100_000,
        b"\x00",
        b'["\xff"]',
        b"5",
        b'{"a": "\\ud800"}',
    ],
)
def test_read_json_rejects_anything_else_in_one_short_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_json(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400


def test_read_json_ignores_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_parse_json_names_the_field_that_is_wrong() -> None:
    assert parse_json('{"x": 3}', "p", Point) == Point(3)
    with pytest.raises(ConfigError, match=r"^p: x: Expected `int`, got `str`$"):
        parse_json('{"x": "3"}', "p", Point)
    with pytest.raises(ConfigError, match="missing required field `x`"):
        parse_json("{}", "p", Point)


@pytest.mark.parametrize(
    "content",
    [
        b"a",
        b"a = ",
        b"a = \xff",
        b"a = 1\na = 2",
        b"a = " + b"[" * 100_000,
        b"a = " + b"{a = " * 5_000,
        b"a = " + b"9" * 5_000,
        b"a = 2020-13-45",
        b"a." * 100_000 + b"b = 1",
    ],
)
def test_read_toml_rejects_anything_else_in_one_short_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_toml(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: is not ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400


def test_read_toml_ignores_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfa.b = 1\n")
    assert read_toml(tmp_path / "a.toml") == {"a": {"b": 1}}
    assert parse_toml("x = 'y'", "x") == {"x": "y"}


def test_read_bytes_rejects_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="must be a regular file"):
        read_bytes(tmp_path / "fifo")
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "missing")


def test_read_bytes_rejects_a_file_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(11))
    assert read_bytes(tmp_path / "a", 11) == bytes(11)
    with pytest.raises(ConfigError, match="at most 10 bytes"):
        read_bytes(tmp_path / "a", 10)


def test_read_text_names_the_byte_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfab")
    assert read_text(tmp_path / "a") == "ab"
    (tmp_path / "a").write_bytes(b"ab\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 \\(byte 2\\)"):
        read_text(tmp_path / "a")


def test_boundary_turns_a_panic_of_a_library_into_one_line(capfd) -> None:
    broken = (
        '{"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []},'
        ' "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}'
    )
    with (
        pytest.raises(ConfigError, match=r"^t: is not a tokenizer\.json \("),
        boundary("t", "is not a tokenizer.json"),
    ):
        Tokenizer.from_str(broken)
    capfd.readouterr()  # the panic's own message


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, OSError, ConfigError])
def test_boundary_passes_interrupts_memory_and_system_errors(kind: type[BaseException]) -> None:
    with pytest.raises(kind), boundary("a", "is wrong"):
        raise kind


def test_printable_escapes_and_shortens() -> None:
    assert printable("naïve ☕ text") == "naïve ☕ text"
    assert printable("a\nb\x1b[31m\ud800\u202e") == "a\\nb\\x1b[31m\\ud800\\u202e"
    assert len(printable("x" * 10_000, 100)) <= 100
