"""Frozen numbers, which only a deliberate change may alter; `make golden` rewrites them."""

import json

import pytest
from regression import CASES, FILE, measure


@pytest.mark.parametrize(("stack", "kind"), CASES)
def test_codes_tokens_and_losses_are_as_before(stack, kind):
    expected = json.loads(FILE.read_text(encoding="utf-8"))[f"{stack}-{kind}"]

    found = measure(stack, kind)

    assert found["codes_sha256"] == expected["codes_sha256"]
    assert found["greedy_tokens"] == expected["greedy_tokens"]
    # CPUs sum matmuls in different orders, so rounding ties differ and straight-through gradients
    # jump: losses on AMD and Intel differ by 1e-4 after three steps and 6% after fourteen. A change
    # of the model shows in the first steps, worse training in the last.
    assert found["losses"][:3] == pytest.approx(expected["losses"][:3], rel=1e-3)
    assert found["losses"] == pytest.approx(expected["losses"], rel=0.1)
