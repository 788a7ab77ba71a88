"""Lines with labels, wrapped to the width of a terminal."""

from __future__ import annotations

from yocobit.costs import describe, folded
from yocobit.packing import read_model
from yocobit.pretrained import TINY


def test_lines_are_wrapped_at_words_under_their_values():
    lines = [
        "model       a long description, of 3 layers",
        "            more-and-more",
        "file        x",
    ]

    assert folded(lines, 26).splitlines() == [
        "model       a long",
        "            description,",
        "            of 3 layers",
        "            more-and-more",
        "file        x",
    ]


def test_the_summary_of_a_model_fits_a_terminal_and_loses_no_word():
    lines = describe(read_model(TINY))

    wrapped = folded(lines, 80)

    assert max(map(len, lines)) > 80 >= max(map(len, wrapped.splitlines()))
    assert wrapped.split() == " ".join(lines).split()


def test_lines_are_not_wrapped_without_a_width():
    lines = describe(read_model(TINY))

    assert folded(lines, None) == "\n".join(lines)
