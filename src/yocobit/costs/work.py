"""What a model keeps in memory and what a token touches of it, by part.

Every count comes from yocobit.costs.traffic: what is no state of retention is keys and values.

Letters: T tokens of a context
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from yocobit.config import BLOCK, ModelConfig
from yocobit.costs.summary import retention_bytes
from yocobit.costs.traffic import (
    cache_bytes,
    mixer_multiply_adds,
    multiply_adds,
    retention_multiply_adds,
    selection_bytes,
    session_bytes,
    touched_bytes,
    weight_bytes,
)
from yocobit.packing import PackedModel, TensorInfo
from yocobit.packing.formats import stored_parameters, tensors_of

WEIGHTS, HEAD, EMBEDDING, KEYS_VALUES, STATES = (
    "weights",
    "head",
    "embedding",
    "keys and values",
    "states",
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of what a model keeps, and of the work of one decode step of all sessions."""

    name: str
    n_bytes: int  # kept
    touched_bytes: int  # that a step reads, each counted once
    read_bytes: int  # by a step: each time that it is read, and written
    multiply_adds: int  # by a step
    is_integer: bool  # int8 products, not floats


@dataclasses.dataclass(frozen=True)
class Prefill:
    """Multiply-adds of taking in the whole context of one session, from its first token."""

    n_tokens: int
    early: int  # with the weights that every token meets: up to the early exit
    late: int  # with the others, of the last token alone
    attention: int  # of the layers before the exit
    retention: int
    is_integer: bool  # of the products with weights

    @property
    def multiply_adds(self) -> int:
        return self.early + self.late + self.attention + self.retention


@dataclasses.dataclass(frozen=True)
class Work:
    """What a model does at a context with a number of sessions."""

    config: ModelConfig
    cache: str
    context: int
    batch: int
    parts: tuple[Part, ...]
    prefill: Prefill
    early_bytes: int  # of the weights that every token of a prompt meets

    @property
    def n_bytes(self) -> int:
        return sum(part.n_bytes for part in self.parts)

    @property
    def read_bytes(self) -> int:
        return sum(part.read_bytes for part in self.parts)

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    @property
    def cache_bytes(self) -> int:
        return self.part(KEYS_VALUES).n_bytes

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes by which one session grows with one token."""
        far = 1 << 20  # where an index's work space has grown
        now, then = (session_bytes(self.config, self.cache, n) for n in (far, far + BLOCK))
        return (then - now) // BLOCK  # an index grows by blocks

    def reuse_bytes(self, part: Part) -> int:
        """Return the bytes that go by between two reads of the same byte of a part.

        Every byte of what is read as often goes by, and of what is read less often as much less:
        the shared keys and values come again, at every cross layer, after all of themselves and the
        weights of one layer. A cache of that size, whose oldest bytes go first, keeps the part. The
        blocks that an index chooses are taken for the same in the next step.
        """
        kept = [each for each in self.parts if each.name != EMBEDDING]
        own = max(_reads(part), 1.0)
        return math.ceil(sum(each.touched_bytes * min(1.0, _reads(each) / own) for each in kept))


def _reads(part: Part) -> float:
    """Return how often a step reads the mean byte of what it reads of a part."""
    if not part.touched_bytes:
        return 0.0
    written_too = 2 if part.name == STATES else 1  # where they were read
    return part.read_bytes / part.touched_bytes / written_too


def imagined_model(
    config: ModelConfig, weights: str | None = None, head: str | None = None
) -> PackedModel:
    """Return the packed model of a shape as if it were on disk: nothing is read or written.

    `weights` and `head` name formats, the model's defaults unless given.
    """
    parameters = stored_parameters(config, weights, head)
    tensors: dict[str, TensorInfo] = {}
    end = 0
    for name, spec in tensors_of(parameters).items():
        begin, end = end, end + spec.size_bytes
        tensors[name] = TensorInfo(spec.dtype, spec.shape, begin, end)
    return PackedModel(config, Path(), Path(), parameters, tensors, {})


def work_of(model: PackedModel, cache: str, context: int, batch: int) -> Work:
    """Count the work of the last token of `context`, in each of `batch` sessions."""
    config = model.config
    last = context - 1
    is_integer = model.projection_format.is_integer
    head = _table_bytes(model.tensors, head_name(model))
    embedding = _table_bytes(model.tensors, "embedding.weight")
    is_tied = head_name(model) == "embedding.weight"
    body = weight_bytes(model) - head
    rows = batch * _row_bytes(model)

    head_products = config.vocab_size * config.d_model
    body_products = multiply_adds(config, 1, 1) - head_products
    early = multiply_adds(config, 1, 0)
    states, state_products = retention_bytes(config), retention_multiply_adds(config)

    parts = (
        Part(WEIGHTS, body, body, body, batch * body_products, is_integer),
        Part(HEAD, head, head, head, batch * head_products, model.head_format.is_integer),
        # A tied head is the embedding: it is kept once.
        Part(EMBEDDING, 0 if is_tied else embedding, rows, rows, 0, False),
        Part(
            KEYS_VALUES,
            batch * (session_bytes(config, cache, context) - states),
            batch * touched_bytes(config, cache, context),
            batch * (cache_bytes(config, cache, last, 1) - 2 * states),
            batch * (mixer_multiply_adds(config, last, 1, 1) - state_products),
            False,
        ),
        Part(
            STATES,
            batch * states,
            batch * states,
            batch * 2 * states,
            batch * state_products,
            False,
        ),
    )
    retention = context * state_products
    prefill = Prefill(
        n_tokens=context,
        early=context * early,
        late=multiply_adds(config, context, 1) - context * early,
        attention=mixer_multiply_adds(config, 0, context, 0) - retention,
        retention=retention,
        is_integer=is_integer,
    )
    return Work(config, cache, context, batch, parts, prefill, body * early // body_products)


def without_selection(work: Work) -> Work:
    """Return the work without what an index reads to select blocks."""
    read, touched = selection_bytes(work.config, work.cache, work.context)
    parts = (
        dataclasses.replace(
            part,
            read_bytes=part.read_bytes - work.batch * read,
            touched_bytes=part.touched_bytes - work.batch * touched,
        )
        if part.name == KEYS_VALUES
        else part
        for part in work.parts
    )
    return dataclasses.replace(work, parts=tuple(parts))


def head_name(model: PackedModel) -> str:
    """Return the tensor that logits are computed with."""
    return "head.weight" if "head.weight" in model.tensors else "embedding.weight"


def _table_bytes(tensors: Mapping[str, TensorInfo], name: str) -> int:
    """Return the bytes of the embedding or the head, its scales included."""
    found = (tensors.get(name), tensors.get(f"{name}_scale"))
    return sum(tensor.end - tensor.begin for tensor in found if tensor)


def _row_bytes(model: PackedModel) -> int:
    return _table_bytes(model.tensors, "embedding.weight") // model.config.vocab_size
