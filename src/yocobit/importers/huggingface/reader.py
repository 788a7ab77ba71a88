"""HuggingFaceCheckpoint: config.json and safetensors files of a published model, as a Checkpoint.

Ternary weights are stored as codes, four rows per uint8, or as master weights (arXiv:2402.17764,
arXiv:2504.12285).

Letters: M output features   K input features
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from yocobit.config import ConfigError, ModelConfig, Pooling
from yocobit.errors import shown
from yocobit.importers.checkpoint import IntegerMatrix, read_directory, with_tokenizer
from yocobit.importers.huggingface.families import published
from yocobit.importers.huggingface.names import HEAD, Names
from yocobit.importers.huggingface.quantization import MASTER_WEIGHTS
from yocobit.mixers import model_parameters
from yocobit.packing.format import CONFIG, scale_name
from yocobit.packing.formats import F16, F32, TERNARY, WeightFormat
from yocobit.packing.layout import Array, Floats, Int8s
from yocobit.packing.tensor_source import SafetensorsDirectory
from yocobit.packing.text_files import TextFiles, read_text_files
from yocobit.reading import read_json

POOLING = f"1_Pooling/{CONFIG}"  # of Sentence Transformers
_POOLINGS: Mapping[str, Pooling] = {"lasttoken": "last", "mean_tokens": "mean", "mean": "mean"}
_SMALLEST = 1e-30  # scale
_BUFFER = "rotary_emb.inv_freq"  # recomputed from the configuration
_MASTERS_WARNING = (
    "holds master weights, which are quantised here as in training; packed weights that were "
    "published for the same model may differ in some trits"
)


class HuggingFaceCheckpoint:
    """A published checkpoint in a directory; its tensors are read one at a time."""

    def __init__(self, path: Path) -> None:
        if not (path / CONFIG).exists():
            raise ConfigError(
                f"{path}: holds no {CONFIG}; name the directory of a checkpoint that was "
                "downloaded from the Hugging Face Hub"
            )
        self.path = path
        config, self._family, quantization = published(read_json(path / CONFIG), str(path / CONFIG))
        self._tensors = SafetensorsDirectory(path)
        self._names = Names.of(
            self._tensors.names(),
            self._family.block,
            quantization is not None and quantization.use_rms_norm,
        )
        if quantization is None and self._names.are_of_bitnet:
            quantization = MASTER_WEIGHTS
        self._quantization = quantization
        self.config = self._complete(config)
        # The parameters with ternary weights, packed or masters.
        self._ternary = {
            name
            for name, parameter in model_parameters(self.config).items()
            if parameter.role in ("projection", "head") and self._is_ternary(name)
        }
        self.formats = self._formats()
        self._check_names()

    @property
    def source_type(self) -> str:
        name = self._names.of_parameter("layers.0.ffn.up_proj.weight")
        if self._quantization is None:
            return f"safetensors, dense {self._tensors.dtype(name)}"
        if self._quantization.has_master_weights:
            return f"safetensors, ternary master weights in {self._tensors.dtype(name)}"
        return "safetensors, packed ternary"

    @property
    def warnings(self) -> list[str]:
        return [f"{self.path}: {_MASTERS_WARNING}"] if self._has_masters else []

    def text_files(self, tokenizer: Path | None = None) -> TextFiles:
        vocab_size = self.config.vocab_size
        if tokenizer is None:
            return read_directory(self.path, vocab_size)
        return with_tokenizer(read_text_files(self.path, vocab_size), tokenizer, vocab_size)

    def read(self, name: str, shape: tuple[int, ...]) -> Floats | IntegerMatrix:
        theirs = self._names.of_parameter(name)
        if name in self._ternary and not self._has_masters:
            integers, scale = self._integers(theirs, shape)
            return IntegerMatrix(integers, np.array([scale], dtype=np.float32))
        values = self._floats(theirs, shape)
        if name.endswith(".bias") and self._scales_bias(name.removesuffix("bias") + "weight"):
            values = values * np.float32(self._scale(theirs.removesuffix("bias") + "weight"))
        is_own_norm = name.endswith("norm.weight") and not name.endswith(
            ("_proj.norm.weight", "head.norm.weight")
        )
        if self._family.norm_offset and is_own_norm:
            values = values + np.float32(self._family.norm_offset)
        return values

    @property
    def _has_masters(self) -> bool:
        return self._quantization is not None and self._quantization.has_master_weights

    def _complete(self, config: ModelConfig) -> ModelConfig:
        """Return the configuration with the features that follow from tensor names."""
        names, quantization = self._names, self._quantization
        has_norms = names.projection_norm is not None
        is_tied = config.tie_embeddings or not names.prefix
        quantises_head = quantization is not None and not is_tied and quantization.quantises(HEAD)
        norm_eps = quantization.rms_norm_eps if quantization is not None else None
        if names.projection_norm == "norm":
            norm_eps = config.norm_eps
        return config.replace(
            weights="dense" if quantization is None else "ternary",
            sub_norm=config.sub_norm or names.has_sub_norms,
            tie_embeddings=is_tied,
            projection_norms=has_norms,
            projection_norm_eps=norm_eps or 1e-6,
            head_norm=quantises_head and names.projection_norm == "rms_norm",
            pooling=self._pooling(),
        )

    def _pooling(self) -> Pooling:
        """Return the pooling of a directory of Sentence Transformers, or the family's."""
        file = self.path / POOLING
        if not file.is_file():
            return "last" if self._names.projection_norm == "norm" else "mean"
        fields = read_json(file)
        prefix = "pooling_mode_"
        modes = [
            key.removeprefix(prefix)
            for key, value in fields.items()
            if key.startswith(prefix) and value is True
        ]
        mode = fields.get("pooling_mode", modes[0] if len(modes) == 1 else modes)
        if not isinstance(mode, str) or mode not in _POOLINGS:
            raise ConfigError(
                f"{file}: pooling_mode must be {' or '.join(_POOLINGS)} but is {shown(mode)}"
            )
        return _POOLINGS[mode]

    def _is_ternary(self, name: str) -> bool:
        module = self._names.of_parameter(name).removesuffix(".weight")
        return self._quantization is not None and self._quantization.quantises(module)

    def _scales_bias(self, projection: str) -> bool:
        """Whether the scale multiplies the bias too: AutoBitLinear adds it before scaling."""
        quantization = self._quantization
        return (
            quantization is not None
            and not (quantization.divides_by_scales or self._has_masters)
            and projection in self._ternary
        )

    def _formats(self) -> dict[str, WeightFormat]:
        """Return the formats of single parameters; float16 tensors stay in float16."""
        formats: dict[str, WeightFormat] = {}
        for name, parameter in model_parameters(self.config).items():
            theirs = self._names.of_parameter(name)
            is_f16 = theirs in self._tensors.names() and self._tensors.dtype(theirs) == "F16"
            if name in self._ternary:
                if parameter.role == "head":
                    formats[name] = TERNARY
            elif parameter.role == "projection" and self._quantization is not None:
                formats[name] = F16 if is_f16 else F32
            elif self._quantization is None and is_f16 and parameter.shape[1:]:
                formats[name] = F16
        return formats

    def _check_names(self) -> None:
        """Raise ConfigError unless the checkpoint holds exactly the tensors of the model."""
        stored = self._tensors.names()
        used: dict[str, None] = {}
        for name in model_parameters(self.config):
            theirs = self._names.of_parameter(name)
            used[theirs] = None
            if name in self._ternary and not self._has_masters:
                used[scale_name(theirs)] = None
        for name in used:
            if name not in stored:
                raise ConfigError(
                    f"{self.path}: tensor '{name}' is missing; download the checkpoint again"
                )
        embedding = self._names.of_parameter("embedding.weight")
        for name in stored:
            if name in used or name.endswith(_BUFFER):
                continue
            if name == f"{HEAD}.weight" and self._tensors.are_equal(name, embedding):
                continue
            raise ConfigError(
                f"{self.path}: tensor {shown(name)} must not be there: {CONFIG} describes a model "
                "without it; choose a checkpoint whose configuration and weights agree"
            )

    def _integers(self, name: str, shape: tuple[int, ...]) -> tuple[Int8s, float]:
        """Return weights (M, K) in {-1, 0, +1} and their scale."""
        M, K = shape
        packed = self._tensors.read(name)
        if packed.dtype.kind == "f":
            values = self._checked(name, packed, shape)
            if not (is_valid := np.isin(values, TERNARY.values)).all():
                raise ConfigError(
                    f"{self.path}: tensor '{name}' must hold -1, 0 and 1, as it has a scale, but "
                    f"has {values[~is_valid][0]}"
                )
            return values.astype(np.int8), self._scale(name)
        if packed.dtype != np.uint8 or packed.shape != (-(-M // 4), K):
            raise ConfigError(
                f"{self.path}: tensor '{name}' must be uint8 of shape {[-(-M // 4), K]} but is "
                f"{packed.dtype} of {list(packed.shape)}"
            )
        # A byte holds rows i, i + M/4, i + M/2 and i + 3M/4, the first in its lowest bits.
        rows = np.concatenate([packed >> shift & 3 for shift in (0, 2, 4, 6)])[:M]
        if rows.max() > 2:
            raise ConfigError(f"{self.path}: tensor '{name}' must hold codes 0 to 2 but has 3")
        return rows.astype(np.int8) - np.int8(1), self._scale(name)

    def _scale(self, name: str) -> float:
        """Return the scale of a matrix: weight = integer * scale."""
        assert self._quantization is not None
        stored = self._tensors.read(scale_name(name))
        scalar = stored.reshape(1) if stored.shape == () else stored
        value = float(self._checked(scale_name(name), scalar, (1,))[0])
        if not _SMALLEST <= value <= 1 / _SMALLEST:
            raise ConfigError(
                f"{self.path}: tensor '{scale_name(name)}' must be between {_SMALLEST:g} and "
                f"{1 / _SMALLEST:g} but is {value:g}"
            )
        return 1 / value if self._quantization.divides_by_scales else value

    def _floats(self, name: str, shape: tuple[int, ...]) -> Floats:
        return self._checked(name, self._tensors.read(name), shape)

    def _checked(self, name: str, values: Array, shape: tuple[int, ...]) -> Floats:
        if values.shape != shape or values.dtype.kind != "f":
            raise ConfigError(
                f"{self.path}: tensor '{name}' must be floats of shape {list(shape)} but is "
                f"{values.dtype} of {list(values.shape)}"
            )
        with np.errstate(over="ignore"):  # of float64
            floats = values.astype(np.float32, copy=False)
        if not np.isfinite(floats).all():
            raise ConfigError(f"{self.path}: tensor '{name}' must be finite but is not")
        return floats
