"""The benchmark for figure 1 of the YOCO paper: integration and output. No test checks a speed."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from yocobit import Engine
from yocobit.benchmark.random_model import write_random_model
from yocobit.config import preset
from yocobit.costs import weight_bytes

NANO = preset("nano")


@pytest.fixture(scope="module")
def paper():
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        import paper
    finally:
        sys.path.pop(0)
    return paper


@pytest.fixture(scope="module")
def curves(paper):
    return paper.measure(NANO, (300, 64), "int8", threads=1)


def test_every_stack_is_measured_at_every_length(curves):
    assert [curve.name for curve in curves] == ["Transformer", "YOCO", "YOCO, index:2048"]
    assert curves[0].config.layers == ("full",) * 4
    for curve in curves:
        assert set(curve.chunk_s) == {0, 64, 300} and set(curve.step_s) == {64, 300}
        assert curve.prefill_s(300) > curve.prefill_s(64) > 0
        assert curve.tokens_per_s(64) > 0
        assert [point["tokens"] for point in curve.to_dict((64, 300))["points"]] == [64, 300]


def test_prefill_is_the_area_under_the_times_of_chunks(paper):
    curve = paper.Curve("", NANO, 0, "f16")
    curve.chunk_s = {0: [1.28], 100: [2.56, 9.0, 2.56], 300: [3.84]}
    curve.step_s = {100: [5.0], 300: [7.0, 6.0, 8.0]}

    # 10 ms per token at first, 20 after 100 tokens, 30 after 300; then one decode step.
    assert curve.prefill_s(100) == pytest.approx(100 * 0.015 + 5)
    assert curve.prefill_s(300) == pytest.approx(100 * 0.015 + 200 * 0.025 + 7)
    assert curve.prefill_s(200) is None


@pytest.mark.parametrize("i", range(3))
def test_memory_equals_the_bytes_that_the_engine_reserves(curves, tmp_path, i):
    model = write_random_model(curves[i].config, tmp_path / "model")
    reserved = Engine(model, 1, None).session(320, "int8").memory().total

    found = curves[i].memory_bytes(320) - weight_bytes(model)

    assert found == pytest.approx(reserved, abs=1024)


def test_lengths_that_exceed_memory_have_sizes_but_no_times(paper, monkeypatch):
    monkeypatch.setattr(paper, "available_bytes", lambda: 600_000)
    curves = paper.measure(NANO, (64, 3000), "f32", threads=1)
    transformer, yoco, _ = curves
    console = Console(width=200, record=True, file=io.StringIO())

    paper.print_table(curves, (64, 3000), console)

    assert transformer.memory_bytes(3000) > 1_000_000
    assert transformer.prefill_s(3000) is None and transformer.tokens_per_s(3000) is None
    assert yoco.prefill_s(3000) is None
    assert transformer.prefill_s(64) is not None
    assert "3000" in console.export_text()


@pytest.mark.parametrize(
    ("shape", "lengths", "problem"),
    [
        (NANO.replace(layers=("full",) * 4), (64,), "--shape must have cross layers"),
        (NANO, (0, 5), "--lengths must be at least 1"),
    ],
)
def test_impossible_settings_are_rejected(paper, shape, lengths, problem):
    with pytest.raises(SystemExit, match=problem):
        paper.measure(shape, lengths, "f16", threads=1)


def test_numbers_are_short(paper):
    assert [paper.size(n) for n in (1 << 20, 3 << 10, 1000)] == ["1M", "3K", "1000"]
    assert [paper.duration(s) for s in (None, 0.01234, 90, 1800, 36000)] == [
        "", "0.0123 s", "90 s", "30 min", "10.0 h",
    ]  # fmt: skip


def test_curves_are_drawn_even_without_times(paper, curves, tmp_path):
    untimed = [dataclasses.replace(curve, chunk_s={}, step_s={}) for curve in curves]

    paper.draw(curves, (64, 300), "nano", tmp_path / "paper.png")
    paper.draw(untimed, (64, 300), "nano", tmp_path / "paper.svg")

    assert (tmp_path / "paper.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "paper.svg").read_text()
