"""Texts to evaluate on: a .jsonl file holds one in each line, any other file is one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from yocobit.config import ConfigError


def read_documents(paths: Iterable[Path]) -> Iterator[str]:
    """Return the texts of UTF-8 files; ConfigError names the file and line that hold none."""
    for path in paths:
        if path.suffix == ".jsonl":
            for number, line in enumerate(_text(path).split("\n"), start=1):
                if line.strip():
                    yield _record(line, f"{path}:{number}")
        else:
            yield _text(path)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#04x} at {error.start}"
        raise ConfigError(f"{path}: is not UTF-8 ({byte})") from None


def _record(line: str, source: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{source}: is not valid JSON ({error})") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise ConfigError(f"{source}: must be an object with a string 'text'")
    return text
