"""Small texts on disk, and the data settings that name them."""

import json
from pathlib import Path

from yocobit.data.config import DataConfig, SourceConfig
from yocobit.data.shards import Tokens

TEXT = "def f(x):\n    return x + 1\n\n" * 40


def plain(directory: Path) -> DataConfig:
    """One text file to train on, one to validate on."""
    (directory / "train.txt").write_text(TEXT)
    (directory / "valid.txt").write_text("def g(y):\n    return y\n")
    return DataConfig(
        train=(str(directory / "train.txt"),),
        valid=(str(directory / "valid.txt"),),
        vocab_size=270,
        context=8,
    )


def mixture(directory: Path) -> DataConfig:
    """Two sources that share no word, with weights 3 and 1."""
    for name, word in (("a", "one "), ("b", "two ")):
        write_jsonl(directory / f"{name}.jsonl", [{"text": word * 20}] * 20)
    (directory / "valid.txt").write_text("one two")
    return DataConfig(
        train=(
            SourceConfig(path=str(directory / "a.jsonl"), weight=3.0),
            SourceConfig(path=str(directory / "b.jsonl"), weight=1.0),
        ),
        valid=(str(directory / "valid.txt"),),
        vocab_size=257,
        context=8,
    )


def read(tokens: Tokens) -> list[int]:
    return tokens.read(0, len(tokens)).tolist()


def write_jsonl(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)
