"""The tests of transformers for its own models, on each stack.

FAILURES lists the tests that fail, each with its reason. A test in the list that passes or skips
fails here, and so does an entry without a test.
"""

from __future__ import annotations

import contextlib
import functools
import unittest
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from packed_models import nano
from transformers_suite import load

from yocobit.hf import (
    YocobitConfig,
    YocobitForCausalLM,
    YocobitForSequenceClassification,
    YocobitModel,
)

common = load("test_modeling_common")

# The tests look up the inputs of a class by its name in these mappings.
CLASSES = {
    YocobitModel: common.MODEL_MAPPING_NAMES,
    YocobitForCausalLM: common.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    YocobitForSequenceClassification: common.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}
for _class, _mapping in CLASSES.items():
    _mapping[YocobitConfig.model_type] = _class.__name__

STACKS = {
    "yoco-gret": ("ternary", "sign"),
    "yoco-swa": ("ternary",),
    "transformer": ("dense",),
    "yoco-gmu": ("ternary_row",),
    "yoco-gate": ("ternary",),
    "mixed": ("dense",),
}
FAST = ("yoco-gret", "ternary")
SLOW_TESTS = ("test_eager_matches", "test_bc_torch_dtype", "test_model_outputs_equivalence")


class Failure(NamedTuple):
    """Why tests of a name or a prefix fail, on some stacks or on all."""

    reason: str
    stacks: tuple[str, ...] = tuple(STACKS)


FAILURES: dict[str, Failure] = {
    "test_attention_outputs": Failure(
        "only attention layers return attention weights",
        tuple(stack for stack in STACKS if stack not in ("transformer", "yoco-swa")),
    ),
    "test_num_layers_is_small": Failure("a decoder-decoder has more than two layers"),
}
# Of the tests of generation, which the source distribution of transformers lacks.
GENERATION_FAILURES: dict[str, Failure] = {
    "test_assisted_decoding": Failure(
        "recurrent states and the caches of windows cannot discard the last tokens",
        tuple(stack for stack in STACKS if stack != "transformer"),
    ),
    **dict.fromkeys(
        (
            "test_past_key_values_format",
            "test_greedy_generate_dict_outputs_use_cache",
            "test_beam_search_generate_dict_outputs_use_cache",
        ),
        Failure(
            "recurrent layers have no convolution states, and windows cache their last positions",
            tuple(stack for stack in STACKS if stack != "transformer"),
        ),
    ),
}


class ModelTester:
    """A small configuration and inputs for it; the names are those that the tests read."""

    base_model_class = YocobitModel
    batch_size = 3
    seq_length = 7
    is_training = True

    def __init__(self, stack: str, weights: str) -> None:
        own = nano(stack, weights, vocab_size=99, d_model=32, d_ff=64, window=4)
        heads = {"n_self_heads": own.n_heads, "n_self_kv_heads": own.n_kv_heads}
        self.model = own.replace(**heads)  # the tests expect one number
        self.hidden_size = self.model.d_model
        self.num_hidden_layers = len(self.model.layers)
        self.num_attention_heads = self.model.n_heads

    def get_config(self) -> YocobitConfig:
        roles = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        return YocobitConfig(**self.model.to_dict(), **roles)

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.seq_length]
        inputs = {
            "input_ids": common.ids_tensor(shape, self.model.vocab_size - 3) + 3,
            "attention_mask": common.random_attention_mask(shape),
        }
        return self.get_config(), inputs


def listed(test: Callable[[Any], None], reason: str) -> Callable[[Any], None]:
    """Return a test in FAILURES: it fails unless `test` does."""

    @functools.wraps(test)
    def run(self: Any) -> None:
        try:
            test(self)
        except unittest.SkipTest as skip:
            raise AssertionError(f"is in FAILURES but skips: {skip}") from None
        except Exception:
            pytest.xfail(reason)
        raise AssertionError("is in FAILURES but passes; remove the entry")

    return run


def _own(test: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a copy of a test of transformers, for the marks of one stack."""
    return functools.wraps(test)(lambda self: test(self))


def failure_of(test: str, stack: str) -> Failure | None:
    """Return the entry in FAILURES for a test."""
    listed_tests = {**FAILURES, **GENERATION_FAILURES}
    found = (failure for name, failure in listed_tests.items() if test.startswith(name))
    return next((failure for failure in found if stack in failure.stacks), None)


def suite(stack: str, weights: str) -> type:
    """Return the TestCase of a stack."""
    methods = {
        "all_model_classes": tuple(CLASSES),
        "setUp": lambda self: setattr(self, "model_tester", ModelTester(stack, weights)),
        "test_can_init_all_missing_weights_before_2023": True,
        "subTest": lambda self, *_, **__: contextlib.nullcontext(),  # a failure ends the test
    }
    bases = (common.ModelTesterMixin, common.GenerationTesterMixin, unittest.TestCase)
    case = type(f"{stack}-{weights}", bases, methods)
    for name in unittest.defaultTestLoader.getTestCaseNames(case):
        if failure := failure_of(name, stack):
            setattr(case, name, listed(getattr(case, name), failure.reason))
        elif name.startswith(SLOW_TESTS):
            setattr(case, name, pytest.mark.slow(_own(getattr(case, name))))
    return case if (stack, weights) == FAST else pytest.mark.slow(case)


for _stack, _kinds in STACKS.items():
    for _weights in _kinds:
        globals()[f"Test_{_stack}_{_weights}"] = suite(_stack, _weights)


def test_each_failure_names_a_test():
    of_generation = dir(common.GenerationTesterMixin)
    names = {**FAILURES, **(GENERATION_FAILURES if "test_greedy_generate" in of_generation else {})}
    tests = [*dir(common.ModelTesterMixin), *of_generation]
    assert [name for name in names if not any(t.startswith(name) for t in tests)] == []
