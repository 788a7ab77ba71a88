"""yocobit plan: bytes counted by hand, chips, monotonic bounds, and predictions.

No test checks a speed: rates come from a calibration with fixed rates.

Letters: C d_model   F d_ff   D head size
"""

from __future__ import annotations

import dataclasses
import io
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from packed_models import nano
from published_decoders import CASES
from rich.console import Console

from yocobit import Engine, _native
from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import named_shape
from yocobit.config import SELF_ATTENTION_DEFAULTS, preset
from yocobit.costs import decode_bytes
from yocobit.costs.memory import projection_bytes
from yocobit.costs.work import (
    EMBEDDING,
    HEAD,
    KV_CACHE,
    RECURRENT_STATE,
    WEIGHTS,
    shape_only_model,
    work_of,
)
from yocobit.errors import UserError
from yocobit.hardware.datasheets import Level, Machine
from yocobit.packing.formats import F16
from yocobit.planning import NAMED, PlanRequest, draw_plan, make_plan, open_shape, print_plan
from yocobit.planning.calibration import ShallowTimes
from yocobit.planning.plan import INT8_PER_FLOAT, calibrate
from yocobit.planning.prediction import mean_rows, predict, selecting_model, shallow_model
from yocobit.planning.report import number, seconds, size
from yocobit.planning.roofline import bound, chips_needed
from yocobit.planning.variants import variants

# Two retention and two cross layers: V 512, C 64, F 128, 4/2 heads of 16, retention heads of 32.
NANO = nano("yoco-gret", "ternary")
GROQ = NAMED["groq"]
SMALL_CACHE = Machine(
    name="test",
    title="a cache and a memory",
    levels=(Level("cache", 10**6, 100e9, "test"), Level("memory", 10**9, 10e9, "test")),
    int8_per_s=1e12,
    float_per_s=1e11,
    rates_source="test",
)


def nano_work(cache="int8", context=100, batch=1, config=NANO, **options):
    return work_of(shape_only_model(config), cache, context, batch, **options)


# ---- bytes ----


def test_bytes_of_parts_equal_a_count_by_hand():
    # A row of up to 128 columns is one block of 32 bytes; each projection has a float32 scale.
    ffn = 128 * 32 * 2 + 64 * 32 + 3 * 4 + 4 * (64 + 128)  # two norms, one of F
    retention = 5 * (64 * 32 + 4) + 4 * 2 * 64 + 2 * 4 * 64  # decays in float32, two norms
    cross = 2 * (64 * 32 + 4) + 2 * 4 * 64
    shared = 2 * (32 * 32 + 4) + 4 * 64
    table = 512 * 64 + 512 * 4
    position = 2 * 2 * (16 + 4)  # int8 with a float32 scale for each head
    states = 2 * 4 * 2 * 32 * 32

    work = nano_work("int8", context=100, batch=3)

    kept = {part.name: part.n_bytes for part in work.parts}
    assert kept == {
        WEIGHTS: 2 * retention + 2 * cross + 4 * ffn + shared + 4 * 64,
        HEAD: table,
        EMBEDDING: table,
        KV_CACHE: 3 * 100 * position,
        RECURRENT_STATE: 3 * states,
    }
    # Both cross layers read every position.
    assert work.part(KV_CACHE).traffic_bytes == 3 * 2 * 100 * position
    assert work.part(RECURRENT_STATE).traffic_bytes == 3 * 2 * states
    assert work.part(EMBEDDING).traffic_bytes == 3 * (64 + 4)
    assert work.cache_bytes_per_token == position


def test_multiply_adds_of_a_step_equal_a_count_by_hand():
    ffn = 3 * 64 * 128
    weights = 2 * (5 * 64 * 64 + 2 * 64) + 2 * 2 * 64 * 64 + 4 * ffn + 2 * 32 * 64

    work = nano_work(context=100, batch=2)

    assert work.part(WEIGHTS).multiply_adds == 2 * weights
    assert work.part(HEAD).multiply_adds == 2 * 512 * 64
    assert work.part(KV_CACHE).multiply_adds == 2 * 2 * 2 * 64 * 100


