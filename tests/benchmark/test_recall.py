"""The recall benchmark: its queries have answers in the text, and its runs resume."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

DIRECTORY = Path(__file__).parents[2] / "benchmarks" / "quality"


@pytest.fixture
def tasks(monkeypatch):
    monkeypatch.syspath_prepend(str(DIRECTORY))
    import recall_tasks

    return recall_tasks


@pytest.fixture
def recall(tasks):
    import recall

    return recall


def test_each_key_is_queried_once_and_its_value_follows_its_first_occurrence(tasks):
    tokens, targets = tasks.associative_recall(np.random.default_rng(0), 5, 40, 12)

    for text, expected in zip(tokens, targets, strict=True):
        keys, values = text[0:24:2], text[1:24:2]
        queries = np.flatnonzero(expected >= 0)
        assert len(set(keys)) == 12
        assert sorted(text[queries]) == sorted(keys)
        assert queries.min() >= 24
        pairs = dict(zip(keys, values, strict=True))
        assert [pairs[key] for key in text[queries]] == expected[queries].tolist()
        others = np.setdiff1d(np.arange(24, 40), queries)
        assert set(text[others]) <= set(tasks.FILLERS)


def test_passkey_occurs_once_and_is_queried_at_the_end(tasks):
    tokens, targets = tasks.passkey(np.random.default_rng(0), 200, 30)

    places = set()
    for text, expected in zip(tokens, targets, strict=True):
        first, query = np.flatnonzero(text == tasks.MARK)
        key = text[first + 1 : first + 6]
        assert query == 25
        assert text[26:].tolist() == key[:4].tolist()
        assert expected[:25].tolist() == [-1] * 25
        assert expected[25:].tolist() == key.tolist()
        places.add(int(first))
    assert places == set(range(20))


@pytest.mark.parametrize("length, n_pairs", [(8, 3), (12, 0), (600, 97)])
def test_too_many_pairs_are_rejected(tasks, length, n_pairs):
    with pytest.raises(ValueError, match=f"but is {n_pairs}"):
        tasks.associative_recall(np.random.default_rng(0), 1, length, n_pairs)


def test_a_batch_is_a_pure_function_of_seed_and_index(recall):
    from recall_training import batch

    for first, second in zip(batch(3, 7), batch(3, 7), strict=True):
        np.testing.assert_array_equal(first, second)
    assert any(
        (a.shape != b.shape or (a != b).any()) for a, b in [(batch(3, 7)[0], batch(4, 7)[0])]
    )


def test_a_step_clears_the_gradients(recall):
    from recall_training import Recipe, train

    model = train(recall.BASE, Recipe(steps=1), lambda *_: None)

    assert all(parameter.grad is None for parameter in model.parameters())


def test_results_are_kept_and_not_measured_again(recall, tmp_path, monkeypatch):
    import recall_training

    for name in ("TRAINED", "BEYOND"):
        monkeypatch.setattr(recall_training, name, {16: 4} if name == "TRAINED" else {32: 4})
    monkeypatch.setattr(recall_training, "_SHAPES", ((2, 16, 4),))
    monkeypatch.setattr(recall, "ProcessPoolExecutor", lambda *_: InProcessPool())
    out = tmp_path / "recall.json"

    def run(*variants):
        arguments = ["--out", str(out), "--variants", ",".join(variants), "--steps", "2"]
        monkeypatch.setattr(sys, "argv", ["recall.py", *arguments, "--answers", "8"])
        recall.main()
        return json.loads(out.read_text())["variants"]

    first = run("gret-ternary")
    marked = json.loads(out.read_text())
    marked["variants"]["gret-ternary"]["cpu_seconds"] = 77
    out.write_text(json.dumps(marked))
    both = run("gret-ternary", "retention-dense")

    assert first["gret-ternary"]["associative_recall"].keys() == {"16", "32"}
    served = {"int8", "int4", "index", "index:192", "int4, index:192", "int4, index"}
    assert first["gret-ternary"]["evaluated_with"].keys() == served
    assert both.keys() == {"gret-ternary", "retention-dense"}
    assert both["gret-ternary"]["cpu_seconds"] == 77


class InProcessPool:
    """A process pool that runs each job in this process."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future = Future()
        future.set_result(function(*arguments))
        return future
