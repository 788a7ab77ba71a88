"""Optimizers: parameter groups, and updates compared with an independent implementation.

Letters: M output features   K input features
"""

import pytest
import torch

from yocobit.config import preset
from yocobit.model import Decoder
from yocobit.training.config import OptimConfig
from yocobit.training.optim import Muon, Optimizers, orthogonalize

NANO = preset("nano")


def make_model(**changes) -> Decoder:
    torch.manual_seed(0)
    return Decoder(NANO.replace(**changes))


def groups_by_name(optimizers: Optimizers) -> dict[str, dict]:
    """Map each parameter's name to its group."""
    return {
        optimizers.names[parameter]: group
        for part in optimizers.parts
        for group in part.param_groups
        for parameter in group["params"]
    }


def gradient_steps(model: Decoder, optimizers: Optimizers, seeds: range) -> None:
    for seed in seeds:
        tokens = torch.randint(512, (2, 9), generator=torch.Generator().manual_seed(seed))
        logits = model(tokens[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizers.step(1.0, 1.0)
        optimizers.clear_gradients()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_every_parameter_is_in_exactly_one_group(optimizer, tie_embeddings):
    model = make_model(tie_embeddings=tie_embeddings)

    optimizers = Optimizers(model, OptimConfig(optimizer=optimizer))

    moved = [p for part in optimizers.parts for g in part.param_groups for p in g["params"]]
    assert len(moved) == len({id(p) for p in moved})
    assert {id(p) for p in moved} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("layers.0.mixer.q_proj.weight", 0.01),
        ("layers.3.ffn.down_proj.weight", 0.01),
        ("shared_kv.k_proj.weight", 0.01),
        ("embedding.weight", 0.02),
        ("head.weight", 0.03),
        ("norm.weight", 0.04),
        ("layers.0.mixer.decay_proj.weight", 0.04),
    ],
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_parameter_group_has_its_own_rate_times_the_factor(optimizer, name, rate):
    config = OptimConfig(
        optimizer=optimizer,
        matrix_learning_rate=0.01,
        embedding_learning_rate=0.02,
        head_learning_rate=0.03,
        learning_rate=0.04,
    )
    optimizers = Optimizers(make_model(), config)

    optimizers.step(0.5, 1.0)

    assert groups_by_name(optimizers)[name]["lr"] == pytest.approx(0.5 * rate)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_applies_to_matrices_and_head_only(optimizer):
    optimizers = Optimizers(make_model(), OptimConfig(optimizer=optimizer, weight_decay=0.1))

    decayed = {n for n, g in groups_by_name(optimizers).items() if g["weight_decay"] > 0}

    quantised = {n for n in optimizers.names.values() if "_proj" in n and "decay_proj" not in n}
    assert decayed == quantised | {"head.weight"}


def test_weight_decay_factor_of_zero_switches_it_off():
    optimizers = Optimizers(make_model(), OptimConfig(weight_decay=0.1))

    optimizers.step(1.0, 0.0)

    assert all(g["weight_decay"] == 0 for g in groups_by_name(optimizers).values())


def test_muon_updates_the_quantised_matrices_only():
    optimizers = Optimizers(make_model(), OptimConfig(optimizer="muon"))

    (muon,) = (part for part in optimizers.parts if isinstance(part, Muon))
    names = {optimizers.names[p] for group in muon.param_groups for p in group["params"]}

    quantised = {n for n in optimizers.names.values() if "_proj" in n and "decay_proj" not in n}
    assert names == quantised


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 16, 64), (1, 64, 16), (3, 32, 48)])
def test_orthogonalize_brings_singular_values_close_to_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    # No singular value is below 0.1 of the largest: the iterations raise such values to about 1.
    matrices = u * torch.linspace(0.1, 1, u.shape[-1], dtype=u.dtype) @ vt

    y = orthogonalize(matrices)

    values = torch.linalg.svdvals(y)
    assert values.min() > 0.6 and values.max() < 1.3
    # Same singular vectors: u^T y v is diagonal. 1e-9: float64, some tens of matmuls.
    inner = u.mT @ y @ vt.mT
    assert (inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-9


@pytest.mark.parametrize("shape", [(4, 16), (16, 4)])
def test_muon_step_equals_its_formula(shape):
    gradients = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).double()
    parameter = torch.nn.Parameter(torch.ones(shape, dtype=torch.float64))
    optimizer = Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.2)
    expected, buffer = torch.ones(shape, dtype=torch.float64), torch.zeros(shape).double()

    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        buffer = 0.9 * buffer + gradient
        (update,) = orthogonalize((gradient + 0.9 * buffer)[None])
        expected = expected - 0.1 * (0.2 * 16**0.5 * update + 0.2 * expected)

    torch.testing.assert_close(parameter.detach(), expected)


def test_muon_updates_matrices_of_one_shape_independently():
    gradients = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = torch.nn.Parameter(torch.zeros(8, 8))
    pair = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(2)]
    alone.grad = gradients[1].clone()
    for parameter, gradient in zip(pair, gradients, strict=True):
        parameter.grad = gradient.clone()

    for parameters in ([alone], pair):
        Muon(parameters, lr=0.1, momentum=0.9, weight_decay=0.0).step()

    # Batched and single matmuls may sum in another order: 5 iterations of 3 matmuls with K = 8.
    torch.testing.assert_close(pair[1], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_optimizers_resume_exactly_from_saved_state(optimizer):
    config = OptimConfig(optimizer=optimizer, learning_rate=0.01)
    straight = make_model()
    straight_optimizers = Optimizers(straight, config)
    gradient_steps(straight, straight_optimizers, range(2))
    saved_weights = {name: value.clone() for name, value in straight.state_dict().items()}
    saved_state = {name: value.clone() for name, value in straight_optimizers.state().items()}
    gradient_steps(straight, straight_optimizers, range(2, 4))

    resumed = make_model()
    resumed.load_state_dict(saved_weights)
    resumed_optimizers = Optimizers(resumed, config)
    resumed_optimizers.load_state(saved_state)
    gradient_steps(resumed, resumed_optimizers, range(2, 4))

    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_clear_gradients_leaves_none():
    model = make_model()
    optimizers = Optimizers(model, OptimConfig())

    gradient_steps(model, optimizers, range(1))

    assert all(parameter.grad is None for parameter in model.parameters())