def test_sliding_window_caches_count_as_kv_cache():
    config = nano("yoco-swa", "ternary", window=4)  # two layers, 2/2 heads of 32 in windows
    ring, position = 2 * 2 * (32 + 4), 2 * 2 * (16 + 4)

    work = nano_work(context=100, batch=3, config=config)

    # Ring buffers of whole tiles, with room for the 100 tokens of a session.
    assert work.part(KV_CACHE).n_bytes == 3 * (100 * position + 2 * 128 * ring)
    assert work.part(KV_CACHE).unique_bytes == 3 * (100 * position + 2 * 4 * ring)
    assert work.part(KV_CACHE).traffic_bytes == 3 * (2 * 100 * position + 2 * 4 * ring)
    assert work.part(RECURRENT_STATE).n_bytes == work.part(RECURRENT_STATE).traffic_bytes == 0
    assert work.cache_bytes_per_token == position


@pytest.mark.parametrize("stack", ["yoco-gret", "yoco-swa", "transformer", "mixed"])
@pytest.mark.parametrize("weights", ["ternary", "dense"])
def test_traffic_of_parts_sums_to_that_of_bench(tmp_path, stack, weights):
    model = write_random_model(nano(stack, weights, window=4), tmp_path / "model")
    shape_only = shape_only_model(model.config)

    for each in (model, shape_only):
        work = work_of(each, "f16", 50, 3)
        assert work.traffic_bytes == decode_bytes(model, "f16", 49, 1, 3)


def test_an_index_reads_bounds_and_candidates_once_and_selected_blocks_per_layer():
    position, bounds = 2 * 2 * (16 + 4), 2 * 2 * 2 * 16  # bounds: float16, two for each key
    n_blocks, seen = 1000 // 32, 128 - 16  # the last block is half full, on average
    candidates = seen + 3 * 32  # four other blocks than the first and the last two, not one
    full, index, selected = (
        nano_work(context=1000, batch=3, config=NANO.attending(to), selection=counts).part(KV_CACHE)
        for to, counts in (("full", True), ("index:128", True), ("index:128", False))
    )

    assert selected.traffic_bytes == 3 * 2 * seen * position
    selection = n_blocks * bounds + candidates * position
    assert index.traffic_bytes == selected.traffic_bytes + 3 * selection
    assert selected.unique_bytes == 3 * seen * position
    assert index.unique_bytes == 3 * selection
    assert full.unique_bytes == full.n_bytes < index.n_bytes
    assert selected.multiply_adds == 3 * 2 * 2 * 64 * seen
    assert index.multiply_adds == selected.multiply_adds + 3 * 2 * 64 * (n_blocks + candidates)


def test_an_index_reads_nothing_while_attention_is_full():
    index, full = (nano_work(context=96, config=NANO.attending(to)) for to in ("index:128", "full"))

    assert index.traffic_bytes == full.traffic_bytes
    assert index.cache_bytes > full.cache_bytes


def test_cache_bytes_per_token_include_the_index():
    work = nano_work(config=NANO.attending("index:128"))

    # Bounds, four scores and two candidate numbers per block of 32 positions.
    assert work.cache_bytes_per_token == 2 * 2 * (16 + 4) + (128 + 4 * (4 + 2)) // 32


def test_a_tied_head_is_stored_once():
    tied = nano_work(config=NANO.replace(tie_embeddings=True))

    assert tied.part(EMBEDDING).n_bytes == 0
    assert tied.part(HEAD).n_bytes == nano_work().part(EMBEDDING).n_bytes


def test_prefill_skips_the_layers_after_the_early_exit():
    work = nano_work(context=1000)
    everything = work.part(WEIGHTS).multiply_adds + work.part(HEAD).multiply_adds

    assert work.prefill.early + work.prefill.late < 1000 * everything / 1.5
    assert work.prefill.early == 1000 * (2 * (5 * 64 * 64 + 2 * 64 + 3 * 64 * 128) + 2 * 32 * 64)
    assert work.prefill.attention == 0
    assert 0 < work.early_bytes < work.part(WEIGHTS).n_bytes


