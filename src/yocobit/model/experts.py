"""Mixture of experts: an FFN whose router sends each token to k of E SwiGLU experts.

No token is dropped: the tokens of each expert are multiplied by its rows of the expert matrices.

Letters: B batch   T positions   N tokens   C model width   F feed-forward width of an expert
         E experts   k experts per token
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yocobit.config import ConfigError, ModelConfig
from yocobit.mixers import FEED_FORWARDS
from yocobit.model.bitlinear import BitLinear, float_matmul, projection
from yocobit.model.feed_forward import FeedForward, activation
from yocobit.model.module_calls import has_own_call
from yocobit.model.norm import sub_norm
from yocobit.model.precision import float32_linear, in_float32, widened
from yocobit.model.quantization import straight_through_activations


class MixtureOfExperts(nn.Module):
    """y = sum over the top-k experts e of p_e SwiGLU_e(x), p the softmax of their k logits.

    The logits are W_r x in float32; ties are broken by expert index. Each of the matrices
    gate_proj, up_proj (E F, C) and down_proj (E C, F) holds all experts and is quantised as one
    matrix: all experts share a per-tensor scale. SubLN has one weight (F) for all experts.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, d_ff, E = config.d_model, config.d_ff, config.n_experts
        self.n_experts, self.n_active = E, config.n_active_experts
        self.activation, self.eps = activation(config), config.norm_eps
        self.router = nn.Linear(C, E, bias=False)
        self.gate_proj = projection(config, C, E * d_ff, n_blocks=E)
        self.up_proj = projection(config, C, E * d_ff, n_blocks=E)
        self.sub_norm = sub_norm(config, d_ff)
        self.down_proj = projection(config, d_ff, E * C, n_blocks=E)
        self.records_balance = False
        self.balance: Tensor | None = None  # the loss of the last forward pass, if recorded

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, C) to (B, T, C)."""
        if torch.compiler.is_exporting():
            raise ConfigError(
                "export: ffn must not be 'moe': the tokens of an expert vary by input"
            )
        tokens = x.flatten(0, -2)  # (N, C)
        logits: Tensor = _router_logits(tokens, self.router)  # (N, E)
        # A stable sort, because torch.topk does not define the order of equal logits.
        ordered, experts = logits.sort(dim=-1, descending=True, stable=True)
        shares = ordered[:, : self.n_active].softmax(dim=-1)  # (N, k)
        experts = experts[:, : self.n_active]
        if self.records_balance and torch.is_grad_enabled():
            self.balance = load_balancing_loss(logits, experts)
        y = widened(self._apply_experts(tokens, experts))  # (N, k, C)
        return (shares[..., None] * y).sum(dim=1).to(x.dtype).view_as(x)

    # Not compiled: the sizes of its matmuls depend on the tokens.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _apply_experts(self, x: Tensor, experts: Tensor) -> Tensor:
        """Return the outputs (N, k, C) of the experts (N, k) for tokens x (N, C)."""
        linears = (self.gate_proj, self.up_proj, self.down_proj)
        if not all(has_own_call(linear, BitLinear) for linear in linears):
            raise ConfigError(
                "experts must be the model's own layers but have adapters or hooks; restrict them "
                "to the projections of the mixers"
            )
        order = experts.flatten().argsort(stable=True)  # slots of all tokens, by expert
        counts = experts.flatten().bincount(minlength=self.n_experts).tolist()
        rows = x[order // self.n_active]  # (N k, C)
        projected = self._matmul(rows, counts, self.gate_proj, self.up_proj)
        hidden = self.activation(projected, self.sub_norm, self.eps)  # (N k, F)
        (y,) = self._matmul(hidden, counts, self.down_proj)
        return y[order.argsort()].unflatten(0, experts.shape)

    def _matmul(self, x: Tensor, counts: list[int], *linears: BitLinear) -> tuple[Tensor, ...]:
        """Multiply the rows of x, ordered by expert, by the matrices of their experts."""
        if linears[0].quantizes_inputs:
            x = straight_through_activations(x).to(x.dtype)
        parts = x.split(counts)
        ys = []
        for linear in linears:
            matrices = linear.rounded_weight().unflatten(0, (self.n_experts, -1))
            pairs = zip(parts, matrices.unbind(), strict=True)
            ys.append(torch.cat([_multiply(part, matrix, linear) for part, matrix in pairs]))
        return tuple(ys)


def _multiply(x: Tensor, weight: Tensor, linear: BitLinear) -> Tensor:
    """Return x times the weight of an expert; quantised inputs are multiplied in float32."""
    if not linear.quantizes_inputs:
        return float_matmul(x, weight)
    y: Tensor = float32_linear(x, weight)
    return y.to(x.dtype)


@in_float32
def _router_logits(x: Tensor, router: nn.Linear) -> Tensor:
    if has_own_call(router, nn.Linear):
        return F.linear(x, widened(router.weight))
    logits: Tensor = router(x)
    return widened(logits)


def load_balancing_loss(logits: Tensor, experts: Tensor) -> Tensor:
    """Return E sum_e f_e P_e of logits (N, E) and selected experts (N, k): 1 if balanced.

    f_e is the fraction of all selections that are expert e, P_e its mean probability (Switch
    Transformers, arXiv:2101.03961).
    """
    E = logits.shape[-1]
    shares = experts.flatten().bincount(minlength=E) / experts.numel()
    return E * (shares * logits.softmax(dim=-1).mean(dim=0)).sum()


def feed_forward(config: ModelConfig) -> nn.Module:
    """Return the FFN of a block."""
    has_experts = FEED_FORWARDS[config.ffn].has_experts
    return MixtureOfExperts(config) if has_experts else FeedForward(config)
