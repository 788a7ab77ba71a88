"""Whether a model on the hub is supported: from its config.json, or the first bytes of a GGUF file.

Opening a checkpoint repeats these checks, and adds those that need the whole header.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yocobit.importers.gguf.architectures import architecture_of
from yocobit.importers.gguf.container import read_start
from yocobit.importers.huggingface.families import published

GGUF_START_BYTES = 1 << 16  # the architecture is among the first keys, the vocabulary follows


def check_config(fields: Mapping[str, Any], file: str) -> None:
    """Raise ConfigError, naming `file`, for a config.json of an unsupported model."""
    published(fields, file)


def check_gguf_start(start: bytes, file: str) -> None:
    """Raise ConfigError, naming `file`, if its first bytes are those of an unsupported model."""
    architecture_of(read_start(start, Path(file)), Path(file))
