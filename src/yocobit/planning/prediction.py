"""Predicts the engine's speed on this host from the measured rates of its kernels.

    step  =  sum over parts of (memory traffic / rate of the part's kernel)  +  layers * overhead

A kernel's rate is measured over a buffer of the part's reuse distance, so that it reads from the
memory level that holds the part. The overhead of a layer (norms, quantisation, activations,
barriers) is the measured time of a shallow model of the same width, minus the same sum for that
model. See docs/explanation/cost-model.md.

Letters: C d_model   F d_ff   D head size   T tokens of a prompt
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from yocobit._native import KV_SPLIT, TOKEN_BLOCK
from yocobit.config import ModelConfig
from yocobit.costs.memory import (
    CACHE_FORMATS,
    active_share,
    is_of_experts,
    projection_bytes,
    recurrent_bytes,
)
from yocobit.costs.work import (
    HEAD,
    KV_CACHE,
    RECURRENT_STATE,
    WEIGHTS,
    Work,
    shape_only_model,
    work_of,
)
from yocobit.mixers import FEED_FORWARDS, Heads, layer_mixers, parameter_shapes
from yocobit.packing import PackedModel
from yocobit.packing.formats import INT8_PER_TOKEN
from yocobit.planning.calibration import Calibration

_VOCABULARY = 256
_NARROW_D_FF = 64
_LARGEST_SHALLOW = 64 << 20  # bytes of a shallow model
_SELECTION, _OVERHEAD, _LAST = "block selection", "layer overhead", "last token"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds by part, for a decode step of the batch and for the prefill of one context."""

    decode: dict[str, float]
    prefill: dict[str, float]
    batch: int
    n_tokens: int  # of the prefill
    threads: int
    kernels: str

    @property
    def step_s(self) -> float:
        """Time of a decode step."""
        return sum(self.decode.values())

    @property
    def prefill_s(self) -> float:
        """Time of the prefill."""
        return sum(self.prefill.values())

    @property
    def tokens_per_s(self) -> float:
        """Decode speed of the batch."""
        return self.batch / self.step_s

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prefill speed."""
        return self.n_tokens / self.prefill_s

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            **dataclasses.asdict(self),
            "decode_tokens_per_s": self.tokens_per_s,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
        }


def predict(model: PackedModel, work: Work, calibration: Calibration, kernels: str) -> Prediction:
    """Predict the speed of a model: calibrate, then sum the times of its parts."""
    shallow, width_ratio = shallow_model(model)
    times = calibration.shallow_times(shallow, work.cache, work.batch)
    shallow_work = work_of(shallow, work.cache, 1, work.batch)
    n_layers, n_early = len(shallow.config.layers), shallow.config.n_self_layers
    step_rest = times.step_s - sum(_decode(shallow, shallow_work, calibration).values())
    step_rest = max(step_rest, 0.0) / n_layers * width_ratio

    prompt_work = work_of(shallow, work.cache, times.n_tokens, 1)
    explained = sum(_prefill(shallow, prompt_work, calibration).values())
    late_rest = step_rest / width_ratio * (n_layers - n_early)
    prompt_rest = max(times.prompt_s - explained - late_rest, 0.0)
    token_rest = prompt_rest / n_early / times.n_tokens * width_ratio

    layers, early = len(work.config.layers), work.config.n_self_layers
    decode = {**_decode(model, work, calibration), _OVERHEAD: layers * step_rest}
    prefill = _prefill(model, work, calibration)
    prefill[_OVERHEAD] = early * work.context * token_rest + (layers - early) * step_rest
    return Prediction(decode, prefill, work.batch, work.context, calibration.threads, kernels)


def shallow_model(model: PackedModel) -> tuple[PackedModel, float]:
    """Return a model with one layer per mixer and a small vocabulary, and the ratio of the widths.

    The ratio is 1 unless a model of full width would be too large.
    """
    config = model.config
    kinds = tuple(dict.fromkeys(config.layers))
    shallow = config.replace(
        layers=kinds,
        nope_layers=(),
        vocab_size=min(_VOCABULARY, config.vocab_size),
        tie_embeddings=False,
    )
    while True:
        shape_only = shape_only_model(shallow, model.projection_format.name, model.head_format.name)
        size = max(tensor.end for tensor in shape_only.tensors.values())
        narrower = _half_as_wide(shallow)
        if size <= _LARGEST_SHALLOW or narrower is None:
            return shape_only, config.d_model / shallow.d_model
        shallow = narrower


def selecting_model(model: PackedModel) -> PackedModel:
    """Return a model of two layers with the same index."""
    config = model.config
    return shape_only_model(
        config.replace(
            layers=(config.layers[0], "cross"),
            d_ff=_NARROW_D_FF,
            vocab_size=min(_VOCABULARY, config.vocab_size),
            tie_embeddings=False,
        )
    )


def _half_as_wide(config: ModelConfig) -> ModelConfig | None:
    """Return a config with half as many heads of the same size; None if a head count is odd."""
    halves = {
        name: getattr(config, name) // 2
        for name in ("d_model", "n_heads", "n_kv_heads", "n_self_heads", "n_self_kv_heads")
    }
    if any(getattr(config, name) % 2 for name in halves) or halves["d_model"] % 8:
        return None
    return config.replace(**halves, d_ff=max(config.d_ff // 16 * 8, 8))


def _decode(model: PackedModel, work: Work, calibration: Calibration) -> dict[str, float]:
    """Return the seconds of a step's kernels, by part."""
    config = work.config
    max_batch = FEED_FORWARDS[config.ffn].max_batch_tokens
    batch = min(work.batch, max_batch)
    n_passes = -(-work.batch // max_batch)  # forward passes; each reads every weight
    C, head_rows = config.d_model, _whole_groups(min(config.vocab_size, 4096))
    selects = _selects(config, work.context)
    # The selection time includes reading the candidates.
    attended = work_of(model, work.cache, work.context, work.batch, selection=False)
    part = {name: attended.part(name) for name in (WEIGHTS, HEAD, KV_CACHE, RECURRENT_STATE)}
    distance = {
        name: (attended if name == KV_CACHE and selects else work).reuse_distance(part[name])
        for name in part
    }
    head = model.head_format.name
    rates = {
        WEIGHTS: _projection_rate(model, calibration, batch, distance[WEIGHTS]),
        HEAD: calibration.gemm(head, batch, head_rows, C, distance[HEAD]),
    }
    if part[KV_CACHE].traffic_bytes:
        n_queries, D = _attention_heads(config)
        rates[KV_CACHE] = calibration.attention(work.cache, n_queries, D, distance[KV_CACHE])
    if part[RECURRENT_STATE].traffic_bytes:
        rates[RECURRENT_STATE] = calibration.retention(
            1, config.self_head_dim, distance[RECURRENT_STATE]
        )
    seconds = {name: part[name].traffic_bytes / rate for name, rate in rates.items()}
    for name in (WEIGHTS, HEAD):
        seconds[name] *= n_passes
    if selects:
        selection = calibration.selection(selecting_model(model), work.cache, work.context)
        seconds[_SELECTION] = work.batch * selection
    return seconds


def _selects(config: ModelConfig, context: int) -> bool:
    """Return whether the index selects: the context has more positions than it attends to."""
    return config.has_index and context > config.cross_positions


def _prefill(model: PackedModel, work: Work, calibration: Calibration) -> dict[str, float]:
    """Return the seconds of a prefill's kernels, by part.

    The layers before the early exit run for all tokens; the later layers run for the last token, as
    in a decode step.
    """
    config, prefill = work.config, work.prefill
    rows = min(FEED_FORWARDS[config.ffn].max_batch_tokens, prefill.n_tokens)
    threads = calibration.threads
    is_int8 = model.projection_format.activations is INT8_PER_TOKEN
    divides_rows = rows >= TOKEN_BLOCK * threads and is_int8
    n = rows // threads if divides_rows else rows  # tokens in a thread's GEMM
    # If threads divide the rows, each reads all weights; otherwise, each reads a share.
    n_passes = prefill.n_tokens / rows * (threads if divides_rows else 1)
    rate = _projection_rate(model, calibration, n, work.early_bytes)
    seconds = {WEIGHTS: n_passes * work.early_bytes / rate}
    if prefill.attention:
        n_queries, D = _attention_heads(config)
        position = 2 * CACHE_FORMATS[work.cache].row_bytes(D)
        # Consecutive rows attend to the same split, which stays in the L1 or L2 cache.
        split = KV_SPLIT * position * threads
        rate = calibration.attention(work.cache, n_queries, D, split)
        seconds[KV_CACHE] = prefill.attention / (2 * D * n_queries) * position / rate
    if states := recurrent_bytes(config):
        largest = max(mixer.state_bytes(config) for mixer in layer_mixers(config))
        rate = calibration.retention(rows, config.self_head_dim, largest)
        seconds[RECURRENT_STATE] = 2 * states * prefill.n_tokens / rows / rate
    step = _decode(model, work_of(model, work.cache, work.context, 1), calibration)
    late = prefill.late - config.vocab_size * config.d_model
    body = work.part(WEIGHTS).multiply_adds / work.batch
    seconds[_LAST] = step[HEAD] + step[WEIGHTS] * late / body
    if config.has_cross_decoder:
        seconds[_LAST] += step.get(KV_CACHE, 0.0) + step.get(_SELECTION, 0.0)
    return seconds


def _projection_rate(model: PackedModel, calibration: Calibration, n: int, n_bytes: int) -> float:
    """Return the bytes per second of GEMMs with n tokens, over the formats of the projections.

    Each active expert multiplies its share of the tokens.
    """
    config = model.config
    rows, C = mean_rows(config), config.d_model
    share = active_share(config, n)
    n_of_expert = max(round(n * config.n_active_experts / (share * max(config.n_experts, 1))), 1)
    total, seconds = 0.0, 0.0
    for of_experts, part, n_tokens in ((False, 1.0, n), (True, share, n_of_expert)):
        for format, size in projection_bytes(model, of_experts).items():
            total += part * size
            seconds += part * size / calibration.gemm(format, n_tokens, rows, C, n_bytes)
    return total / seconds


def mean_rows(config: ModelConfig) -> int:
    """Return the mean of the projections' output features M, weighted by input features K.

    Each expert is a matrix of its own.
    """
    n_weights, columns = 0, 0
    for name, shape in parameter_shapes(config).items():
        if name.endswith("_proj.weight"):
            n_weights += math.prod(shape)
            n_matrices = config.n_experts if is_of_experts(config, name) else 1
            columns += n_matrices * shape[1]
    return _whole_groups(n_weights // columns)


def _whole_groups(rows: int) -> int:
    return max(rows // 8, 1) * 8


def _attention_heads(config: ModelConfig) -> tuple[int, int]:
    """Return query heads per KV head, and D, of the layers that attend to the most positions."""
    mixers = [mixer for mixer in layer_mixers(config) if mixer.kv_cache != "none"]
    mixers.sort(key=lambda mixer: mixer.kv_cache == "ring")  # sliding windows last
    heads: list[Heads] = [mixer.heads(config) for mixer in mixers if mixer.heads]
    return heads[0].n_heads // heads[0].n_kv_heads, heads[0].head_dim
