"""`yocobit plot`: what is drawn is what was recorded, and what cannot be drawn is said."""

import dataclasses
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from yocobit.config import ConfigError
from yocobit.tracking.curves import ceiling, read_runs, smooth, unit
from yocobit.tracking.page import write_page
from yocobit.tracking.picture import _spread
from yocobit.tracking.plot import plot_runs


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


def page_data(page: Path) -> dict:
    found = re.search(r'<script id="data" [^>]*>(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(found[1])


# ---- what is read ----


def test_shares_of_a_layer_are_of_the_weights_of_all_its_matrices(run_dir):
    (run,) = read_runs([run_dir])
    x, layers = run.layer_shares("tokens")

    assert x.tolist() == [20 * 64, 40 * 64]
    assert list(layers) == ["layer 1", "layer 11", "shared K/V"]
    assert layers["layer 1"].tolist() == [[0.05, 0.8, 0.15]] * 2
    assert layers["layer 11"].tolist() == [[0.25, 0.5, 0.25]] * 2


def test_runs_are_named_by_as_much_of_their_path_as_tells_them_apart(tmp_path):
    first, second = (write(tmp_path / name / "run", [record(1)]) for name in "ab")

    assert [run.name for run in read_runs([first])] == ["run"]
    assert [run.name for run in read_runs([first, second])] == ["a/run", "b/run"]


def test_the_line_that_a_killed_run_was_writing_is_left_out(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')

    (run,) = read_runs([run_dir])

    assert len(run.records) == 40


@pytest.mark.parametrize("text, words", [(None, "no such file"), ("", "holds no steps yet")])
def test_metrics_that_are_absent_or_empty_are_one_clear_error(tmp_path, text, words):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)

    with pytest.raises(ConfigError, match=f"metrics.jsonl: {words}"):
        plot_runs([tmp_path], tmp_path / "runs.png")


def test_a_run_named_twice_is_refused(run_dir):
    with pytest.raises(ConfigError, match="named twice"):
        read_runs([run_dir, run_dir / ".." / run_dir.name])


def test_another_kind_of_file_is_refused_with_the_kinds_there_are(run_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"runs.gif: a plot must end in one of .html, .png"):
        plot_runs([run_dir], tmp_path / "runs.gif")


# ---- what is reckoned ----


def test_smoothing_keeps_a_constant_and_passes_over_gaps():
    values = np.full(500, 3.0)
    values[[0, 7, 499]] = math.nan, math.inf, math.nan

    smoothed = smooth(values)

    assert np.isnan(smoothed[[0, 7, 499]]).all()
    np.testing.assert_allclose(np.delete(smoothed, [0, 7, 499]), 3.0, rtol=1e-12)


def test_smoothing_is_over_a_share_of_the_run():
    step = np.repeat([0.0, 1.0], 1000)
    # An exponential average over n values has moved by 1 - 1/e after n.
    reached = smooth(step)[1000 + 2000 // 50 - 1]

    assert reached == pytest.approx(1 - math.exp(-1), abs=0.01)


def test_ceiling_leaves_out_the_fall_at_the_start():
    x = np.arange(100.0)
    y = np.where(x < 5, 9.0, 2.0)

    assert ceiling(x, y) == 2.0


@pytest.mark.parametrize(
    "last, label", [(0.5, "seconds"), (119, "seconds"), (120, "minutes"), (7200, "hours")]
)
def test_axes_have_units_that_keep_their_numbers_short(tmp_path, last, label):
    runs = read_runs([write(tmp_path / "run", [record(1), record(2, seconds=last)])])

    assert unit(runs, "seconds")[1] == label


def test_labels_are_moved_apart_by_as_little_as_it_takes():
    assert _spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    np.testing.assert_allclose(_spread([0.5, 0.5, 0.5], 0.1), [0.4, 0.5, 0.6])
    np.testing.assert_allclose(_spread([0.3, 0.5, 0.52], 0.1), [0.3, 0.46, 0.56])


# ---- what is drawn ----


@pytest.mark.parametrize("suffix, start", [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_picture_is_of_the_kind_that_its_name_says(run_dir, tmp_path, suffix, start):
    out = tmp_path / f"runs{suffix}"

    plot_runs([run_dir], out)

    assert out.read_bytes().startswith(start)


def test_picture_labels_runs_baselines_and_layers(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("yocobit.pictures.STYLE", {"svg.fonttype": "none"})
    other = write(tmp_path / "unmeasured", [record(1), record(2, loss=math.nan)])

    plot_runs([run_dir, other], tmp_path / "runs.svg", baselines={"gzip -9": 2.5})

    tree = ElementTree.parse(tmp_path / "runs.svg")
    found = {"".join(text.itertext()).strip() for text in tree.findall(".//{*}text")}
    assert {"run 1.610", "gzip -9 2.500", "layer 1", "layer 11", "shared K/V"} <= found


@pytest.mark.parametrize("axis", ["step", "tokens", "seconds"])
def test_page_holds_the_numbers_of_all_axes_and_starts_with_the_one_asked_for(
    run_dir, tmp_path, axis
):
    plot_runs([run_dir], tmp_path / "runs.html", axis)

    data = page_data(tmp_path / "runs.html")
    (run,) = data["runs"]
    assert data["start"] == axis
    assert run["steps"]["tokens"] == [64 * step for step in range(1, 41)]
    assert run["steps"]["loss"] == pytest.approx([2 + 4 / s for s in range(1, 41)], rel=1e-5)
    assert run["evaluations"] == {
        "step": [20, 40],
        "tokens": [1280, 2560],
        "seconds": [10, 20],
        "bits": [1.81, 1.61],
    }
    assert [layer["name"] for layer in run["layers"]] == ["layer 1", "layer 11", "shared K/V"]
    assert run["layers"][0]["shares"] == [[0.05, 0.8, 0.15]] * 2


def test_page_loads_nothing_and_holds_any_name(run_dir, tmp_path):
    (run,) = read_runs([run_dir])
    name = "</script><b>x</b>"

    write_page([dataclasses.replace(run, name=name)], tmp_path / "runs.html", "step")

    text = (tmp_path / "runs.html").read_text()
    assert page_data(tmp_path / "runs.html")["runs"][0]["name"] == name
    assert text.count("</script>") == 2
    assert "<b>" not in text
    assert not re.search(r"(src|href)=|@import|url\((?!#)", text)
    # The name of SVG's elements is no address that is fetched.
    assert set(re.findall(r"https?://\S+?(?=[\"'])", text)) == {"http://www.w3.org/2000/svg"}


def test_page_of_a_long_run_keeps_its_extremes_and_little_else(tmp_path):
    records = [record(step) for step in range(1, 20001)]
    records[12345]["loss"] = 77.0
    records[777]["grad_norm"] = 55.0
    plot_runs([write(tmp_path / "run", records)], tmp_path / "runs.html")

    (run,) = page_data(tmp_path / "runs.html")["runs"]
    steps = run["steps"]
    assert len(steps["step"]) < 2100
    assert (steps["step"][0], steps["step"][-1]) == (1, 20000)
    assert (max(steps["loss"]), max(steps["grad_norm"])) == (77.0, 55.0)


def test_page_has_gaps_where_values_are_not_finite(tmp_path):
    records = [record(1), record(2, loss=math.nan), record(3, grad_norm=math.inf), record(4)]
    plot_runs([write(tmp_path / "run", records)], tmp_path / "runs.html")

    (run,) = page_data(tmp_path / "runs.html")["runs"]
    assert run["steps"]["loss"][1] is None
    assert run["steps"]["grad_norm"][2] is None
    assert run["bits"] is None
