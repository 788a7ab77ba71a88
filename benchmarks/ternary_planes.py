"""A trained dense model rewritten in ternary weights, as sums of ternary planes.

This is for machines without access to published ternary models. Rounding a dense model to trits
destroys it. But a matrix is close to a sum of R ternary matrices, its digits in base 3. A
Transformer that is R times as wide computes the same with the planes: all activations are stored R
times, and W x = [W_1 ... W_R] [x ... x]. So low-bit kernels run with the activations and logits of
a trained model. R = 1 is rounding to trits.

Letters: C model width   D head size   F feed-forward width   G KV heads   R planes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from low_bit_gguf import TYPES, Array, Tensor, encode, write_gguf

GROUP = 256  # columns with one scale, so that Q2_0 and TQ2_0 store the same weights
_CHUNK = 2048  # rows rounded at a time


@dataclass(frozen=True)
class Planes:
    """R ternary matrices and their scales: codes (R, M, K), scales (R, M, K / GROUP)."""

    codes: Array
    scales: Array

    def sum(self) -> Array:
        """Return the matrix (M, K) that they add up to."""
        weights: Array = (self.codes * self.scales.repeat(GROUP, axis=2)).sum(axis=0)
        return weights


class Source:
    """A llama-shaped GGUF file, decoded by llama.cpp's gguf package, and its matrices' axes."""

    def __init__(self, path: Path, n_planes: int) -> None:
        self.R = n_planes
        reader = gguf.GGUFReader(path)
        self.metadata = dict(_metadata(reader))
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.n_layers = int(self.metadata["block_count"])
        self.C = int(self.metadata["embedding_length"])
        self.F = int(self.metadata["feed_forward_length"])
        self.n_heads = int(self.metadata["attention.head_count"])
        self.G = int(self.metadata["attention.head_count_kv"])
        self.D = self.C // self.n_heads
        self.per_kv = self.n_heads // self.G
        # Padded with zeros to whole groups.
        self.padded_C, self.padded_F = _whole_groups(self.C), _whole_groups(self.F)
        self.padded_per_kv = _whole_groups(self.per_kv * self.D) // self.D

    def read(self, name: str) -> Array:
        """Return a tensor in float32; the head is the embedding unless the file has one."""
        if name == "output.weight" and name not in self._tensors:
            name = "token_embd.weight"
        tensor = self._tensors[name]
        values: Array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        return values

    def padded_columns(self, name: str, weights: Array) -> Array:
        """Return a matrix whose input features are padded to whole groups."""
        if name.endswith("attn_output.weight"):
            heads = weights.reshape(len(weights), self.G, self.per_kv, self.D)
            return _pad(heads, 2, self.padded_per_kv).reshape(len(weights), -1)
        return _pad(weights, 1, _whole_groups(weights.shape[1]))

    def unpadded_columns(self, name: str, weights: Array) -> Array:
        """Undo `padded_columns`."""
        M = len(weights)
        if name.endswith("attn_output.weight"):
            heads = weights.reshape(M, self.G, self.padded_per_kv, self.D)
            return heads[:, :, : self.per_kv].reshape(M, -1)
        return weights[:, : self.F if name.endswith("ffn_down.weight") else self.C]

    def wide_rows(self, name: str, rows: Array) -> Array:
        """Return rows (M, ...) of a matrix, padded and repeated R times as its output is."""
        if name.endswith("attn_q.weight"):  # KV head, plane, head, dimension
            heads = rows.reshape(self.G, 1, self.per_kv, self.D, *rows.shape[1:])
            heads = _pad(heads, 2, self.padded_per_kv).repeat(self.R, axis=1)
            return heads.reshape(-1, *rows.shape[1:])
        if name.endswith(("attn_k.weight", "attn_v.weight", "output.weight")) and not (
            name.endswith("attn_output.weight")
        ):
            return rows
        return np.concatenate([_pad(rows, 0, _whole_groups(len(rows)))] * self.R)

    def wide_columns(self, name: str, parts: Array) -> Array:
        """Return parts (R, M, n) of R planes as one row each: all of a plane, or by KV head."""
        n_parts, M, n = parts.shape
        if name.endswith("attn_output.weight"):
            by_head = parts.reshape(n_parts, M, self.G, -1)
            return by_head.transpose(1, 2, 0, 3).reshape(M, -1)
        return parts.transpose(1, 0, 2).reshape(M, n_parts * n)


def write_models(
    source: Path, n_planes: int, kinds: tuple[str, ...], directory: Path
) -> dict[str, Path]:
    """Write the ternary model in each of `kinds`, and as "F32" in the original shape.

    Return the paths; existing files are kept.
    """
    stem = f"{source.stem}-{n_planes}-planes"
    paths = {kind: directory / f"{stem}-{kind}.gguf" for kind in (*kinds, "F32")}
    if all(path.exists() for path in paths.values()):
        return paths
    model = Source(source, n_planes)
    planes = {
        name: to_planes(model.padded_columns(name, model.read(name)), n_planes)
        for name in _matrices(model)
    }
    for kind, path in paths.items():
        tensors = _narrow(model, planes) if kind == "F32" else _wide(model, planes, kind)
        keys = model.metadata if kind == "F32" else model.metadata | _wide_keys(model)
        write_gguf(path, "llama", keys | {"general.file_type": 0}, dict(tensors))
    return paths


def to_planes(weights: Array, R: int) -> Planes:
    """Round a matrix (M, K) to integers, and write these in base 3 with digits -1, 0 and 1.

    Scales are values of float16.
    """
    M, K = weights.shape
    codes = np.empty((R, M, K), dtype=np.int8)
    scales = np.empty((R, M, K // GROUP), dtype=np.float32)
    for start in range(0, M, _CHUNK):
        rows = slice(start, start + _CHUNK)
        integers, step = _to_integers(weights[rows].reshape(-1, K // GROUP, GROUP), R)
        for plane in range(R):  # the most significant digit first
            place = 3 ** (R - 1 - plane)
            digits = np.rint(integers / place)
            integers -= digits * place
            codes[plane, rows] = digits.reshape(-1, K)
            scales[plane, rows] = (step * place).astype(np.float16)[:, :, 0]
    return Planes(codes, scales)


def _to_integers(weights: Array, R: int) -> tuple[Array, Array]:
    """Return integers of R digits and a step (..., 1) with a small squared error."""
    limit = (3**R - 1) // 2
    widest = np.abs(weights).max(axis=-1, keepdims=True) / limit
    best, least = widest, np.full_like(widest, np.inf)
    for factor in np.linspace(0.2, 1.0, 17, dtype=np.float32):
        step = np.maximum(widest * factor, np.finfo(np.float32).tiny)
        rest = np.clip(np.rint(weights / step), -limit, limit) * step - weights
        error = np.square(rest).sum(axis=-1, keepdims=True)
        best = np.where(error < least, step, best)
        least = np.minimum(error, least)
    integers: Array = np.clip(np.rint(weights / best), -limit, limit)
    return integers, best


def _wide(model: Source, planes: dict[str, Planes], kind: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the ternary model."""
    # RMSNorm divides by the width, which padding changes.
    norm_factor = (model.C / model.padded_C) ** 0.5
    embedding = model.padded_columns("token_embd.weight", _rounded_embedding(model))
    yield "token_embd.weight", _values("F16", np.tile(embedding, (1, model.R)))
    for name in _norms(model):
        weight = _pad(model.read(name) * norm_factor, 0, model.padded_C)
        yield name, _values("F32", np.tile(weight, model.R))
    for name, matrix in planes.items():
        codes = model.wide_columns(name, matrix.codes)
        repeats = GROUP // TYPES[kind].columns
        scales = model.wide_columns(name, matrix.scales.repeat(repeats, axis=2))
        shape = (len(model.wide_rows(name, codes[:, :1])), codes.shape[1])
        yield name, Tensor(kind, shape, partial(_encoded, model, name, kind, codes, scales))


