"""How fast the engine will run a model here: its kernels' measured rates, added up.

    step  =  sum over parts of (bytes read / rate of the part's kernel)  +  layers * overhead

The rate of a kernel is measured over as many bytes as go by between two reads of the same byte
(Work.reuse_bytes): the caches of the machine do to it what they do to the engine. What is left of
a layer, norms, rounding, activations and the meetings of threads, is the time of a short model of
the same width less what its kernels take by the same sum. docs/explanation/cost-model.md says more.

Letters: C d_model   F d_ff   D head size   T tokens of a prompt
"""

from __future__ import annotations

import dataclasses
from typing import Any

from yocobit import _native
from yocobit.config import ModelConfig
from yocobit.costs.summary import ENGINE_ROWS, position_bytes
from yocobit.costs.work import (
    HEAD,
    KEYS_VALUES,
    STATES,
    WEIGHTS,
    Work,
    imagined_model,
    without_selection,
    work_of,
)
from yocobit.mixers import parameter_shapes
from yocobit.packing import PackedModel
from yocobit.planning.meter import Meter

_TOKEN_BLOCK = _native.TOKEN_BLOCK  # rows that an int8 GEMM takes together
_PARTITION = _native.KV_SPLIT  # positions of a KV split
_PROBE_VOCABULARY = 256
_NARROW_D_FF = 64
_LARGEST_PROBE = 64 << 20  # bytes
_CHOICE, _REST, _LAST = "choice of blocks", "rest of the layers", "last token"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds by part: of a decode step of all sessions, and of a prefill of one context."""

    decode: dict[str, float]
    prefill: dict[str, float]
    batch: int
    n_tokens: int  # of the prefill
    threads: int
    kernels: str

    @property
    def step_s(self) -> float:
        return sum(self.decode.values())

    @property
    def prefill_s(self) -> float:
        return sum(self.prefill.values())

    @property
    def tokens_per_s(self) -> float:
        return self.batch / self.step_s

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.n_tokens / self.prefill_s

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            **dataclasses.asdict(self),
            "decode_tokens_per_s": self.tokens_per_s,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
        }


def predict(model: PackedModel, work: Work, meter: Meter, kernels: str) -> Prediction:
    """Measure what a model needs of the machine, and add it up."""
    probe, shrunk = probe_model(model)
    times = meter.probe(probe, work.cache, work.batch)
    probe_work = work_of(probe, work.cache, 1, work.batch)
    n_layers, n_early = len(probe.config.layers), probe.config.n_self_layers
    step_rest = times.step_s - sum(_decode(probe, probe_work, meter).values())
    step_rest = max(step_rest, 0.0) / n_layers * shrunk

    prompt_work = work_of(probe, work.cache, times.n_tokens, 1)
    explained = sum(_prefill(probe, prompt_work, meter).values())
    late_rest = step_rest / shrunk * (n_layers - n_early)
    prompt_rest = max(times.prompt_s - explained - late_rest, 0.0)
    token_rest = prompt_rest / n_early / times.n_tokens * shrunk

    layers, early = len(work.config.layers), work.config.n_self_layers
    decode = {**_decode(model, work, meter), _REST: layers * step_rest}
    prefill = _prefill(model, work, meter)
    prefill[_REST] = early * work.context * token_rest + (layers - early) * step_rest
    return Prediction(decode, prefill, work.batch, work.context, meter.threads, kernels)


def probe_model(model: PackedModel) -> tuple[PackedModel, float]:
    """Return a model of one layer of each kind and few tokens, and how often its width goes into
    the model's: 1 unless that would be large."""
    config = model.config
    kinds = tuple(dict.fromkeys(config.layers))
    probe = config.replace(
        layers=kinds, vocab_size=min(_PROBE_VOCABULARY, config.vocab_size), tie_embeddings=False
    )
    while True:
        imagined = imagined_model(probe, model.projection_format.name, model.head_format.name)
        size = max(tensor.end for tensor in imagined.tensors.values())
        narrower = _half_as_wide(probe)
        if size <= _LARGEST_PROBE or narrower is None:
            return imagined, config.d_model / probe.d_model
        probe = narrower


def choosing_model(model: PackedModel) -> PackedModel:
    """Return a model of two layers whose index chooses as the model's does."""
    config = model.config
    return imagined_model(
        config.replace(
            layers=(config.layers[0], "cross"),
            d_ff=_NARROW_D_FF,
            vocab_size=min(_PROBE_VOCABULARY, config.vocab_size),
            tie_embeddings=False,
        )
    )


