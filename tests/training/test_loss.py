"""The loss of the head compared with plain formulas over all logits, in float64.

Letters: N tokens   C model width   V vocabulary
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from yocobit.config import preset
from yocobit.model import Decoder
from yocobit.training import loss as loss_module
from yocobit.training.backend import matmul_precision
from yocobit.training.loss import TeacherOutput, head_loss
from yocobit.training.step import Objective


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def problem(rng: torch.Generator, n_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x (N, C), weight (V, C) and targets (N)."""
    x = torch.randn(n_tokens, 16, generator=rng, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, generator=rng, dtype=torch.float64, requires_grad=True)
    return x, weight, torch.randint(50, (n_tokens,), generator=rng)


def assert_same_with_gradients(loss: Tensor, expected: Tensor, *variables: Tensor) -> None:
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(2 * loss, variables)
    torch.testing.assert_close(gradients, torch.autograd.grad(2 * expected, variables))


@pytest.mark.parametrize("n_tokens", [1, 512, 700])
def test_head_loss_is_the_sum_of_cross_entropies(rng, n_tokens):
    x, weight, targets = problem(rng, n_tokens)

    loss, (nats, divergence) = head_loss(x, weight, targets)
    expected = F.cross_entropy(x @ weight.mT, targets, reduction="sum")

    assert nats.item() == loss.item() and divergence == 0
    assert_same_with_gradients(loss, expected, x, weight)


@pytest.mark.parametrize("z_weight", [0.0, 0.01])
def test_head_loss_ignores_targets_below_zero(rng, z_weight):
    x, weight, _ = problem(rng, 9)
    targets = torch.tensor([3, -1, 7, -1, -1, 0, 49, 8, -1])

    loss, _ = head_loss(x, weight, targets, z_weight)
    expected, _ = head_loss(x[targets >= 0], weight, targets[targets >= 0], z_weight)

    assert_same_with_gradients(loss, expected, x, weight)


def test_head_loss_without_any_target_is_zero_with_zero_gradients(rng):
    x, weight, targets = problem(rng, 3)

    loss, _ = head_loss(x, weight, torch.full_like(targets, -1))

    assert loss == 0
    assert all(g.eq(0).all() for g in torch.autograd.grad(loss, (x, weight)))


@pytest.mark.parametrize("n_tokens", [1, 700])
def test_z_loss_adds_the_square_of_log_z(rng, n_tokens):
    x, weight, targets = problem(rng, n_tokens)

    loss, (nats, _) = head_loss(x, weight, targets, z_weight=0.05)
    logits = x @ weight.mT
    cross_entropy = F.cross_entropy(logits, targets, reduction="sum")
    expected = cross_entropy + 0.05 * logits.logsumexp(dim=-1).square().sum()

    torch.testing.assert_close(nats, cross_entropy.detach())
    assert_same_with_gradients(loss, expected, x, weight)


@pytest.mark.parametrize("z_weight", [0.0, 0.05])
@pytest.mark.parametrize(("teacher_weight", "temperature"), [(0.5, 1.0), (0.3, 5.0), (1.0, 2.0)])
def test_divergence_from_the_teacher_is_mixed_with_cross_entropy(
    rng, z_weight, teacher_weight, temperature
):
    x, weight, targets = problem(rng, 700)
    hidden = torch.randn(700, 8, generator=rng, dtype=torch.float64)
    head = torch.randn(60, 8, generator=rng, dtype=torch.float64)  # of a larger vocabulary
    teacher = TeacherOutput(hidden, lambda h: h @ head.mT, teacher_weight, temperature)

    loss, (nats, divergence) = head_loss(x, weight, targets, z_weight, teacher)
    logits = x @ weight.mT
    p = ((hidden @ head.mT)[:, :50] / temperature).softmax(dim=-1)
    log_q = (logits / temperature).log_softmax(dim=-1)
    expected_divergence = F.kl_div(log_q, p, reduction="sum")
    cross_entropy = F.cross_entropy(logits, targets, reduction="sum")
    expected = (1 - teacher_weight) * cross_entropy
    expected = expected + teacher_weight * temperature**2 * expected_divergence
    expected = expected + z_weight * logits.logsumexp(dim=-1).square().sum()

    torch.testing.assert_close(nats, cross_entropy.detach())
    torch.testing.assert_close(divergence, expected_divergence.detach())
    assert_same_with_gradients(loss, expected, x, weight)


def test_divergence_ignores_targets_below_zero(rng):
    x, weight, targets = problem(rng, 9)
    targets[::2] = -1
    hidden, kept = torch.randn(9, 16, generator=rng, dtype=torch.float64), targets >= 0
    teacher = TeacherOutput(hidden, lambda h: h @ weight.detach().mT, 0.5, 2.0)
    teacher_kept = TeacherOutput(hidden[kept], teacher.head, 0.5, 2.0)

    loss, terms = head_loss(x, weight, targets, 0.0, teacher)
    expected, expected_terms = head_loss(x[kept], weight, targets[kept], 0.0, teacher_kept)

    assert torch.equal(terms, expected_terms)
    assert_same_with_gradients(loss, expected, x, weight)


def test_head_loss_holds_the_logits_of_one_slice_at_a_time(rng, monkeypatch):
    monkeypatch.setattr(loss_module, "_SLICE", 4)
    x, weight, targets = problem(rng, 10)
    hidden, n_rows = torch.randn(10, 16, generator=rng, dtype=torch.float64), []

    def head(part: Tensor) -> Tensor:
        n_rows.append(len(part))
        return part @ weight.detach().mT

    head_loss(x, weight, targets, 0.0, TeacherOutput(hidden, head, 0.5, 1.0))

    assert n_rows == [4, 4, 2]


def test_head_loss_in_bfloat16_equals_float32_to_rounding(rng):
    x, weight, targets = (t.detach() for t in problem(rng, 600))
    x, weight = x.float().requires_grad_(), weight.float().requires_grad_()
    exact, _ = head_loss(x, weight, targets)
    exact_gradients = torch.autograd.grad(exact, (x, weight))

    with matmul_precision("bfloat16"):
        loss, _ = head_loss(x, weight, targets)
        gradients = torch.autograd.grad(loss, (x, weight))

    # Logits of size |x| |w| = 16, of 16 products of two rounded factors: 2 * 2^-9 each, which
    # partly cancel. The same holds for gradients, which are rounded once more.
    assert loss.item() == pytest.approx(exact.item(), rel=2**-7)
    for found, expected in zip(gradients, exact_gradients, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 2**-5 * expected.norm()


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_objective_equals_the_loss_of_all_logits(tie_embeddings):
    torch.manual_seed(0)
    model = Decoder(preset("nano").replace(tie_embeddings=tie_embeddings)).double()
    tokens = torch.randint(512, (2, 10), generator=torch.Generator().manual_seed(0))
    targets = tokens[:, 1:].clone()
    targets[0, :4] = -1
    resets = torch.zeros(2, 9, dtype=torch.bool)
    resets[1, 5] = True

    loss, _ = Objective(model, z_weight=0.0)(tokens[:, :-1], targets, resets)
    logits = model.head(model.hidden(tokens[:, :-1], resets)).flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), reduction="sum", ignore_index=-1)

    assert_same_with_gradients(loss, expected, *model.parameters())
