"""The prose benchmark: equal parameter counts of variants, conversations of unchanged text."""

from __future__ import annotations

from pathlib import Path

import pytest

from yocobit.config import preset
from yocobit.data.conversations import render

DIRECTORY = Path(__file__).parents[2] / "benchmarks" / "quality"

TEXT = """The harbor is deep. The harbor lies open to the north wind, and ships wait there for the
tide before they go up the river with timber and salt. Nobody remembers when the first stones of
the quay were laid. The mill stands at the bend. A miller who knows the river opens the sluice in
the morning and shuts the sluice at night, and between them the mill grinds what farmers bring."""


@pytest.fixture
def prose(monkeypatch):
    monkeypatch.syspath_prepend(str(DIRECTORY))
    import prose

    return prose


@pytest.fixture
def made(monkeypatch):
    monkeypatch.syspath_prepend(str(DIRECTORY))
    import conversations

    monkeypatch.setattr(conversations, "_WORDS", (5, 40))
    monkeypatch.setattr(conversations, "_KNOWN", (2, 100))
    return conversations


def test_variants_have_equal_parameter_counts(prose):
    def n_parameters(variant: str) -> int:
        fields = prose.model_of(variant)
        fields["layers"] = tuple(fields["layers"])
        return prose.n_matrix_parameters(preset("tiny").replace(**fields))

    base = n_parameters("gret-ternary")

    for variant in prose.VARIANTS:
        assert abs(n_parameters(variant) - base) < 0.003 * base, variant


def test_conversations_contain_unchanged_passages_of_the_text(made):
    found = list(made.conversations([TEXT, TEXT], seed=0))
    flat = " ".join(TEXT.split())

    assert found == list(made.conversations([TEXT, TEXT], seed=0))
    assert found != list(made.conversations([TEXT, TEXT], seed=1))
    assert len(found) >= 2
    for messages in found:
        question, answer = messages[0]["content"], messages[1]["content"]
        assert answer in flat
        assert question.rstrip("?.").split()[-1] in answer
        assert render(messages, "")


def test_a_passage_is_whole_sentences(made):
    passages = list(made.passages(TEXT))

    assert " ".join(passages) == " ".join(TEXT.split())
    assert all(passage.endswith(".") for passage in passages)
