"""Checkpoint: a published checkpoint in our configuration and parameter names.

One implementation per file format: huggingface/ and gguf/. convert.py writes a packed model from
it. Without torch.

Letters: M output features   K input features   N groups of columns
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from yocobit.config import ModelConfig
from yocobit.packing.formats import WeightFormat
from yocobit.packing.layout import Array, Floats, Int8s
from yocobit.packing.text_files import TextFiles


class IntegerMatrix(NamedTuple):
    """A quantised matrix: weight = integer * scale, both as published."""

    integers: Int8s  # (M, K)
    # (1,), (M,), or (M, N): one per matrix, row, or group of columns of the format; float16 or
    # float32. 0 only for a row or group of zeros.
    scale: Array


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

        `tokenizer` is a directory with those that replace the checkpoint's.
        """
