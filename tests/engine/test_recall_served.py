"""Recall of the engine with a quantised KV cache and one index for all cross layers.

recall_model is the ternary YOCO of docs/benchmarks/quality.md, trained with an int4 cache and no
index, on texts of 64 to 256 tokens:

    python benchmarks/quality/recall.py --variants gret-ternary-int4 --out FILE --keep DIR
"""

from pathlib import Path

import numpy as np
import pytest

from yocobit import Engine

HERE = Path(__file__).parent
LENGTH, N_PAIRS = 256, 64  # the longest training texts


@pytest.fixture
def tasks(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE.parents[1] / "benchmarks" / "quality"))
    import recall_tasks

    return recall_tasks


def share_of_right(engine: Engine, cache: str, tokens, targets) -> float:
    right, n_queries = 0, 0
    for text, expected in zip(tokens, targets, strict=True):
        is_query = expected >= 0
        found = engine.logits(text, cache).argmax(axis=1)
        right += int((found == expected)[is_query].sum())
        n_queries += int(is_query.sum())
    return right / n_queries


@pytest.mark.parametrize("cache", ["f32", "int8", "int4"])
@pytest.mark.parametrize("attention", ["full", "index:128"])
def test_associations_and_passkeys_are_recalled_at_the_trained_length(tasks, attention, cache):
    engine = Engine.load(HERE / "recall_model", attention=attention)
    rng = np.random.default_rng(0)

    pairs, keys = tasks.associative_recall(rng, 16, LENGTH, N_PAIRS), tasks.passkey(rng, 64, LENGTH)

    assert share_of_right(engine, cache, *pairs) > 0.99
    assert share_of_right(engine, cache, *keys) > 0.99