def test_prefill_attention_of_a_transformer_is_quadratic():
    short, long = (
        nano_work(context=n, config=nano("transformer", "ternary")).prefill.attention
        for n in (100, 200)
    )

    assert short == 4 * 2 * 64 * (100 * 101 // 2)
    assert 3.9 < long / short < 4.1


def test_caches_grow_with_context_and_batch_and_weights_do_not():
    one, longer, more = nano_work(context=100), nano_work(context=200), nano_work(batch=4)

    assert longer.cache_bytes == 2 * one.cache_bytes
    assert more.cache_bytes == 4 * one.cache_bytes
    assert more.part(RECURRENT_STATE).n_bytes == 4 * one.part(RECURRENT_STATE).n_bytes
    for name in (WEIGHTS, HEAD, EMBEDDING):
        assert one.part(name) == dataclasses.replace(
            longer.part(name), traffic_bytes=one.part(name).traffic_bytes
        )
        assert more.part(name).n_bytes == one.part(name).n_bytes


# ---- chips and bounds ----


@pytest.mark.parametrize(
    ("n_bytes", "chips"), [(1, 1), (230_000_000, 1), (230_000_001, 2), (2_300_000_001, 11)]
)
def test_chips_needed_hold_the_bytes(n_bytes, chips):
    assert chips_needed(n_bytes, GROQ) == chips


def test_reuse_distance_of_the_shared_cache_is_its_size_and_a_share_of_the_weights():
    work = nano_work(context=1 << 16)
    step = work.n_bytes - work.part(EMBEDDING).n_bytes

    assert work.reuse_distance(work.part(WEIGHTS)) == step
    # Two cross layers; the tolerance covers the traffic of states.
    expected = work.cache_bytes + (step - work.cache_bytes) / 2
    assert work.reuse_distance(work.part(KV_CACHE)) == pytest.approx(expected, rel=1e-3)


def test_reuse_distance_of_a_transformers_cache_is_the_whole_step():
    work = nano_work(context=1000, config=nano("transformer", "ternary"))
    step = work.n_bytes - work.part(EMBEDDING).n_bytes

    assert work.reuse_distance(work.part(KV_CACHE)) == pytest.approx(step, rel=1e-2)


def test_reuse_distance_does_not_count_positions_without_attention():
    work = nano_work("f16", 1 << 20, config=NANO.attending("index:2048"), selection=False)
    part = work.part(KV_CACHE)

    assert work.reuse_distance(part) < part.unique_bytes + work.part(WEIGHTS).n_bytes
    assert part.unique_bytes < part.n_bytes / 400


def test_a_part_is_placed_in_the_fastest_level_that_holds_its_reuse_distance():
    def levels(context):
        work = nano_work("f16", context)
        return {place.part.name: place.level.name for place in bound(work, SMALL_CACHE).places}

    # 128 bytes per position and 0.15 MB of weights and states; two cross layers, so half per read.
    assert set(levels(6_000).values()) == {"cache"}
    assert levels(7_000)[KV_CACHE] == "cache"
    assert levels(7_000)[WEIGHTS] == "memory"
    assert levels(8_000)[KV_CACHE] == "memory"


def test_a_level_without_a_rate_uses_the_rate_of_the_next_level():
    places = bound(nano_work(), NAMED["h100"]).places

    assert {place.level.name for place in places} == {"L2"}
    assert {place.read_from.name for place in places} == {"HBM3"}


def test_step_time_is_the_larger_of_memory_and_arithmetic_time():
    work = nano_work("f16", context=100)
    matmuls = work.part(WEIGHTS).multiply_adds + work.part(HEAD).multiply_adds
    mixers = work.part(KV_CACHE).multiply_adds + work.part(RECURRENT_STATE).multiply_adds

    limit = bound(work, SMALL_CACHE)

    assert limit.memory_s == pytest.approx(work.traffic_bytes / 100e9)
    assert limit.arithmetic_s == pytest.approx(matmuls / 1e12 + mixers / 1e11)
    assert limit.step_s == max(limit.memory_s, limit.arithmetic_s)
    assert limit.tokens_per_s == 1 / limit.step_s


@pytest.mark.parametrize(
    "machine", [*NAMED.values(), SMALL_CACHE], ids=lambda machine: machine.name
)
def test_bounds_are_monotonic(machine):
    config = named_shape("150m-yoco")

    def limit(context=4096, batch=1, cache="f16", on=machine):
        return bound(nano_work(cache, context, batch, config), on)

    base = limit()
    faster = dataclasses.replace(
        machine,
        levels=tuple(
            dataclasses.replace(level, bytes_per_s=level.bytes_per_s and 2 * level.bytes_per_s)
            for level in machine.levels
        ),
        int8_per_s=2 * machine.int8_per_s,
        float_per_s=2 * machine.float_per_s,
    )
    assert limit(on=faster).tokens_per_s == pytest.approx(2 * base.tokens_per_s)
    assert limit(on=faster).prefill_s == pytest.approx(base.prefill_s / 2)
    assert limit(context=8192).step_s > base.step_s
    assert limit(context=8192).prefill_s > base.prefill_s
    assert limit(batch=8).step_s > base.step_s
    assert limit(batch=8).tokens_per_s > base.tokens_per_s
    assert limit(cache="int4").memory_s < base.memory_s
    attending = bound(nano_work("f16", 4096, config=config.attending("index:512")), machine)
    assert attending.memory_s < base.memory_s
    assert attending.arithmetic_s < base.arithmetic_s


def test_several_chips_multiply_throughput_but_not_step_time():
    work = nano_work("int4", 1 << 20, config=preset("3b").replace(weights="ternary"))

    limit = bound(work, GROQ)

    assert limit.chips == -(-work.n_bytes // 230_000_000) > 1
    assert limit.memory_s == pytest.approx(work.traffic_bytes / 80e12)
    fields = limit.to_dict()
    assert fields["decode_tokens_per_s_at_once"] == limit.chips * limit.tokens_per_s
    assert fields["prefill_tokens_per_s_at_once"] == limit.chips * limit.prefill_tokens_per_s


def test_variants_have_the_same_width_and_depth_and_differ_by_one_change():
    config = named_shape("150m")

    found = variants(config, "int8")

    stacks = [(set(v.model.config.layers), v.model.config.weights, v.cache) for v in found]
    assert stacks == [
        ({"full"}, "dense", "f16"),
        ({"retention", "cross"}, "dense", "f16"),
        ({"full"}, "ternary", "f16"),
        ({"retention", "cross"}, "ternary", "int4"),
    ]
    for each in found:
        assert len(each.model.config.layers) == 24
        assert each.model.config.d_model == config.d_model
    assert found[0].model.tensors["layers.0.mixer.q_proj.weight"].dtype == "F16"


def test_a_model_with_a_cross_decoder_keeps_its_layers():
    config = nano("mixed", "ternary")

    assert variants(config, "int8")[3].model.config.layers == config.layers


def test_variants_have_full_attention():
    found = variants(NANO.attending("index:128"), "int8")

    assert {each.model.config.attention for each in found} == {None, "full"}


@pytest.mark.parametrize("name", CASES)
def test_a_published_model_has_variants_without_the_features_of_self_attention(name):
    config = CASES[name].config

    found = variants(config, "int8")

    assert found[0].model.config.features() == config.features()
    decoder_decoder = found[3].model.config
    assert set(decoder_decoder.layers) == {"retention", "cross"}
    assert decoder_decoder.d_model == config.d_model
    assert not decoder_decoder.features().keys() & SELF_ATTENTION_DEFAULTS.keys()


def test_variants_have_fewer_heads_if_the_width_is_not_divisible_into_them():
    config = CASES["llama"].config.replace(n_heads=6, n_kv_heads=3)

    decoder_decoder = variants(config, "int8")[1].model.config

    assert (decoder_decoder.n_heads, decoder_decoder.n_kv_heads) == (4, 2)


def test_every_figure_of_a_named_machine_has_a_source():
    for machine in NAMED.values():
        for source in (machine.rates_source, *(level.source for level in machine.levels)):
            assert source.startswith("https://")


# ---- predictions ----


class FixedRates:
    """A calibration with fixed rates."""

    def __init__(self, threads=1, times=None):
        self.threads = threads
        self.times = times or ShallowTimes(0.0, 0.0, 128)
        self.calls = []

    def gemm(self, format, n, m, k, n_bytes):
        self.calls.append(("gemm", format, n, n_bytes))
        return 1e9

    def attention(self, cache, n_queries, head_dim, n_bytes):
        self.calls.append(("attention", cache, n_queries, n_bytes))
        return 2e9

    def retention(self, n, head_dim, n_bytes):
        self.calls.append(("retention", n, n_bytes))
        return 4e9

    def selection(self, model, cache, context):
        self.calls.append(("selection", model.config, cache, context))
        return 1e-3

    def shallow_times(self, model, cache, batch):
        return self.times


def predicted(calibration, context=1000, batch=1, cache="int8", config=NANO):
    model = shape_only_model(config)
    work = work_of(model, cache, context, batch)
    return work, predict(model, work, calibration, "scalar")


@pytest.mark.parametrize("name", CASES)
def test_a_published_model_has_a_prediction_and_a_shallow_model_that_runs(name, tmp_path):
    config = CASES[name].config

    _, prediction = predicted(FixedRates(), config=config)
    shallow, _ = shallow_model(shape_only_model(config))

    assert prediction.step_s > 0
    assert set(shallow.config.layers) == set(config.layers)
    written = write_random_model(shallow.config, tmp_path / "model", shallow.projection_format.name)
    assert Engine(written, 1, None).logits([1, 2]).shape == (2, 256)


def test_projections_of_several_formats_are_read_at_the_rate_of_each():
    class Rates(FixedRates):
        def gemm(self, format, n, m, k, n_bytes):
            return 1e9 if format == "f16" else 4e9

    config = CASES["bitnet"].config
    model = shape_only_model(config, formats={"layers.0.ffn.down_proj.weight": F16})
    work = work_of(model, "f16", 10, 1)

    prediction = predict(model, work, Rates(), "scalar")

    sizes = projection_bytes(model)
    seconds = sizes["f16"] / 1e9 + sizes["ternary"] / 4e9
    rest = work.part(WEIGHTS).traffic_bytes / sum(sizes.values())  # norms, at the mean rate
    assert prediction.decode[WEIGHTS] == pytest.approx(rest * seconds)


def test_predicted_step_is_the_sum_of_traffic_by_rate():
    work, prediction = predicted(FixedRates(), batch=2)

    read = {part.name: part.traffic_bytes for part in work.parts}
    expected = (
        (read[WEIGHTS] + read[HEAD]) / 1e9 + read[KV_CACHE] / 2e9 + read[RECURRENT_STATE] / 4e9
    )
    assert prediction.step_s == pytest.approx(expected)
    assert prediction.tokens_per_s == pytest.approx(2 / expected)


def test_rates_are_measured_at_the_reuse_distance():
    calibration = FixedRates()
    work, _ = predicted(calibration, context=1 << 20)

    step = work.reuse_distance(work.part(WEIGHTS))
    assert ("gemm", "ternary", 1, step) in calibration.calls
    assert ("gemm", "int8", 1, step) in calibration.calls
    assert ("attention", "int8", 2, work.reuse_distance(work.part(KV_CACHE))) in calibration.calls


def test_prediction_reads_selected_blocks_per_layer_and_selects_once():
    index, calibration = NANO.attending("index:128"), FixedRates()

    _, selecting = predicted(calibration, batch=3, config=index)

    without = work_of(shape_only_model(index), "int8", 1000, 3, selection=False)
    without = {part.name: part.traffic_bytes for part in without.parts}
    read_s = (without[WEIGHTS] + without[HEAD]) / 1e9 + without[KV_CACHE] / 2e9
    read_s += without[RECURRENT_STATE] / 4e9
    full = predicted(FixedRates(), batch=3, config=NANO)[1]
    late = {"last token", "block selection"}
    early_s = {name: s for name, s in selecting.prefill.items() if name not in late}
    assert selecting.decode["block selection"] == pytest.approx(3e-3)
    assert selecting.step_s == pytest.approx(read_s + 3e-3)
    assert early_s == {name: s for name, s in full.prefill.items() if name not in late}
    one = predicted(FixedRates(), config=index)[1].decode
    last_s = one[HEAD] + one[KV_CACHE] + 1e-3
    assert last_s < selecting.prefill["last token"] < last_s + one[WEIGHTS]
    (config, cache, context) = next(
        each[1:] for each in calibration.calls if each[0] == "selection"
    )
    assert (config.layers, config.attention) == (("retention", "cross"), "index:128")
    assert (config.n_heads, config.n_kv_heads, config.d_model) == (4, 2, 64)
    assert (cache, context) == ("int8", 1000)


def test_prediction_has_no_selection_while_attention_is_full():
    calibration = FixedRates()

    _, prediction = predicted(calibration, context=128, config=NANO.attending("index:128"))

    assert "block selection" not in prediction.decode
    assert "selection" not in {each[0] for each in calibration.calls}


def test_layer_overhead_of_the_shallow_model_is_added_for_every_layer():
    model = shape_only_model(NANO)
    shallow, width_ratio = shallow_model(model)
    kernels = predicted(FixedRates(), context=1, config=shallow.config)[1].step_s

    _, plain = predicted(FixedRates())
    _, slower = predicted(FixedRates(times=ShallowTimes(kernels + 2e-3, 0.0, 128)))

    assert shallow.config.layers == ("retention", "cross")
    assert width_ratio == 1
    # A millisecond for each of the shallow model's two layers; the model has four.
    assert slower.step_s - plain.step_s == pytest.approx(4e-3)


def test_prefill_is_predicted_from_the_layers_before_the_early_exit():
    work, prediction = predicted(FixedRates(), context=1024)

    weights = 8 * work.early_bytes / 1e9  # 128 tokens at a time
    states = 8 * 2 * (2 * 4 * 64 * 32) / 4e9
    assert prediction.prefill[WEIGHTS] == pytest.approx(weights)
    assert prediction.prefill[RECURRENT_STATE] == pytest.approx(states)
    assert KV_CACHE not in prediction.prefill
    step = prediction.decode[HEAD] + prediction.decode[KV_CACHE] + prediction.decode[WEIGHTS]
    assert prediction.prefill["last token"] < step
    assert predicted(FixedRates(), context=1024, batch=3)[1].prefill == prediction.prefill


def test_threads_that_divide_rows_read_all_weights_each():
    one, two = FixedRates(1), FixedRates(2)

    alone = predicted(one, context=1024)[1].prefill[WEIGHTS]
    shared = predicted(two, context=1024)[1].prefill[WEIGHTS]

    assert ("gemm", "ternary", 128) in {each[:3] for each in one.calls}
    assert ("gemm", "ternary", 64) in {each[:3] for each in two.calls}
    assert shared == pytest.approx(2 * alone)


def test_threads_divide_features_of_weights_only_matrices():
    config = NANO.replace(weights="ternary_g128")
    one, two = FixedRates(1), FixedRates(2)

    alone = predicted(one, context=1024, config=config)[1].prefill[WEIGHTS]
    shared = predicted(two, context=1024, config=config)[1].prefill[WEIGHTS]

    assert ("gemm", "ternary_g128", 128) in {each[:3] for each in two.calls}
    assert shared == pytest.approx(alone)


def test_the_shallow_model_of_a_wide_model_is_narrow():
    model = shape_only_model(preset("3b"))

    shallow, width_ratio = shallow_model(model)

    assert width_ratio == 3072 / shallow.config.d_model > 1
    assert shallow.config.head_dim == 128
    assert sum(t.end - t.begin for t in shallow.tensors.values()) <= 64 << 20


def test_mean_rows_are_weighted_by_input_features():
    config = nano("retention", "ternary")
    rows = 2 * (5 * 64 * 64 + 2 * 64 + 3 * 64 * 128) / (2 * (6 * 64 + 2 * 64 + 128))

    assert mean_rows(config) == rows // 8 * 8


# ---- rates of single kernels ----


@pytest.mark.parametrize("kernels", _native.supported_kernels())
def test_every_kernel_has_a_rate(kernels):
    a8, a16 = ("ternary", "sign"), ("ternary_g64", "sign_g128", "odd_g128", "ternary_row_a16")
    for stored in (*a8, *a16, "int8", "int4", "f16", "f32"):
        for n in (1, 33):
            assert _native.gemm_bytes_per_s(kernels, stored, n, 16, 72, [0], 4096, 1) > 0
    for cache in ("f32", "f16", "int8", "int4"):
        assert _native.attention_bytes_per_s(kernels, cache, 3, 24, [0, 0], 4096, 1) > 0
    assert _native.retention_bytes_per_s(kernels, 5, 16, [0], 4096, 1) > 0


@pytest.mark.parametrize(
    ("measure", "arguments", "message"),
    [
        ("gemm_bytes_per_s", ("int3", 1, 8, 64), "weight format must be one of .* but is 'int3'"),
        ("gemm_bytes_per_s", ("ternary", 1, 9, 64), "m must be a multiple of 8"),
        ("attention_bytes_per_s", ("f16", 1, 12), "head_dim must be a multiple of 8"),
        ("retention_bytes_per_s", (0, 16), "n must be between 1"),
    ],
)
def test_invalid_rate_measurements_are_rejected(measure, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(_native, measure)("scalar", *arguments, [0], 4096, 1)


# ---- output ----


def request(**changes):
    fields = {"context": 4096, "batch": 1, "cache": "f16", "machine": "groq"}
    return PlanRequest(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 0}, "--context must be between 1 and 4294967296 but is 0"),
        ({"batch": 1 << 17}, "--batch must be between 1 and 65536 but is 131072"),
        ({"cache": "q8"}, "--cache must be one of f32, .* but is 'q8'"),
        ({"machine": "tpu"}, "--machine must be one of here, groq, h100 but is 'tpu'"),
        ({"threads": 1}, "--threads requires --machine here"),
        ({"kernels": "avx2"}, "--kernels requires --machine here"),
        ({"machine": "here", "kernels": "mmx"}, "--kernels must be one of scalar.* but is 'mmx'"),
        ({"machine": "here", "threads": 0}, "--threads must be between 1 and 1024 but is 0"),
    ],
)
def test_invalid_requests_for_a_plan_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        request(**changes)


