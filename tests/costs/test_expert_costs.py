"""Costs of mixtures of experts and of the shapes of weights-only models, against counts by hand.

Letters: C model width   F feed-forward width   E experts   k experts per token
"""

from __future__ import annotations

import math

import pytest
from packed_models import nano

from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import named_shape
from yocobit.costs import decode_bytes, describe, multiply_adds, step_weight_bytes, weight_bytes
from yocobit.costs.memory import active_share, projection_bytes
from yocobit.costs.summary import rounded
from yocobit.costs.work import WEIGHTS, shape_only_model, work_of
from yocobit.planning.prediction import mean_rows

C, F, E, K_ACTIVE = 64, 128, 8, 2
DENSE = nano("yoco-gret", "ternary_g128", sub_norm=False)
MOE = DENSE.replace(ffn="moe", n_experts=E, n_active_experts=K_ACTIVE)
LAYERS = 4


def test_a_token_multiplies_by_its_experts_and_the_router():
    extra = LAYERS * ((K_ACTIVE - 1) * 3 * C * F + E * C)

    assert multiply_adds(MOE, 1, 1) - multiply_adds(DENSE, 1, 1) == extra


def test_a_step_of_one_session_reads_its_experts():
    model = shape_only_model(MOE)
    experts = sum(projection_bytes(model, of_experts=True).values())
    # 128 columns in 32 bytes, the 64 of gate and up padded to them; a float16 scale per group.
    assert experts == LAYERS * E * (F + F + C) * (32 + 2)

    read = step_weight_bytes(model)

    assert read == weight_bytes(model) - experts * (E - K_ACTIVE) // E
    dense = shape_only_model(DENSE)
    caches = decode_bytes(dense, "f32", 5, 1, 1) - weight_bytes(dense)
    assert decode_bytes(model, "f32", 5, 1, 1) == read + caches


def test_a_batch_reads_the_experts_that_any_token_chooses():
    assert active_share(MOE, 1) == K_ACTIVE / E
    assert active_share(MOE, 2) == pytest.approx(1 - (6 / 8) ** 2)
    assert active_share(MOE, 1000) == pytest.approx(1)
    assert active_share(DENSE, 3) == 1


def test_experts_that_a_step_does_not_read_are_in_its_reuse_distance():
    model = shape_only_model(MOE)

    work = work_of(model, "f32", 100, 1)

    part = work.part(WEIGHTS)
    assert part.n_bytes - part.traffic_bytes == weight_bytes(model) - step_weight_bytes(model)
    assert work.reuse_distance(part) >= part.n_bytes


def test_mean_rows_are_those_of_one_expert():
    alone = MOE.replace(n_experts=2, n_active_experts=1)

    assert mean_rows(MOE) == pytest.approx(mean_rows(alone), abs=16)


def test_the_summary_names_total_and_active_parameters(tmp_path):
    model = write_random_model(MOE, tmp_path / "model")

    (line,) = [line for line in describe(model) if " active" in line]

    total = sum(math.prod(stored.shape) for stored in model.parameters.values())
    active = multiply_adds(MOE, 1, 1)
    assert line.strip() == (
        f"{total / 1e6:.2f}M, {active / 1e6:.2f}M active: {active:,} multiply each token, "
        "2 of 8 experts in each layer"
    )


@pytest.mark.parametrize(
    ("name", "weights", "n_parameters", "n_active"),
    [
        ("bonsai-8b", "ternary_g128", 8.19e9, 7.57e9),  # Qwen3-8B has 8.19 billion
        ("bonsai-8b", "sign_g128", 8.19e9, 7.57e9),
        ("maple-20b-a1b", "ternary_row_a16", 20.2e9, 1.18e9),
    ],
)
def test_shapes_have_the_sizes_of_the_published_models(name, weights, n_parameters, n_active):
    config = named_shape(name).replace(weights=weights)
    model = shape_only_model(config, weights)

    total = sum(math.prod(stored.shape) for stored in model.parameters.values())

    assert total == pytest.approx(n_parameters, rel=2e-3)
    assert multiply_adds(config, 1, 1) == pytest.approx(n_active, rel=2e-3)


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (7_090_688, "7.1M"),
        (134_515_008, "135M"),
        (999_600_000, "1B"),
        (8_030_000_000, "8B"),
        (120_000_000_000, "120B"),
    ],
)
def test_a_number_of_parameters_is_rounded_without_an_exponent(n, text):
    assert rounded(n) == text
