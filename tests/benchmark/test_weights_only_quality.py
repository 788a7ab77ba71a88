"""The comparison of weights-only quantisation: its text and its models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yocobit.costs import multiply_adds
from yocobit.training.config import load

QUALITY = Path(__file__).parents[2] / "benchmarks" / "quality"


@pytest.fixture
def weights_only(monkeypatch):
    monkeypatch.syspath_prepend(str(QUALITY))
    import weights_only

    return weights_only


def test_every_tenth_document_is_held_out_and_all_are_cut(weights_only, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{i:02d}" + "x" * 20_000 for i in range(30)) + "\n")

    weights_only.write_text(text, tmp_path / "data")

    found = {
        split: [json.loads(line)["text"] for line in (tmp_path / "data" / f"{split}.jsonl").open()]
        for split in ("train", "valid")
    }
    assert [document[:2] for document in found["valid"]] == ["08", "18", "28"]
    assert len(found["train"]) == 27
    assert {len(document) for document in found["train"]} == {10_000}
    assert {len(document) for document in found["valid"]} == {3_000}


def test_variants_have_one_shape_and_experts_as_many_multiply_adds(weights_only):
    base = load(weights_only.RECIPE).model

    models = [base.replace(**fields) for fields in weights_only.VARIANTS.values()]
    moe = base.replace(**weights_only.MOE)

    assert len({model.replace(weights="dense") for model in models}) == 1
    router = len(moe.layers) * moe.n_experts * moe.d_model
    assert multiply_adds(moe, 1, 1) == multiply_adds(base, 1, 1) + router
