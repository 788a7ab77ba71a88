"""Results files of benchmarks: one recipe per file, atomic writes, unchanged bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def results_file(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "quality"))
    import results_file

    return results_file


def test_a_new_file_names_its_provenance_and_keeps_added_results(results_file, tmp_path):
    path = tmp_path / "results.json"

    results = results_file.read(path, {"recipe": ["a"]})
    results["runs"] = {"first": 1}
    results_file.write(path, results)

    found = results_file.read(path, {"recipe": ["a"]})
    assert (found["recipe"], found["runs"]) == (["a"], {"first": 1})
    assert found["command"].startswith("python ") and found["machine"]["cpu"]
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_file_of_another_recipe_is_rejected(results_file, tmp_path):
    path = tmp_path / "results.json"
    results_file.write(path, {"recipe": ["a"], "runs": {}})

    with pytest.raises(SystemExit, match=r"results\.json: holds results of another recipe"):
        results_file.read(path, {"recipe": ["a", "b"]})


@pytest.mark.parametrize("name", ["quality_served", "quality_prose", "recall"])
def test_reading_and_writing_a_committed_file_keeps_its_bytes(results_file, tmp_path, name):
    path = BENCHMARKS / "results" / f"{name}.json"

    results_file.write(tmp_path / path.name, results_file.read(path))

    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").iterdir()), ids=lambda p: p.stem)
def test_a_committed_file_names_its_command_machine_and_commit(path):
    results = json.loads(path.read_text(encoding="utf-8"))

    assert results["command"].startswith(("python benchmarks/", "yocobit "))
    assert results["machine"]["cpu"] and results["machine"]["commit"]
    assert path.name in (BENCHMARKS.parent / "docs/benchmarks/index.md").read_text()
