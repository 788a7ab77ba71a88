"""The work of one decode step and of a prefill, by part of the model: the input of a roofline.

The counts come from memory.py and traffic.py.

Letters: C d_model   T positions
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from yocobit._native import BLOCK_POSITIONS
from yocobit.config import ModelConfig
from yocobit.costs.memory import (
    cache_bytes,
    parameter_bytes,
    recurrent_bytes,
    step_weight_bytes,
    weight_bytes,
)
from yocobit.costs.traffic import (
    attention_multiply_adds,
    kv_traffic,
    multiply_adds,
    recurrent_multiply_adds,
    unique_kv_bytes,
)
from yocobit.packing import PackedModel, TensorInfo
from yocobit.packing.formats import WeightFormat
from yocobit.packing.stored_parameters import stored_parameters, tensors_of

# The parts of a model.
WEIGHTS, HEAD, EMBEDDING, KV_CACHE, RECURRENT_STATE = (
    "weights",
    "head",
    "embedding",
    "KV cache",
    "recurrent state",
)
_LARGE_CONTEXT = 1 << 20  # above it, the workspace of an index no longer grows


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a model in memory, and its work in one decode step of the batch."""

    name: str
    n_bytes: int  # in memory
    unique_bytes: int  # read by a step, each byte counted once
    traffic_bytes: int  # reads and writes of a step
    multiply_adds: int  # of a step
    is_integer: bool  # int8 arithmetic, otherwise float

    @property
    def reads_per_step(self) -> float:
        """Average number of times that a step reads each unique byte."""
        if not self.unique_bytes:
            return 0.0
        n_accesses = 2 if self.name == RECURRENT_STATE else 1  # read and written
        return self.traffic_bytes / self.unique_bytes / n_accesses


@dataclasses.dataclass(frozen=True)
class Prefill:
    """Multiply-adds of the prefill of one session's context."""

    n_tokens: int
    early: int  # with weights before the early exit, for all tokens
    late: int  # with the other weights, for the last token
    attention: int  # before the early exit
    recurrent: int
    is_integer: bool  # int8 arithmetic of weights

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds in total."""
        return self.early + self.late + self.attention + self.recurrent


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a model at a context length and batch size."""

    config: ModelConfig
    cache: str
    context: int
    batch: int
    parts: tuple[Part, ...]
    prefill: Prefill
    early_bytes: int  # of the weights before the early exit

    @property
    def n_bytes(self) -> int:
        """Bytes of all parts in memory."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def traffic_bytes(self) -> int:
        """Memory traffic of a decode step."""
        return sum(part.traffic_bytes for part in self.parts)

    def part(self, name: str) -> Part:
        """Return a part by name."""
        return next(part for part in self.parts if part.name == name)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV caches, with the index."""
        return self.part(KV_CACHE).n_bytes

    @property
    def state_bytes(self) -> int:
        """Bytes of the recurrent states."""
        return self.part(RECURRENT_STATE).n_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights, head and embedding."""
        return self.n_bytes - self.cache_bytes - self.state_bytes

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes by which one session grows per token, its index included."""
        n = 8 * BLOCK_POSITIONS  # an index grows by blocks, its workspace by eight blocks
        now, later = (
            cache_bytes(self.config, self.cache, tokens)
            for tokens in (_LARGE_CONTEXT, _LARGE_CONTEXT + n)
        )
        return (later - now) // n

    def reuse_distance(self, part: Part) -> int:
        """Return the bytes read between two reads of the same byte of a part.

        An LRU cache of this size holds the part. A step reads some parts several times: every cross
        layer reads the shared KV cache, so its reuse distance is its own size plus the weights of
        one layer. Assumes that an index selects the same blocks in the next step, and that later
        steps read the experts that this one does not.
        """
        own = max(part.reads_per_step, 1.0)
        unread = part.n_bytes - part.unique_bytes if part.name == WEIGHTS else 0
        return unread + math.ceil(
            sum(
                each.unique_bytes * min(1.0, each.reads_per_step / own)
                for each in self.parts
                if each.name != EMBEDDING
            )
        )


def shape_only_model(
    config: ModelConfig,
    weights: str | None = None,
    head: str | None = None,
    formats: Mapping[str, WeightFormat] | None = None,
) -> PackedModel:
    """Return a packed model without files: configuration and tensor sizes.

    `weights`, `head` and `formats` are as in stored_parameters.
    """
    parameters = stored_parameters(config, weights, head, formats)
    tensors: dict[str, TensorInfo] = {}
    end = 0
    for name, spec in tensors_of(parameters).items():
        begin, end = end, end + spec.size_bytes
        tensors[name] = TensorInfo(spec.dtype, spec.shape, begin, end)
    return PackedModel(config, Path(), Path(), parameters, tensors, {})


def work_of(
    model: PackedModel, cache: str, context: int, batch: int, *, selection: bool = True
) -> Work:
    """Count the work of decoding the last token of a context in each session, and of a prefill.

    With `selection`, reads and multiply-adds of the index count too.
    """
    config = model.config
    head = parameter_bytes(model, head_name(model))
    body, read = weight_bytes(model) - head, step_weight_bytes(model, batch) - head
    body_multiply_adds = multiply_adds(config, 1, 1) - config.vocab_size * config.d_model
    early = multiply_adds(config, 1, 0)
    is_integer = model.projection_format.is_integer
    prefill = Prefill(
        n_tokens=context,
        early=context * early,
        late=multiply_adds(config, context, 1) - context * early,
        attention=attention_multiply_adds(config, 0, context, 0),
        recurrent=context * recurrent_multiply_adds(config),
        is_integer=is_integer,
    )
    parts = (
        Part(WEIGHTS, body, read, read, batch * body_multiply_adds, is_integer),
        *_table_parts(model, batch),
        *_session_parts(config, cache, context, batch, selection),
    )
    early_bytes = body * early // body_multiply_adds
    return Work(config, cache, context, batch, parts, prefill, early_bytes)


def head_name(model: PackedModel) -> str:
    """Return the name of the parameter that computes the logits."""
    return "head.weight" if "head.weight" in model.tensors else "embedding.weight"


def _table_parts(model: PackedModel, batch: int) -> tuple[Part, Part]:
    """Return head and embedding; a tied embedding counts once, as the head."""
    head = parameter_bytes(model, head_name(model))
    embedding = parameter_bytes(model, "embedding.weight")
    rows = batch * (embedding // model.config.vocab_size)
    is_tied = head_name(model) == "embedding.weight"
    head_multiply_adds = batch * model.config.vocab_size * model.config.d_model
    return (
        Part(HEAD, head, head, head, head_multiply_adds, model.head_format.is_integer),
        Part(EMBEDDING, 0 if is_tied else embedding, rows, rows, 0, False),
    )


def _session_parts(
    config: ModelConfig, cache: str, context: int, batch: int, selection: bool
) -> tuple[Part, Part]:
    """Return KV cache and recurrent state of the batch."""
    last, states = context - 1, batch * recurrent_bytes(config)
    return (
        Part(
            KV_CACHE,
            batch * cache_bytes(config, cache, context),
            batch * unique_kv_bytes(config, cache, context, selection),
            batch * kv_traffic(config, cache, last, 1, selection),
            batch * attention_multiply_adds(config, last, 1, 1, selection),
            False,
        ),
        Part(
            RECURRENT_STATE,
            states,
            states,
            2 * states,
            batch * recurrent_multiply_adds(config),
            False,
        ),
    )
