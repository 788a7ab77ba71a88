"""HuggingFaceCheckpoint: a directory with config.json and safetensors files, as a Checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yocobit.config import ConfigError, ModelConfig, Pooling, WeightKind
from yocobit.errors import shown
from yocobit.importers.checkpoint import IntegerMatrix, read_directory, with_tokenizer
from yocobit.importers.huggingface.families import published
from yocobit.importers.huggingface.floats import read_floats
from yocobit.importers.huggingface.matrices import Matrices
from yocobit.importers.huggingface.mlx import MLXQuantization
from yocobit.importers.huggingface.names import HEAD, Names
from yocobit.importers.huggingface.quantization import (
    MASTER_WEIGHTS,
    BitNetQuantization,
    ignored_keys,
    read_scale,
)
from yocobit.mixers import model_parameters
from yocobit.packing.file_format import CONFIG
from yocobit.packing.formats import F16, F32, TABLES, TERNARY, WeightFormat
from yocobit.packing.layout import Floats
from yocobit.packing.tensor_source import SafetensorsDirectory
from yocobit.packing.text_files import TextFiles, read_text_files
from yocobit.reading import read_json

POOLING = f"1_Pooling/{CONFIG}"  # of Sentence Transformers
_POOLINGS: Mapping[str, Pooling] = {"lasttoken": "last", "mean_tokens": "mean", "mean": "mean"}
_APPROXIMATE_HEAD = "lm_head_flash."  # of Maple in MLX: derived from the head
_PROJECTION = "layers.0.ffn.up_proj.weight"  # its dtypes are those of the model
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
        fields = read_json(path / CONFIG)
        config, self._family, quantization = published(fields, str(path / CONFIG))
        self._tensors = SafetensorsDirectory(path)
        self._bitnet = quantization if isinstance(quantization, BitNetQuantization) else None
        self._mlx = quantization if isinstance(quantization, MLXQuantization) else None
        self._names = Names.of(
            self._tensors.names(),
            self._family.block,
            self._bitnet is not None and self._bitnet.use_rms_norm,
            self._family.embedding,
        )
        if quantization is None and self._names.are_of_bitnet:
            self._bitnet = MASTER_WEIGHTS
        if self._bitnet is not None and config.n_experts:
            raise ConfigError(
                f"{path / CONFIG}: num_experts must be null in a model with BitNet quantisation "
                f"but is {config.n_experts}; choose a model without experts"
            )
        self.config = self._complete(config)
        self._parameters = model_parameters(self.config)
        self._matrices = Matrices(
            self._tensors, self._names, self.config, self._bitnet or self._mlx
        )
        self._check_names()
        self.config = self.config.replace(weights=self._weights())
        self.formats = self._formats()
        self.warnings = self._warnings(fields)

    @property
    def source_type(self) -> str:
        dtype = self._matrices.dtype(_PROJECTION)
        if self._has_masters:
            return f"safetensors, ternary master weights in {dtype}"
        if self._bitnet is not None:
            return "safetensors, packed ternary"
        if self._mlx is not None:
            scale_dtype = self._matrices.scale_dtype(_PROJECTION)
            scales = f", scales in {scale_dtype}" if scale_dtype else ""
            return f"MLX, {self._mlx.default.bits}-bit{scales}"
        return f"safetensors, {'fake-quantised' if self._matrices.formats else 'dense'} {dtype}"

    def text_files(self, tokenizer: Path | None = None) -> TextFiles:
        vocab_size = self.config.vocab_size
        if tokenizer is None:
            return read_directory(self.path, vocab_size)
        return with_tokenizer(read_text_files(self.path, vocab_size), tokenizer, vocab_size)

    def read(self, name: str, shape: tuple[int, ...]) -> Floats | IntegerMatrix:
        if name in self._matrices:
            return self._matrices.read(name)
        theirs = self._names.of_parameter(name)
        values: Floats = read_floats(self._tensors, theirs, shape)
        if self._bitnet is not None and self._scales_bias(name):
            weight = theirs.removesuffix("bias") + "weight"
            values = values * np.float32(read_scale(self._tensors, weight, self._bitnet))
        is_own_norm = name.endswith("norm.weight") and not name.endswith(
            ("_proj.norm.weight", "head.norm.weight")
        )
        if self._family.norm_offset and is_own_norm:
            values = values + np.float32(self._family.norm_offset)
        return values

    @property
    def _has_masters(self) -> bool:
        return self._bitnet is not None and self._bitnet.has_master_weights

    def _complete(self, config: ModelConfig) -> ModelConfig:
        """Return the configuration with the features that follow from tensor names."""
        names, quantization = self._names, self._bitnet
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

    def _scales_bias(self, name: str) -> bool:
        """Whether the scale multiplies a bias too: AutoBitLinear adds it before scaling."""
        quantization = self._bitnet
        return (
            quantization is not None
            and name.endswith(".bias")
            and not (quantization.divides_by_scales or self._has_masters)
            and name.removesuffix("bias") + "weight" in self._matrices.ternary
        )

    def _weights(self) -> WeightKind:
        """Return the most frequent format of projections, or that of training with BitNet."""
        if self._bitnet is not None:
            return "ternary"
        formats = self._matrices.formats
        kinds = Counter(formats[n].weights for n in self._matrices.projections if n in formats)
        weights = kinds.most_common(1)[0][0] if kinds else None
        return weights or "dense"

    def _formats(self) -> dict[str, WeightFormat]:
        """Return the formats of single parameters; float16 tensors stay in float16."""
        formats: dict[str, WeightFormat] = {}
        is_dense = self.config.weights == "dense"
        for name, parameter in self._parameters.items():
            if name in self._matrices.formats:
                format = self._matrices.formats[name]
                if parameter.role in TABLES or format.weights != self.config.weights:
                    formats[name] = format
                continue
            if name in self._matrices.ternary:
                if parameter.role == "head":
                    formats[name] = TERNARY
                continue
            is_f16 = name in self._matrices and self._matrices.dtype(name) == "F16"
            if parameter.role == "projection" and not is_dense:
                formats[name] = F16 if is_f16 else F32
            elif self._bitnet is None and is_f16:
                formats[name] = F16
        return formats

    def _warnings(self, fields: Mapping[str, Any]) -> list[str]:
        warnings = []
        if self._mlx is None and (ignored := ignored_keys(fields.get("quantization_config"))):
            names = ", ".join(shown(name) for name in ignored)
            warnings.append(
                f"{self.path / CONFIG}: quantization_config: {names} ignored, as by transformers"
            )
        if self._has_masters:
            warnings.append(f"{self.path}: {_MASTERS_WARNING}")
        formats = self._matrices.formats
        dense = [name for name in self._matrices.projections if name not in formats]
        if formats and dense:
            warnings.append(
                f"{self.path}: {len(dense)} of {len(self._matrices.projections)} projections are "
                "not integers times scales and are kept as floats, such as "
                f"{self._matrices.tensors(dense[0])[0]}"
            )
        return warnings

    def _check_names(self) -> None:
        """Raise ConfigError unless the checkpoint holds exactly the tensors of the model."""
        stored = self._tensors.names()
        used: dict[str, None] = {}
        for name in self._parameters:
            if name in self._matrices:
                used |= dict.fromkeys(self._matrices.tensors(name))
            else:
                used[self._names.of_parameter(name)] = None
        for name in used:
            if name not in stored:
                raise ConfigError(
                    f"{self.path}: tensor '{name}' is missing; download the checkpoint again"
                )
        embedding = self._names.of_parameter("embedding.weight")
        for name in stored:
            if name in used or name.endswith(_BUFFER) or name.startswith(_APPROXIMATE_HEAD):
                continue
            if name == f"{HEAD}.weight" and self._tensors.are_equal(name, embedding):
                continue
            raise ConfigError(
                f"{self.path}: tensor {shown(name)} must not be there: {CONFIG} describes a model "
                "without it; choose a checkpoint whose configuration and weights agree"
            )
