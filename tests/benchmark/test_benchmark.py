"""yocobit bench: its cases, counts and rates. No test checks a speed.

Letters: G K/V heads   D head size
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import forked
import numpy as np
import pytest
from packed_models import nano
from rich.console import Console

from yocobit import Engine, _native
from yocobit.benchmark import measure, print_report, to_dict
from yocobit.benchmark import random_model as random_models
from yocobit.benchmark.grid import Case, Grid
from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import SHAPES, named_shape
from yocobit.config import preset
from yocobit.costs import multiply_adds, session_bytes, weight_bytes
from yocobit.engine.session import CacheType, Session
from yocobit.errors import UserError
from yocobit.hardware import host, limits
from yocobit.mixers import parameter_shapes

# One layer of each mixer: window, retention, full, cross. D is 16, and 32 in the first two.
MIXED = nano("mixed", "ternary", window=4)
CACHES = get_args(CacheType)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_random_model(MIXED, tmp_path_factory.mktemp("model") / "mixed")


def grid(**changes) -> Grid:
    fields = {
        "prompts": "8", "generations": "4", "depths": "0", "batches": "1", "threads": "1",
        "caches": "f16", "kernels": None, "repetitions": 1, "with_limits": False,
    }  # fmt: skip
    return Grid.parse(**{**fields, **changes})


# ---- sessions filled with noise ----


@pytest.mark.parametrize("cache", CACHES)
def test_a_filled_session_holds_noise_at_every_position(model, cache):
    session = Engine(model, 1, None).session(300, cache)

    _native.fill(session._native, 290)

    assert session.position == 290
    for layer, begin in ((0, 286), (2, 0), (3, 0)):
        keys, values = session.keys_values(layer, begin, 290)
        for found in (keys, values):  # (G, n, D)
            assert np.abs(found).max(axis=2).min() > 0
            assert np.abs(found).max() < 1.2
    assert np.isfinite(session.feed([1, 2, 3])).all()


def test_fill_rejects_more_tokens_than_the_capacity(model):
    session = Engine(model, 1, None).session(8, "f32")

    with pytest.raises(ValueError, match="room for 9 tokens"):
        _native.fill(session._native, 9)
    _native.fill(session._native, 8)
    with pytest.raises(ValueError, match="new session"):
        _native.fill(session._native, 1)


# ---- the grid ----


def test_a_grid_combines_all_values_once():
    cases = list(
        grid(prompts="0,8", generations="4", depths="0,16", batches="1,2", caches="f16,f16").cases()
    )

    assert [case.name for case in cases] == [
        "pp8 @ d0", "tg4 @ d0", "tg4 @ d0 b2",
        "pp8 @ d16", "tg4 @ d16", "tg4 @ d16 b2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": "1e3"}, "--depth must be comma-separated integers but is '1e3'"),
        ({"prompts": "8,"}, "--prompt must be comma-separated integers"),
        ({"batches": "1,0"}, "--batch must be between 1 and 65536 but is 0"),
        ({"threads": "2000"}, "--threads must be between 1 and 1024 but is 2000"),
        ({"repetitions": 0}, "--repetitions must be between 1 and"),
        ({"caches": "f16,q8"}, "--cache must be one of f32, .* but is 'q8'"),
        ({"kernels": "mmx"}, "--kernels must be one of scalar.* but is 'mmx'"),
        ({"prompts": "0", "generations": "0"}, "must not both be 0"),
    ],
)
def test_an_invalid_grid_is_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        grid(**changes)


def test_a_case_that_exceeds_the_available_memory_is_rejected(model):
    case = Case("decode", 4, 1000, 3, "f16")
    needed = weight_bytes(model) + 3 * session_bytes(MIXED, "f16", 1004) + 3 * 512 * 4
    needed += 3 * 4 * 12  # tokens, and the time of each step

    measure.check_memory(model, case, needed)
    measure.check_memory(model, case, None)
    with pytest.raises(UserError, match=r"tg4 @ d1000 b3 .* smaller --depth or --batch"):
        measure.check_memory(model, case, needed - 1)


def test_a_shape_that_exceeds_the_available_memory_is_rejected():
    with pytest.raises(UserError, match=r"needs 13\.8 GB but 1\.0 GB"):
        random_models.check_memory(preset("3b"), "f32", None, 10**9)


def test_yoco_shapes_have_the_size_of_their_transformer():
    config = named_shape("150m-yoco")

    assert config.layers == ("retention",) * 12 + ("cross",) * 12
    assert config.replace(layers=SHAPES["150m"].layers) == SHAPES["150m"]


@pytest.mark.parametrize(
    ("name", "billions", "head_dim"),
    [("2b4t", 2.74, 128), ("falcon3-3b", 3.23, 256), ("llama3-8b", 8.03, 128)],
)
def test_shapes_of_published_models_have_their_parameters(name, billions, head_dim):
    config = named_shape(name)

    n_parameters = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    assert n_parameters / 1e9 == pytest.approx(billions, abs=0.01)
    assert config.head_dim == head_dim


def test_gmu_shapes_replace_every_second_cross_layer():
    assert named_shape("tiny").layers[3:] == ("cross", "cross", "cross")
    assert named_shape("tiny-gmu").layers[3:] == ("cross", "gmu", "cross")
    assert named_shape("150m-yoco-gmu").layers[12:] == ("cross", "gmu") * 6
    with pytest.raises(UserError, match="--shape must be one of"):
        named_shape("150m-gmu")  # has no cross layers


# ---- results ----


def test_percentiles_are_measured_values():
    assert measure.percentiles([*range(100, 0, -1)]) == {
        "p50": 50,
        "p90": 90,
        "p99": 99,
        "max": 100,
    }
    assert measure.percentiles([7.0]) == {"p50": 7, "p90": 7, "p99": 7, "max": 7}


def test_a_repetition_feeds_the_tokens_of_its_case_at_its_depth(model, monkeypatch):
    fed = []

    class Spy(Session):
        def feed(self, tokens, out=None):
            fed.append((self.position, len(tokens)))
            return super().feed(tokens, out)

    monkeypatch.setattr("yocobit.engine.engine.Session", Spy)
    monkeypatch.setattr(measure, "_warm_up", lambda engine: None)

    measure.run(model, grid(generations="3", depths="40", repetitions=2), "mixed")

    assert fed == 2 * [(40, 8), (40, 1), (41, 1), (42, 1)]


def test_a_batch_decodes_one_token_of_each_session_per_step(model, monkeypatch):
    fed = []

    class Spy(Engine):
        def step(self, sessions, tokens, out=None):
            fed.append([session.position for session in sessions])
            return super().step(sessions, tokens, out)

    monkeypatch.setattr(measure, "Engine", Spy)

    measure.run(model, grid(prompts="0", generations="2", batches="3", depths="9"), "mixed")

    assert fed == [[9, 9, 9], [10, 10, 10]]


@pytest.fixture(scope="module")
def report(model):
    cases = grid(batches="1,3", depths="0,40", repetitions=2, with_limits=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "_LARGEST_BUFFER", 1 << 22)  # fewer bytes to read
        return measure.run(model, cases, "mixed")


def test_json_has_these_keys(report):
    fields = json.loads(json.dumps(to_dict(report)))

    assert fields.keys() == {
        "machine", "kernels", "supported_kernels", "other_programs_share", "model", "repetitions",
        "limits", "tests",
    }  # fmt: skip
    assert fields["machine"].keys() == {
        "version", "commit", "cpu", "n_cpus", "features", "caches", "memory_bytes", "system",
    }  # fmt: skip
    assert fields["model"].keys() == {
        "name", "config", "attention", "parameters", "weight_bytes_per_step",
    }  # fmt: skip
    assert fields["limits"][0].keys() == {
        "threads", "dram_bytes_per_s", "last_level_bytes_per_s", "multiply_adds_per_s",
        "instruction", "rounds",
    }  # fmt: skip
    for test in fields["tests"]:
        assert test.keys() == {
            "test", "kind", "n_tokens", "depth", "batch", "threads", "cache", "tokens_per_s",
            "seconds", "ms_per_token", "bytes_per_token", "bytes_per_s", "roof", "roof_share",
            "multiply_adds_per_token", "mixer_multiply_adds_per_token", "multiply_adds_per_s",
            "int8_share", "session_bytes", "peak_bytes",
        }  # fmt: skip


def test_rates_follow_from_seconds_and_traffic(report):
    fields = to_dict(report)
    test = next(t for t in fields["tests"] if t["test"] == "tg4 @ d40 b3")
    bound = fields["limits"][0]
    middle = sum(test["seconds"]) / 2

    assert test["tokens_per_s"]["median"] == pytest.approx(3 * 4 / middle)
    assert test["tokens_per_s"]["min"] == pytest.approx(3 * 4 / max(test["seconds"]))
    # A step is one token of each session; step times sum to the time of the repetitions.
    row = report.rows[fields["tests"].index(test)]
    assert len(row.step_seconds) == 2 * 4
    assert sum(row.step_seconds) == pytest.approx(sum(test["seconds"]))
    assert test["ms_per_token"]["max"] == pytest.approx(1000 * max(row.step_seconds))
    assert test["bytes_per_s"] == pytest.approx(12 * test["bytes_per_token"] / middle)
    assert test["roof"] == "last_level"
    assert test["roof_share"] == test["bytes_per_s"] / bound["last_level_bytes_per_s"]
    best = max(bound["multiply_adds_per_s"].values())
    assert test["int8_share"] == test["multiply_adds_per_s"] / best
    assert test["multiply_adds_per_token"] == multiply_adds(MIXED, 1, 1)


def test_prefill_counts_the_cross_decoder_for_one_token(report):
    test = to_dict(report)["tests"][0]

    assert test["test"] == "pp8 @ d0"
    assert 8 * test["multiply_adds_per_token"] == multiply_adds(MIXED, 8, 1)
    assert test["ms_per_token"] is test["bytes_per_s"] is test["roof"] is None


def test_the_printed_report_cuts_no_line(report):
    console = Console(file=io.StringIO(), width=40)

    print_report(report, console)

    printed = console.file.getvalue()
    assert "…" not in printed
    for word in ("DRAM GB/s", "p99", "peak MB", "tg4 @ d40 b3", report.kernels, report.machine.cpu):
        assert word in printed


def test_the_report_is_printed_in_parts_on_a_narrow_terminal(report):
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)

    print_report(report, console)

    lines = console.file.getvalue().splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    headings = [line.split() for line in lines if line.startswith("test ")]
    assert len(headings) > 1
    assert ["tokens/s" in heading for heading in headings].count(True) == 1
    assert sum(line.startswith("tg4 @ d40 b3 ") for line in lines) == len(headings)


@pytest.mark.parametrize(("share", "is_warned"), [(None, False), (0.1, False), (0.45, True)])
def test_a_report_warns_if_other_programs_used_the_cpus(report, share, is_warned):
    console = Console(file=io.StringIO(), width=100)

    print_report(dataclasses.replace(report, others_share=share), console)

    printed = console.file.getvalue()
    assert ("other programs used 45% of the CPUs: these are not this" in printed) == is_warned
    assert ("other programs" in printed) == is_warned
    assert to_dict(dataclasses.replace(report, others_share=share))["other_programs_share"] == share


def test_a_report_names_the_families_that_the_cpu_can_use(report):
    console = Console(file=io.StringIO(), width=100)

    print_report(report, console)

    families = ", ".join(_native.supported_kernels())
    assert f"kernels     {report.kernels}; this CPU can use {families}" in console.file.getvalue()


def test_a_report_names_the_attention(model):
    report = measure.run(model.attending("index:256"), grid(prompts="0"), "mixed")
    console = Console(file=io.StringIO(), width=200)

    print_report(report, console)

    assert to_dict(report)["model"]["attention"] == "index:256"
    assert "attention index:256" in console.file.getvalue()


# ---- the host ----


def test_limits_are_positive_and_finite(report):
    assert [len(rounds) for rounds in report.limits.values()] == [2]
    for found in report.limits[1]:
        rates = [found.dram_bytes_per_s, found.last_level_bytes_per_s]
        rates += found.multiply_adds_per_s.values()
        assert all(0 < rate < math.inf for rate in rates)
        assert set(found.multiply_adds_per_s) == set(_native.multiply_add_instructions())


def test_the_maximum_of_the_rounds_counts():
    a = limits.Limits(2, 10, 70, {"x": 1, "y": 8})
    b = limits.Limits(2, 20, 60, {"x": 5, "y": 6})

    assert limits.best([a]) == a
    assert limits.best([a, b]) == limits.Limits(2, 20, 70, {"x": 5, "y": 8})
    assert limits.best([a, b]).instruction == "y"


@pytest.mark.parametrize("threads", [1, 2, 48])
def test_buffers_are_16_times_and_half_of_the_last_level_cache(threads):
    caches = host.Caches(l2_bytes=1 << 19, last_bytes=32 << 20, last_shared_by=8)

    dram, last_level = limits.buffer_bytes(threads, caches, 1 << 40)

    assert 15 << 25 < dram * threads <= 16 << 25
    assert last_level == (32 << 20) // min(threads, 8) // 2


def test_buffers_are_a_quarter_of_memory_at_most_and_twice_the_l2_cache_at_least():
    caches = host.Caches(l2_bytes=4 << 20, last_bytes=8 << 20, last_shared_by=8)

    dram, last_level = limits.buffer_bytes(8, caches, 1 << 28)

    assert dram * 8 == 1 << 26
    assert last_level == 8 << 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _native.read_bytes_per_s([], 4096, 1), "1 to 1024 CPUs"),
        (lambda: _native.read_bytes_per_s([0], 4095, 1), "multiple of 4096 but is 4095"),
        (lambda: _native.read_bytes_per_s([0], 4096, 0), "at least one pass"),
        (lambda: _native.multiply_adds_per_s("abacus", [0], 1), "'abacus' is not supported"),
    ],
)
def test_invalid_limit_measurements_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_measuring_limits_does_not_change_the_cpu_affinity():
    before = host.usable_cpus()

    _native.read_bytes_per_s([before[0]], 1 << 16, 1)

    assert host.usable_cpus() == before


def test_caches_are_read_from_sysfs(tmp_path):
    for i, (level, kind, size, cpus) in enumerate(
        [("1", "Data", "32K", "0"), ("2", "Unified", "512K", "0"), ("2", "Instruction", "64K", "0"),
         ("3", "Unified", "16M", "0-3,8-11")]
    ):  # fmt: skip
        index = tmp_path / f"index{i}"
        index.mkdir()
        texts = {"level": level, "type": kind, "size": size, "shared_cpu_list": cpus}
        for name, text in texts.items():
            (index / name).write_text(text + "\n")

    assert host.read_caches(tmp_path) == host.Caches(512 << 10, 16 << 20, 3, 8, True)
    assert not host.read_caches(tmp_path / "missing").is_known


def test_peak_memory_counts_freed_memory_until_it_is_reset():
    host.reset_peak()
    before = host.peak_bytes()

    np.ones(100_000_000, dtype=np.uint8)

    assert host.peak_bytes() - before > 90_000_000
    host.reset_peak()
    assert host.peak_bytes() - before < 50_000_000


def test_peak_memory_does_not_count_memory_freed_before_the_reset():
    host.reset_peak()
    before = host.peak_bytes()
    # Live blocks between the pieces keep the allocator from trimming the heap.
    pieces, between = zip(
        *((bytes(100_000 + i), bytes(1000 + i)) for i in range(2000)), strict=True
    )
    size = sum(map(len, pieces))

    del pieces
    host.reset_peak()

    assert size + len(between) > 200_000_000
    assert host.peak_bytes() - before < 50_000_000


def run_script(name, *arguments, **environment):
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    return subprocess.run(
        [sys.executable, path, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


RUN_SCRIPT = """
import os, runpy, sys
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "script",
    [
        "pytorch",
        "peers",
        "on_chip",
        "serving_peers",
        "plan",
        "train_throughput",
        "serving",
        "versions",
    ],
)
def test_a_benchmark_script_starts(script):
    path = Path(__file__).parents[2] / "benchmarks" / f"{script}.py"

    ended = forked.run(path, "--help", code=RUN_SCRIPT)

    assert ended.returncode == 0, ended.stderr
    assert "--rounds" in ended.stdout


@pytest.mark.parametrize("script", ["peers", "on_chip", "serving_peers"])
def test_a_benchmark_against_llama_cpp_names_the_missing_package(script, tmp_path):
    (tmp_path / "gguf.py").write_text("raise ModuleNotFoundError('no', name='gguf')\n")
    work = tmp_path / "work"
    work.mkdir()

    where = () if script == "serving_peers" else ("--work", str(work))
    ended = run_script(script, "--rounds", "0", *where, PYTHONPATH=str(tmp_path))

    assert ended.stderr.startswith("error: gguf is not installed: ")
    assert ended.stderr.endswith(" install -e '.[peers]'\n")
    assert not list(work.iterdir())  # fails before it creates files
