"""Split the prose corpora of a directory into documents for training and validation.

    python benchmarks/quality/corpus.py DATA OUT

Writes OUT/train.jsonl and OUT/valid.jsonl. A document is a speech, a country or a whole book.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

_VALID_LINE = 9  # speeches whose line number ends in this digit are for validation
_VALID_SHARE = 0.05  # the last part of each other text is for validation
_COUNTRY = "Background:"  # the first line of each country


def speeches(text: str) -> tuple[list[str], list[str]]:
    """Split a text of one speech per line into training and validation."""
    train, valid = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        (valid if number % 10 == _VALID_LINE else train).append(line)
    return train, valid


def ends(text: str) -> tuple[str, str]:
    """Split a text into training and its last lines for validation."""
    cut = text.index("\n", round(len(text) * (1 - _VALID_SHARE))) + 1
    return text[:cut], text[cut:]


def countries(text: str) -> Iterator[str]:
    """Yield the countries of the factbook."""
    first, *rest = text.split(f"\n{_COUNTRY}")
    yield first
    for country in rest:
        yield _COUNTRY + country


def documents(data: Path) -> tuple[list[str], list[str]]:
    """Return the documents for training and for validation."""
    train, valid = speeches((data / "sotu.txt").read_text(encoding="utf-8"))
    for name in ("spurgeon", "web_bible", "factbook"):
        parts = ends((data / f"{name}.txt").read_text(encoding="utf-8"))
        for found, part in zip((train, valid), parts, strict=True):
            found.extend(countries(part) if name == "factbook" else [part])
    return [d for d in train if d.strip()], [d for d in valid if d.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, texts in zip(("train", "valid"), documents(arguments.data), strict=True):
        with (arguments.out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for text in texts:
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        n_bytes = sum(len(text.encode()) for text in texts)
        print(f"{name}: {len(texts):,} documents, {n_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