@pytest.mark.parametrize("machine", NAMED)
def test_a_report_fits_a_hundred_columns(machine):
    name, model = open_shape(None, "3b", None, None)
    plan = make_plan(name, model, request(machine=machine, context=1 << 20, cache="int4"))
    console = Console(file=io.StringIO(), width=100)

    print_plan(plan, console)

    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("this model" in line for line in lines) == 2


@pytest.mark.parametrize(("share", "is_warned"), [(None, False), (0.1, False), (0.45, True)])
def test_a_report_warns_if_other_programs_used_the_cpus(share, is_warned):
    name, model = open_shape(None, "nano", None, None)
    plan = make_plan(name, model, request(context=100))
    plan = dataclasses.replace(plan, kernels="scalar", others_share=share)
    console = Console(file=io.StringIO(), width=100)

    print_plan(plan, console)

    printed = console.file.getvalue()
    assert ("other programs used 45% of the CPUs: these are not this" in printed) == is_warned
    assert ("other programs" in printed) == is_warned
    assert f"scalar; this CPU can use {', '.join(_native.supported_kernels())}" in printed
    assert plan.to_dict()["other_programs_share"] == share


def test_block_selection_is_measured_on_this_host():
    calibration = calibrate(request(machine="here", threads=1))
    model = selecting_model(open_shape(None, "nano", None, None, "index:128")[1])

    assert calibration.selection(model, "int4", 4096) > 0


