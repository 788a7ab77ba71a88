"""`yocobit plot`: curves equal the records, and invalid input ends in one line."""

import json
import math
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from yocobit import pictures
from yocobit.config import ConfigError
from yocobit.tracking.curves import ceiling, grouped, mean_and_range, read_runs, smooth, unit
from yocobit.tracking.plot import _spread, plot_runs


def record(step: int, **others) -> dict:
    loss = 2 + 4 / step
    return {"step": step, "loss": loss, "lr": 0.1, "grad_norm": 1.0, "tokens": 64 * step,
            "seconds": 0.5 * step, **others}  # fmt: skip


def counts(zeros: int) -> dict:
    return {
        "layers.0.mixer.q_proj": [10, zeros, 30],
        "layers.0.ffn.up_proj": [0, 100, 0],
        "layers.10.mixer.q_proj": [1, 2, 1],
        "shared_kv.k_proj": [1, 0, 1],
    }


@pytest.fixture
def run_dir(tmp_path) -> Path:
    records = [record(step) for step in range(1, 41)]
    for i in (19, 39):
        records[i] |= {"valid_bits_per_byte": 2.0 - i / 100, "weight_counts": counts(60)}
    return write(tmp_path / "run", records)


def write(directory: Path, records: list[dict]) -> Path:
    directory.mkdir(parents=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return directory


def svg_texts(path: Path) -> set[str]:
    tree = ElementTree.parse(path)
    return {"".join(text.itertext()).strip() for text in tree.findall(".//{*}text")}


# ---- reading ----


def test_shares_of_a_layer_count_the_weights_of_all_its_matrices(run_dir):
    (run,) = read_runs([run_dir])
    x, layers = run.layer_shares("tokens")

    assert x.tolist() == [20 * 64, 40 * 64]
    assert list(layers) == ["layer 1", "layer 11", "shared K/V"]
    assert layers["layer 1"].tolist() == [[0.05, 0.8, 0.15]] * 2
    assert layers["layer 11"].tolist() == [[0.25, 0.5, 0.25]] * 2


def test_layer_that_a_record_lacks_is_a_gap(tmp_path):
    first = {"layers.0.mixer.q_proj": [1, 2, 1]}
    records = [
        record(1, weight_counts=first),
        record(2, weight_counts={**first, "shared_kv.k_proj": [1, 0, 1]}),
    ]
    (run,) = read_runs([write(tmp_path / "run", records)])

    x, layers = run.layer_shares("step")
    plot_runs([tmp_path / "run"], tmp_path / "x.svg", "step")  # without an error

    assert x.tolist() == [1, 2]
    np.testing.assert_equal(layers["shared K/V"], [[np.nan] * 3, [0.5, 0, 0.5]])


def test_runs_are_named_by_the_shortest_unique_suffix_of_their_path(tmp_path):
    first, second = (write(tmp_path / name / "run", [record(1)]) for name in "ab")

    assert [run.name for run in read_runs([first])] == ["run"]
    assert [run.name for run in read_runs([first, second])] == ["a/run", "b/run"]


def test_incomplete_last_line_of_a_killed_run_is_ignored(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')

    (run,) = read_runs([run_dir])

    assert len(run.records) == 40


@pytest.mark.parametrize("text, words", [(None, "no such file"), ("", "has no steps yet")])
def test_missing_or_empty_metrics_are_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)

    with pytest.raises(ConfigError, match=f"metrics.jsonl: {words}"):
        plot_runs([tmp_path], tmp_path / "runs.png")


def test_run_given_twice_is_refused(run_dir):
    with pytest.raises(ConfigError, match="given twice"):
        read_runs([run_dir, run_dir / ".." / run_dir.name])


@pytest.mark.parametrize("name", ["runs.html", "runs.gif", "runs"])
def test_unsupported_format_is_refused_in_one_line_that_names_png_and_tensorboard(
    run_dir, tmp_path, name
):
    message = rf"{name}: a plot must end in \.png, \.svg, \.pdf, \.csv; write .* in TensorBoard"

    with pytest.raises(ConfigError, match=message) as refused:
        plot_runs([run_dir], tmp_path / name)

    assert "\n" not in str(refused.value) and not (tmp_path / name).exists()


# ---- smoothing and axes ----


def test_smoothing_keeps_a_constant_and_skips_gaps():
    values = np.full(500, 3.0)
    values[[0, 7, 499]] = math.nan, math.inf, math.nan

    smoothed = smooth(values)

    assert np.isnan(smoothed[[0, 7, 499]]).all()
    np.testing.assert_allclose(np.delete(smoothed, [0, 7, 499]), 3.0, rtol=1e-12)


def test_smoothing_window_is_a_fiftieth_of_the_run():
    step = np.repeat([0.0, 1.0], 1000)
    # An exponential average over n values has moved by 1 - 1/e after n.
    reached = smooth(step)[1000 + 2000 // 50 - 1]

    assert reached == pytest.approx(1 - math.exp(-1), abs=0.01)


def test_ceiling_ignores_the_initial_drop():
    x = np.arange(100.0)
    y = np.where(x < 5, 9.0, 2.0)

    assert ceiling(x, y) == 2.0


@pytest.mark.parametrize(
    "last, label", [(0.5, "seconds"), (119, "seconds"), (120, "minutes"), (7200, "hours")]
)
def test_axes_have_units_with_short_numbers(tmp_path, last, label):
    runs = read_runs([write(tmp_path / "run", [record(1), record(2, seconds=last)])])

    assert unit(runs, "seconds")[1] == label


def test_labels_are_moved_apart_by_the_least_amount():
    assert _spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    np.testing.assert_allclose(_spread([0.5, 0.5, 0.5], 0.1), [0.4, 0.5, 0.6])
    np.testing.assert_allclose(_spread([0.3, 0.5, 0.52], 0.1), [0.3, 0.46, 0.56])


# ---- plots ----


@pytest.mark.parametrize("suffix, start", [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_plot_has_the_format_of_its_suffix(run_dir, tmp_path, suffix, start):
    out = tmp_path / f"runs{suffix}"

    plot_runs([run_dir], out)

    assert out.read_bytes().startswith(start)


def test_plot_labels_runs_baselines_and_layers(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("yocobit.pictures.STYLE", {"svg.fonttype": "none"})
    other = write(tmp_path / "unmeasured", [record(1), record(2, loss=math.nan)])

    plot_runs([run_dir, other], tmp_path / "runs.svg", baselines={"gzip -9": 2.5})

    expected = {"run 1.610", "gzip -9 2.500", "layer 1", "layer 11", "shared K/V"}
    assert expected <= svg_texts(tmp_path / "runs.svg")


@pytest.mark.parametrize(
    "axis, label", [("step", "step"), ("tokens", "thousand tokens"), ("seconds", "seconds")]
)
def test_plot_labels_the_requested_axis(run_dir, tmp_path, monkeypatch, axis, label):
    monkeypatch.setattr("yocobit.pictures.STYLE", {"svg.fonttype": "none"})

    plot_runs([run_dir], tmp_path / "runs.svg", axis)

    assert label in svg_texts(tmp_path / "runs.svg")


def test_plot_has_gaps_at_values_that_are_not_finite(tmp_path):
    records = [record(1), record(2, loss=math.nan), record(3, grad_norm=math.inf), record(4)]

    (run,) = read_runs([write(tmp_path / "run", records)])

    assert np.isnan(run.values("loss")).tolist() == [False, True, False, False]
    assert np.isnan(run.values("grad_norm")).tolist() == [False, False, True, False]
    plot_runs([tmp_path / "run"], tmp_path / "runs.png")


def test_plot_of_a_run_without_finite_losses_raises_no_warning(run_dir, tmp_path):
    diverged = write(tmp_path / "diverged", [record(step, loss=math.nan) for step in (1, 2)])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_runs([diverged, run_dir], tmp_path / "runs.png")

    assert (tmp_path / "runs.png").stat().st_size > 0


@pytest.mark.parametrize("value", [10**400, 1e308, -1e308, True])
def test_values_that_axes_cannot_show_are_gaps(tmp_path, value):
    names = ("loss", "lr", "grad_norm", "tokens", "valid_bits_per_byte")
    records = [record(1), record(2) | dict.fromkeys(names, value), record(3)]
    run_dir = write(tmp_path / "run", records)

    for axis in ("step", "tokens"):
        plot_runs([run_dir], tmp_path / "runs.svg", axis)


# ---- seeds ----


def seed(directory: Path, number: int, shift: float, rate: float = 0.1) -> Path:
    """Write a run of four steps, evaluated twice."""
    records = [record(step) | {"loss": step + shift} for step in range(1, 5)]
    for i in (1, 3):
        records[i]["valid_bits_per_byte"] = 4.0 - i + shift
    path = write(directory / f"seed-{number}", records)
    config = {
        "model": {"d_model": 8},
        "optim": {"learning_rate": rate},
        "run": {"steps": 4, "seed": number},
        "data": {"train": [str(directory)], "context": 16},
    }
    (path / "run.json").write_text(json.dumps({"config": config, "corpus": {"sha256": "a"}}))
    return path


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path):
    seeds = [seed(tmp_path, i, i / 10) for i in range(3)]
    other = seed(tmp_path / "other", 0, 0.0, rate=0.2)

    groups = grouped(read_runs([seeds[0], other, *seeds[1:]]))

    assert [len(group.runs) for group in groups] == [3, 1]
    assert groups[1].runs[0].settings != groups[0].runs[0].settings


def test_a_group_is_named_by_the_common_start_of_its_runs(tmp_path):
    runs = read_runs([seed(tmp_path, i, 0.0) for i in range(2)])

    assert [group.name for group in grouped(runs)] == ["seed (2 seeds)"]
    assert [group.name for group in grouped(runs[:1])] == ["seed-0"]


def test_mean_and_range_are_those_of_the_values_where_all_curves_have_some():
    first = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, math.nan, 3.0, 9.0])
    second = np.array([1.0, 3.0]), np.array([5.0, 3.5])

    x, mean, low, high = mean_and_range([first, second])

    assert x.tolist() == [1.0, 3.0]
    assert (mean.tolist(), low.tolist(), high.tolist()) == ([3.0, 3.25], [1.0, 3.0], [5.0, 3.5])


def test_a_plot_of_seeds_labels_their_mean(tmp_path, monkeypatch):
    monkeypatch.setattr("yocobit.pictures.STYLE", {"svg.fonttype": "none"})
    seeds = [seed(tmp_path, i, i / 10) for i in range(3)]

    plot_runs(seeds, tmp_path / "runs.svg")

    assert "seed (3 seeds) 1.100" in svg_texts(tmp_path / "runs.svg")


def test_axes_show_the_first_evaluation(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(
        "yocobit.tracking.plot._limit_to", lambda _, ceilings: limits.append([*ceilings])
    )
    records = [record(step) for step in range(1, 101)]
    for step, bits in ((2, 7.5), (100, 2.0)):
        records[step - 1]["valid_bits_per_byte"] = bits

    plot_runs([write(tmp_path / "run", records)], tmp_path / "runs.png")

    assert limits[1] == [7.5]


def test_a_run_of_one_step_is_drawn_as_points(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "save", lambda figure, *a, **k: drawn.append(figure))
    run_dir = write(tmp_path / "run", [record(1, valid_bits_per_byte=3.0, weight_counts=counts(9))])

    plot_runs([run_dir], tmp_path / "runs.png")

    axes = [each for part in drawn[0].subfigs for each in part.axes]
    assert len(axes) == 7
    assert all(any(line.get_marker() == "o" for line in each.lines) for each in axes)


# ---- values ----


def test_csv_has_the_values_of_all_steps(tmp_path):
    runs = [seed(tmp_path, i, i / 10) for i in range(2)]

    plot_runs(runs, tmp_path / "curves.csv")

    header, *lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert header == "run,step,tokens,seconds,loss,lr,grad_norm,valid_bits_per_byte"
    assert len(lines) == 8
    assert lines[0] == "seed-0,1,64,0.5,1.0,0.1,1.0,"
    assert lines[5] == "seed-1,2,128,1.0,2.1,0.1,1.0,3.1"


def test_csv_needs_no_matplotlib_and_replaces_only_its_own_file(tmp_path, run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "curves.csv"

    plot_runs([run_dir], out)
    plot_runs([run_dir], out)
    (tmp_path / "mine.csv").write_text("a,b\n")

    with pytest.raises(ConfigError, match=r"mine\.csv"):
        plot_runs([run_dir], tmp_path / "mine.csv")
    assert out.read_text().startswith("run,step,")