def _encoded(model: Source, name: str, kind: str, codes: Array, scales: Array) -> Array:
    return model.wide_rows(name, encode(kind, codes, scales))


def _narrow(model: Source, planes: dict[str, Planes]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the model whose matrices are the sums of the planes."""
    yield "token_embd.weight", _values("F32", _rounded_embedding(model))
    for name in _norms(model):
        yield name, _values("F32", model.read(name))
    for name, matrix in planes.items():
        weights = model.unpadded_columns(name, matrix.sum())
        yield name, _values("F32", weights)


def _rounded_embedding(model: Source) -> Array:
    return model.read("token_embd.weight").astype(np.float16).astype(np.float32)


def _values(kind: str, values: Array) -> Tensor:
    stored = values.astype(np.float16 if kind == "F16" else np.float32)
    return Tensor(kind, stored.shape, lambda: stored)


def _matrices(model: Source) -> Iterator[str]:
    for i in range(model.n_layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            yield f"blk.{i}.{name}.weight"
    yield "output.weight"


def _norms(model: Source) -> Iterator[str]:
    for i in range(model.n_layers):
        yield from (f"blk.{i}.{name}_norm.weight" for name in ("attn", "ffn"))
    yield "output_norm.weight"


def _wide_keys(model: Source) -> dict[str, Any]:
    eps = "attention.layer_norm_rms_epsilon"
    return {
        "embedding_length": model.R * model.padded_C,
        "feed_forward_length": model.R * model.padded_F,
        "attention.head_count": model.R * model.G * model.padded_per_kv,
        "attention.key_length": model.D,
        "attention.value_length": model.D,
        "rope.dimension_count": model.D,
        eps: float(model.metadata[eps]) * model.C / model.padded_C,
    }


def _metadata(reader: gguf.GGUFReader) -> Iterator[tuple[str, Any]]:
    """Yield the metadata of the file in the form of `write_gguf`."""
    architecture = reader.fields["general.architecture"].contents()
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.")):
            yield name.removeprefix(f"{architecture}."), field.contents()


def _whole_groups(size: int) -> int:
    return -(-size // GROUP) * GROUP


def _pad(values: Array, axis: int, size: int) -> Array:
    """Append zeros to an axis."""
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, size - values.shape[axis])
    return np.pad(values, widths)
