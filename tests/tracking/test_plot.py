"""`yocobit plot`: curves equal the records, and invalid input ends in one line."""

import json
import math
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from yocobit.config import ConfigError
from yocobit.tracking.curves import ceiling, read_runs, smooth, unit
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
    message = rf"{name}: a plot must end in \.png, \.svg, \.pdf; write a PNG .* in TensorBoard"

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
