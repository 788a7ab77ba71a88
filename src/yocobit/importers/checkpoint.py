"""Checkpoint: a published checkpoint in our configuration and parameter names.

One implementation per file format: huggingface/ and gguf/. convert.py writes a packed model from
it. Without torch.

Letters: M output features   K input features   N groups of columns
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from yocobit.config import ModelConfig
from yocobit.errors import ConfigError
from yocobit.importers.huggingface import sentencepiece
from yocobit.packing.file_format import TOKENIZER
from yocobit.packing.formats import WeightFormat
from yocobit.packing.layout import Array, Floats, Int8s
from yocobit.packing.text_files import TextFiles, read_text_files

_GROUPS = (128, 64)  # columns


class IntegerMatrix(NamedTuple):
    """A quantised matrix: weight = integer * scale, both as published."""

    integers: Int8s  # (M, K)
    # (1,), (M,) or (M, N): one per matrix, row, or group of 64 or 128 columns; float16 or float32.
    # Positive; 0 for a group of zeros.
    scale: Array

    @property
    def group_columns(self) -> int:
        """The columns of a row that share a scale."""
        K: int = self.integers.shape[1]
        if self.scale.ndim == 1:
            return K
        return next(each for each in _GROUPS if -(-K // each) == self.scale.shape[1])

    def scales(self, columns: int) -> Array | None:
        """Return the scales (M, K / columns) of groups; None if the published groups are smaller.

        The last group of a row may be shorter.
        """
        M, K = self.integers.shape
        n_groups = -(-K // columns)
        if self.scale.ndim == 1:
            return np.broadcast_to(self.scale[:, None], (M, n_groups))
        if self.group_columns < columns:
            return None
        return self.scale.repeat(self.group_columns // columns, axis=1)[:, :n_groups]

    def floats(self) -> Floats:
        """Return the weights (M, K); the product with a scale is rounded to float32."""
        K = self.integers.shape[1]
        scales = self.scales(min(_GROUPS))
        assert scales is not None
        columns = scales.astype(np.float32).repeat(min(_GROUPS), axis=1)[:, :K]
        return self.integers * columns


class Checkpoint(Protocol):
    """A published checkpoint whose configuration is valid; tensors are read one at a time."""

    @property
    def path(self) -> Path:
        """The directory or file, for messages."""

    @property
    def source_type(self) -> str:
        """File format and type, such as "safetensors, packed ternary" or "GGUF I2_S"."""

    @property
    def config(self) -> ModelConfig:
        """The configuration; its `weights` select the format of the projections."""

    @property
    def formats(self) -> Mapping[str, WeightFormat]:
        """The formats of single parameters that differ, such as a ternary head."""

    @property
    def warnings(self) -> Sequence[str]:
        """Differences from the published model, one line each."""

    def read(self, name: str, shape: tuple[int, ...]) -> Floats | IntegerMatrix:
        """Return a parameter of `mixers.model_parameters`, of this shape.

        Floats for a parameter with a quantised format are master weights. ConfigError names the
        tensor if it is missing, has another shape or dtype, or holds an invalid value.
        """

    def text_files(self, tokenizer: Path | None = None) -> TextFiles:
        """Return tokenizer, generation defaults and chat template.

        `tokenizer` is a directory whose files replace the checkpoint's, as with_tokenizer does.
        """


def with_tokenizer(own: TextFiles, directory: Path, vocab_size: int) -> TextFiles:
    """Return the text files of a checkpoint, `own`, with the tokenizer of another directory.

    The directory's generation defaults and chat template have precedence; those that it lacks are
    the checkpoint's, except the BOS token, which depends on the tokenizer. ConfigError if the
    directory holds no tokenizer.
    """
    other = read_directory(directory, vocab_size)
    if other.tokenizer is None:
        raise ConfigError(f"{directory}: holds no {TOKENIZER}; name a directory with one")
    defaults = {key: value for key, value in own.generation.items() if key != "bos_token_id"}
    template = own.template if other.template is None else other.template
    return TextFiles(other.tokenizer, {**defaults, **other.generation}, template)


def read_directory(directory: Path, vocab_size: int) -> TextFiles:
    """Read the text files of a directory; its tokenizer.model if it has no tokenizer.json."""
    files = read_text_files(directory, vocab_size)
    if files.tokenizer is not None or not (directory / sentencepiece.FILE).is_file():
        return files
    return files._replace(tokenizer=sentencepiece.convert_sentencepiece(directory, vocab_size))
