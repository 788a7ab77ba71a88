"""What the engine recalls with a cache of codes and one index for all cross layers.

recall_model is the ternary YOCO of docs/benchmarks/quality.md, trained with an int4 cache, on texts
of 64 to 256 tokens; an index it has never seen:

    python benchmarks/quality/recall.py --variants gret-ternary-int4 --out FILE --keep DIR
"""

from pathlib import Path

import numpy as np
import pytest

from yocobit import Engine

HERE = Path(__file__).parent
LENGTH, N_PAIRS = 256, 64  # the longest texts that it was trained on


@pytest.fixture
def tasks(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE.parents[1] / "benchmarks" / "quality"))
    import recall_tasks

    return recall_tasks


def share_of_right(engine: Engine, cache: str, tokens, targets) -> float:
    right, n_asked = 0, 0
    for text, expected in zip(tokens, targets, strict=True):
        is_asked = expected >= 0
        found = engine.logits(text, cache).argmax(axis=1)
        right += int((found == expected)[is_asked].sum())
        n_asked += int(is_asked.sum())
    return right / n_asked


@pytest.mark.parametrize("cache", ["f32", "int8", "int4"])
@pytest.mark.parametrize("attention", ["full", "index:128"])
def test_associations_and_passkeys_are_recalled_at_the_trained_length(tasks, attention, cache):
    engine = Engine.load(HERE / "recall_model", attention=attention)
    rng = np.random.default_rng(0)

    pairs, keys = tasks.associative_recall(rng, 16, LENGTH, N_PAIRS), tasks.passkey(rng, 64, LENGTH)

    assert share_of_right(engine, cache, *pairs) > 0.99
    assert share_of_right(engine, cache, *keys) > 0.99