def _half_as_wide(config: ModelConfig) -> ModelConfig | None:
    """Return a config with half the heads of the same size; None where they are odd."""
    halves = {
        name: getattr(config, name) // 2
        for name in ("d_model", "n_heads", "n_kv_heads", "n_self_heads", "n_self_kv_heads")
    }
    if any(getattr(config, name) % 2 for name in halves) or halves["d_model"] % 8:
        return None
    return config.replace(**halves, d_ff=max(config.d_ff // 16 * 8, 8))


def _decode(model: PackedModel, work: Work, meter: Meter) -> dict[str, float]:
    """Return the seconds of a step's kernels, by part."""
    config, batch = work.config, min(work.batch, ENGINE_ROWS)
    rounds = -(-work.batch // ENGINE_ROWS)  # in which every weight is read
    part = {name: work.part(name) for name in (WEIGHTS, HEAD, KEYS_VALUES, STATES)}
    rates = {
        WEIGHTS: meter.product(
            _stored(model, "weights"), batch, mean_rows(config), config.d_model,
            work.reuse_bytes(part[WEIGHTS]),
        ),
        HEAD: meter.product(
            _stored(model, "head"), batch, _whole_groups(min(config.vocab_size, 4096)),
            config.d_model, work.reuse_bytes(part[HEAD]),
        ),
    }  # fmt: skip
    # The time of selecting blocks is measured as a whole, below.
    attended = without_selection(work)
    part[KEYS_VALUES] = attended.part(KEYS_VALUES)
    if part[KEYS_VALUES].read_bytes:
        n_queries, D = _attention_heads(config)
        reuse = attended.reuse_bytes(part[KEYS_VALUES])
        rates[KEYS_VALUES] = meter.attention(work.cache, n_queries, D, reuse)
    if "retention" in config.layers:
        reuse = work.reuse_bytes(part[STATES])
        rates[STATES] = meter.retention(1, config.self_head_dim, reuse)
    seconds = {name: part[name].read_bytes / rate for name, rate in rates.items()}
    for name in (WEIGHTS, HEAD):
        seconds[name] *= rounds
    if _chooses(config, work.context):
        choice = meter.choice(choosing_model(model), work.cache, work.context)
        seconds[_CHOICE] = work.batch * choice
    return seconds


def _chooses(config: ModelConfig, context: int) -> bool:
    """Whether an index has more positions to choose from than are attended to."""
    return config.has_index and context > config.cross_positions


def _prefill(model: PackedModel, work: Work, meter: Meter) -> dict[str, float]:
    """Return the seconds of the kernels that take in a context: all of it up to the early exit,
    and the last token as in a decode step."""
    config, prefill = work.config, work.prefill
    rows = min(ENGINE_ROWS, prefill.n_tokens)
    shares_rows = rows >= _TOKEN_BLOCK * meter.threads and model.projection_format.is_integer
    n = rows // meter.threads if shares_rows else rows  # tokens that a thread multiplies with
    # Threads that share rows go through all weights each, others through a part of them.
    passes = prefill.n_tokens / rows * (meter.threads if shares_rows else 1)
    rate = meter.product(
        _stored(model, "weights"), n, mean_rows(config), config.d_model, work.early_bytes
    )
    seconds = {WEIGHTS: passes * work.early_bytes / rate}
    if prefill.attention:
        n_queries, D = _attention_heads(config)
        position = position_bytes(1, D, work.cache)
        # Rows next to each other see the same partition, which stays in a near cache.
        rate = meter.attention(work.cache, n_queries, D, _PARTITION * position * meter.threads)
        seconds[KEYS_VALUES] = prefill.attention / (2 * D * n_queries) * position / rate
    if "retention" in config.layers:
        state = 4 * config.d_model * config.self_head_dim
        n = min(rows, ENGINE_ROWS)
        rate = meter.retention(n, config.self_head_dim, state)
        n_states = config.layers.count("retention") * state
        seconds[STATES] = 2 * n_states * prefill.n_tokens / n / rate
    step = _decode(model, work_of(model, work.cache, work.context, 1), meter)
    late = prefill.late - work.config.vocab_size * config.d_model
    body = work.part(WEIGHTS).multiply_adds / work.batch
    seconds[_LAST] = step[HEAD] + step[WEIGHTS] * late / body
    if config.has_cross_decoder:
        seconds[_LAST] += step.get(KEYS_VALUES, 0.0) + step.get(_CHOICE, 0.0)
    return seconds


def mean_rows(config: ModelConfig) -> int:
    """Return the rows M of the mean projection, by the inputs K that each has."""
    shapes = [shape for name, shape in parameter_shapes(config).items() if "_proj." in name]
    return _whole_groups(sum(m * k for m, k in shapes) // sum(k for _, k in shapes))


def _whole_groups(rows: int) -> int:
    return max(rows // 8, 1) * 8


def _attention_heads(config: ModelConfig) -> tuple[int, int]:
    """Return how many queries share a K/V head, and D, of the attention that sees the most."""
    if config.has_cross_decoder or "full" in config.layers:
        return config.n_heads // config.n_kv_heads, config.head_dim
    return config.n_self_heads // config.n_self_kv_heads, config.self_head_dim


def _stored(model: PackedModel, what: str) -> str:
    """Return how weights or head are stored, as native/probes/kernel_rates.cpp names it."""
    format = model.projection_format if what == "weights" else model.head_format
    return format.name