def test_block_selection_is_measured_once(monkeypatch):
    calibration = calibrate(request(machine="here", threads=1))
    model = selecting_model(open_shape(None, "nano", None, None, "index:128")[1])
    measured = []
    monkeypatch.setattr(type(calibration), "_selection", lambda *a: measured.append(a[1:]) or 1e-3)

    for context in (4096, 4096, 8192):
        assert calibration.selection(model, "int4", context) == 1e-3

    assert measured == [(model, "int4", 4096), (model, "int4", 8192)]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_report_lists_traffic_per_token_by_level_for_every_stack(monkeypatch, batch):
    monkeypatch.setitem(NAMED, "groq", SMALL_CACHE)
    name, model = open_shape(None, "nano", None, None)
    plan = make_plan(name, model, request(batch=batch, context=8_000 // batch))
    console = Console(file=io.StringIO(), width=100)

    print_plan(plan, console)

    heading, *lines = console.file.getvalue().split("traffic per token")[1].splitlines()
    assert heading.split() == ["from", "cache", "from", "memory"]
    for row, line in zip(plan.rows, lines, strict=False):
        by_level = row.bound.traffic_by_level()
        read = [size(by_level[name] / batch) for name in ("cache", "memory") if name in by_level]
        assert " ".join(line.split()).endswith(" ".join(read))
        assert sum(by_level.values()) == row.work.traffic_bytes


def test_a_stack_that_exceeds_this_host_has_no_traffic(monkeypatch):
    name, model = open_shape(None, "nano", None, None)
    plan = make_plan(name, model, request(context=1 << 20))
    here = dataclasses.replace(SMALL_CACHE, name="here", levels=SMALL_CACHE.levels[:1])
    rows = [dataclasses.replace(r, bound=bound(r.work, here)) for r in plan.rows]
    plan = dataclasses.replace(plan, machine=here, own=rows[-1], others=tuple(rows[:-1]))
    console = Console(file=io.StringIO(), width=100)

    print_plan(plan, console)

    assert all(row.bound.chips > 1 for row in rows)
    assert "Transformer" not in console.file.getvalue().split("traffic per token")[1]


@pytest.mark.parametrize(("batch", "unit"), [(1, "token"), (3, "step")])
def test_a_picture_labels_traffic_per_token_or_per_step_of_a_batch(
    tmp_path, monkeypatch, batch, unit
):
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    name, model = open_shape(None, "nano", None, None)
    plan = make_plan(name, model, request(batch=batch))

    draw_plan(plan, tmp_path / "plan.svg")

    keys_values = plan.own.work.part(KV_CACHE)
    svg = (tmp_path / "plan.svg").read_text()
    traffic = f"traffic {size(keys_values.traffic_bytes)} per {unit}"
    assert f"{size(keys_values.n_bytes)}, {traffic}" in svg


def test_every_kernel_familys_int8_instruction_has_a_float_rate():
    kernels = Path(__file__).resolve().parents[2] / "native" / "kernels"
    probes = "\n".join(file.read_text() for file in kernels.glob("*/probes.h"))

    instructions = re.findall(r'\.instruction = "(.+?)"', probes)

    assert set(instructions) == set(INT8_PER_FLOAT)


def test_a_plan_never_imports_torch():
    code = (
        "import sys; from yocobit.planning import *; "
        "name, model = open_shape(None, 'nano', None, None); "
        "make_plan(name, model, PlanRequest(context=9, batch=1, cache='f16', machine='groq')); "
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (size(999), "999 B"), (size(1000), "1 kB"), (size(999_600), "1 MB"),
        (size(1.5e15), "1,500 TB"), (number(99.97), "100"), (number(0.5), "0.5"),
        (seconds(2e-6), "2 us"), (seconds(0.9996), "1 s"), (seconds(60), "60 s"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_and_a_unit(shown, text):
    assert shown == text
