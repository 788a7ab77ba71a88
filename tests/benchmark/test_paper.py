"""The paper's figure: what it sums up and says. How fast anything is, no test says."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from yocobit import Engine
from yocobit.benchmark import BenchmarkError, print_paper, run_paper, write_paper_picture
from yocobit.benchmark.paper import Curve
from yocobit.benchmark.paper_report import duration, size
from yocobit.benchmark.random_model import write_random_model
from yocobit.cli import app
from yocobit.config import preset
from yocobit.costs.traffic import weight_bytes

NANO = preset("nano")


@pytest.fixture(scope="module")
def report():
    return run_paper("nano", NANO, lengths=(300, 64), cache="int8", threads=1, repetitions=1)


def test_every_stack_is_measured_at_every_length(report):
    assert [curve.name for curve in report.curves] == ["Transformer", "YOCO", "YOCO, index:2048"]
    assert report.curves[0].config.layers == ("full",) * 4
    for curve in report.curves:
        assert set(curve.chunk_s) == {0, 64, 300} and set(curve.step_s) == {64, 300}
        assert curve.prefill_s(300) > curve.prefill_s(64) > 0
        assert curve.tokens_per_s(64) > 0


def test_prefill_is_the_area_under_the_times_of_chunks():
    curve = Curve("", NANO, 0, "f16")
    curve.chunk_s = {0: [1.28], 100: [2.56, 9.0, 2.56], 300: [3.84]}
    curve.step_s = {100: [5.0], 300: [7.0, 6.0, 8.0]}

    # 10 ms a token at first, 20 after 100 tokens, 30 after 300; then a token with logits.
    assert curve.prefill_s(100) == pytest.approx(100 * 0.015 + 5)
    assert curve.prefill_s(300) == pytest.approx(100 * 0.015 + 200 * 0.025 + 7)
    assert curve.prefill_s(200) is None


@pytest.mark.parametrize("i", range(3))
def test_memory_is_what_the_engine_reserves(report, tmp_path, i):
    curve = report.curves[i]
    model = write_random_model(curve.config, tmp_path / "model")
    reserved = Engine(model, 1, None).session(320, "int8").memory().total

    found = curve.memory_bytes(320) - weight_bytes(model)

    assert found == pytest.approx(reserved, abs=1024)


def test_what_does_not_fit_has_memory_and_no_times(monkeypatch):
    monkeypatch.setattr("yocobit.benchmark.paper.available_bytes", lambda: 600_000)
    report = run_paper("nano", NANO, lengths=(64, 3000), cache="f32", threads=1, repetitions=1)
    first, yoco, _ = report.curves
    console = Console(width=200, record=True, file=io.StringIO())

    print_paper(report, console)

    assert first.memory_bytes(3000) > 1_000_000
    assert first.prefill_s(3000) is None and first.tokens_per_s(3000) is None
    assert yoco.prefill_s(3000) is None
    assert first.prefill_s(64) is not None
    assert "3000" in console.export_text()


def test_command_prints_json_and_draws(tmp_path):
    picture = tmp_path / "paper.png"
    command = [
        "bench",
        "--paper",
        "--shape",
        "nano",
        "-d",
        "64,128",
        "-r",
        "1",
        "-t",
        "1",
        "--json",
    ]

    result = CliRunner().invoke(app, [*command, "--picture", str(picture)])

    assert result.exit_code == 0, result.output
    curves = json.loads(result.stdout)["curves"]
    assert [point["tokens"] for point in curves[1]["points"]] == [64, 128]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--paper", "--shape", "150m"], "--paper needs a shape with cross layers"),
        (["--paper", "--weights", "f16"], "ternary or sign weights"),
        (["--paper", "--cache", "f16,int8"], "one --cache"),
        (["--shape", "nano", "--picture", "a.png"], "--picture goes with --paper"),
        (["--paper", "-p", "512"], "--prompt does nothing with --paper"),
        (["--paper", "-n", "64"], "--gen does nothing with --paper"),
        (["--paper", "-b", "1"], "--batch does nothing with --paper"),
        (["--paper", "--attention", "full"], "--attention does nothing with --paper"),
        (["--paper", "--no-limits"], "--no-limits does nothing with --paper"),
        (["--paper", "--picture", "a.gif"], "--picture must end in .png, .svg, .pdf but is a.gif"),
        (["--paper", "--picture", "no/a.png"], "no/a.png: cannot be written: no is no directory"),
        (["--paper", "--picture", "made.png"], "made.png: cannot be written; choose another"),
    ],
)
def test_options_that_do_not_go_together(options, problem, monkeypatch, tmp_path):
    monkeypatch.setattr("yocobit.benchmark.paper.write_random_model", None)  # nothing is run
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made.png").mkdir()

    result = CliRunner().invoke(app, ["bench", *options])

    assert result.exit_code == 1
    assert problem in str(result.exception)


def test_lengths_are_at_least_one():
    with pytest.raises(BenchmarkError, match="lengths of at least 1"):
        run_paper("nano", NANO, lengths=(0, 5), threads=1)


def test_numbers_are_short():
    assert [size(n) for n in (1 << 20, 3 << 10, 1000)] == ["1M", "3K", "1000"]
    assert [duration(s) for s in (None, 0.01234, 90, 1800, 36000)] == [
        "", "0.0123 s", "90 s", "30 min", "10.0 h",
    ]  # fmt: skip


def test_a_picture_without_times_is_drawn(report, tmp_path):
    curves = [dataclasses.replace(curve, chunk_s={}, step_s={}) for curve in report.curves]
    write_paper_picture(dataclasses.replace(report, curves=curves), tmp_path / "paper.svg")

    assert "<svg" in (tmp_path / "paper.svg").read_text()
