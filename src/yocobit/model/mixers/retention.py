"""Gated retention (YOCO, arXiv:2405.05254): the mixer, and its three equal forms.

    S_t = exp(log_decay_t) S_{t-1} + k_t^T v_t        o_t = q_t S_t        k scaled by D^-1/2

    recurrent   one position after the other: the definition, used by the engine
    parallel    all positions at once, O(T^2): one masked matmul
    chunkwise   parallel inside chunks, recurrent between them: used in training

Every exponent is a sum over one segment and is at most 0; a log_decay of -inf resets the state.

Letters: B batch   H heads   T positions   D key size   E value size   N chunks   P chunk length
         C model width
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yocobit.config import ModelConfig
from yocobit.mixers import MIXERS
from yocobit.model.attention import Documents, Mask, split_heads
from yocobit.model.bitlinear import BitLinear, project
from yocobit.model.norm import gated_norm, head_norm, sub_norm
from yocobit.model.precision import float32_linear, in_float32, without_autocast
from yocobit.model.rope import Positions, Rope, rope

CHUNK = 64
# exp() of this is 0 in float64 too; its sums stay finite and precise, unlike those of -inf.
_LOG_ZERO = -1000.0


class GatedRetention(nn.Module):
    """y = W_out norm(silu(g) * head_norm(o)) with q, k, v, g = projections of x.

    log_decay = logsigmoid(w_decay x) / 16, one value per head and token. The state is one D x D
    matrix per head, (B, H, D, D), independent of the number of positions.
    """

    def __init__(self, config: ModelConfig, returns_memory: bool = False) -> None:
        super().__init__()
        C = config.d_model
        self.returns_memory = returns_memory
        self.n_heads = config.n_self_heads
        self.rope = Rope.of(config, MIXERS["retention"])
        self.eps = config.norm_eps
        self.q_proj = BitLinear(C, C, config.weights)
        self.k_proj = BitLinear(C, C, config.weights)
        self.v_proj = BitLinear(C, C, config.weights)
        self.g_proj = BitLinear(C, C, config.weights)
        # Not quantised: H output features only, and the decay sets the memory length of a layer.
        self.decay_proj = Float32Linear(C, self.n_heads, bias=False)
        self.sub_norm = sub_norm(config, C)
        self.out_proj = BitLinear(C, C, config.weights)

    def forward(
        self, x: Tensor, start: Positions, state: Tensor | None, mask: Mask = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        q, k, v, g = project(x, self.q_proj, self.k_proj, self.v_proj, self.g_proj)
        q = rope(split_heads(q, self.n_heads), start, *self.rope)
        k = rope(split_heads(k, self.n_heads), start, *self.rope)
        v = split_heads(v, self.n_heads)
        log_decay = F.logsigmoid(self.decay_proj(x)).mT / 16  # (B, H, T)
        if isinstance(mask, Documents):
            log_decay = log_decay.masked_fill(mask.resets[:, None], -torch.inf)
        elif mask is not None:
            padding = ~mask.real[:, None, -x.shape[1] :]  # (B, 1, T)
            v = v.masked_fill(padding[..., None], 0)
            log_decay = log_decay.masked_fill(padding, 0)
        form = recurrent if x.shape[1] == 1 else chunkwise
        if torch.compiler.is_exporting():
            form = parallel  # of any length: the loop over chunks has a fixed number of them
        y, state = form(q, k, v, log_decay, state)  # (B, H, T, D)
        memory = head_norm(y, self.eps) if self.returns_memory else None
        y = y if memory is None else memory
        return self.out_proj(gated_norm(g, y, self.sub_norm, self.eps)), state, memory


class Float32Linear(nn.Linear):
    """A linear layer with float32 outputs, also for half-precision weights and under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = float32_linear(x, self.weight)
        return y


@in_float32
def recurrent(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return outputs (B, H, T, E) and the final state (B, H, D, E).

    q, k are (B, H, T, D), v (B, H, T, E), log_decay (B, H, T) <= 0, state (B, H, D, E) or zeros.
    """
    state = _first_state(k, v) if state is None else state
    k = k * k.shape[-1] ** -0.5
    decay = log_decay.exp()[..., None, None]  # (B, H, T, 1, 1)
    outputs = []
    for t in range(q.shape[2]):
        state = decay[:, :, t] * state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((q[:, :, t, None, :] @ state)[:, :, 0])
    return torch.stack(outputs, dim=2), state


@in_float32
def parallel(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Like `recurrent`, all positions at once."""
    total = _cumulative(log_decay)
    from_start, to_end = _boundary_decays(total, q.dtype)
    k = k * k.shape[-1] ** -0.5
    outputs = (q @ k.mT * _segment_decay(total, q.dtype)) @ v
    final = (k * to_end[..., None]).mT @ v
    if state is not None:
        outputs = outputs + (q * from_start[..., None]) @ state
        final = final + from_start[..., -1, None, None] * state
    return outputs, final


@in_float32
def chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Like `recurrent`, in chunks of `chunk` positions; linear in T.

    The backward pass saves the inputs and the state before each chunk only.
    """
    state = _first_state(k, v) if state is None else state
    padding = -q.shape[2] % chunk
    if padding:
        # Padding adds nothing (k = v = 0) and decays nothing (log_decay = 0). It comes first, so
        # that the last position of every chunk is a real one (see the diagonal in _segment_decay).
        q, k, v = (F.pad(x, (0, 0, padding, 0)) for x in (q, k, v))
        log_decay = F.pad(log_decay, (padding, 0))
    outputs, state = _Chunkwise.apply(q, k, v, log_decay, state, chunk)  # type: ignore[no-untyped-call]
    return (outputs[:, :, padding:] if padding else outputs), state


class _Chunkwise(torch.autograd.Function):
    """o = (q k^T * decay) v + from_start (q S_n) for the N chunks of T positions, where S_n is the
    state before chunk n: S_n+1 = chunk_decay S_n + k^T (to_end v).

    One head at a time, so that intermediate results stay in the CPU's caches.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        B, H, T, D = q.shape
        total = _cumulative(log_decay.unflatten(2, (-1, chunk)))  # (B, H, N, P)
        states = _states(k, v, total, state, chunk)
        from_start, _ = _boundary_decays(total, q.dtype)
        outputs = v.new_empty(H, B * T // chunk, chunk, v.shape[3])
        for h in range(H):
            q_h, v_h = _head(q, h, chunk), _head(v, h, chunk)  # (B N, P, D), (B N, P, E)
            scores = torch.bmm(q_h, (_head(k, h, chunk) * D**-0.5).mT)  # (B N, P, P)
            torch.bmm(scores.mul_(_segment_decay(_head(total, h), q.dtype)), v_h, out=outputs[h])
            carried = torch.bmm(q_h, states[h, :, :-1].flatten(0, 1))
            outputs[h].addcmul_(_head(from_start, h)[..., None], carried)
        ctx.save_for_backward(q, k, v, log_decay, states)
        ctx.chunk = chunk
        return outputs.view(H, B, T, -1).transpose(0, 1), states[:, :, -1].transpose(0, 1).clone()

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, log_decay, states = ctx.saved_tensors
        chunk = ctx.chunk
        B, H, T, _ = q.shape
        total = _cumulative(log_decay.unflatten(2, (-1, chunk)))
        grad_states = _state_gradients(q, grad, total, grad_state, chunk)
        grads = [x.new_empty(B, T, H, x.shape[3]).transpose(1, 2) for x in (q, k, v)]
        grad_total = torch.empty_like(total)
        for h in range(H):
            q_h, k_h, v_h, grad_h = (_head(x, h, chunk) for x in (q, k, v, grad))
            before, grad_after = states[h, :, :-1], grad_states[h, :, 1:]
            *of_head, grad_total_h = _head_gradients(
                *(q_h, k_h, v_h, grad_h),
                before.flatten(0, 1),
                grad_after.flatten(0, 1),
                _head(total, h),
            )
            for x, x_h in zip(grads, of_head, strict=True):
                _head(x, h, chunk).copy_(x_h)
            grad_total[:, h] = grad_total_h.unflatten(0, (B, -1))
        grad_log_decay = grad_total.flip(-1).cumsum(-1).flip(-1).flatten(2).to(log_decay.dtype)
        return *grads, grad_log_decay, grad_states[:, :, 0].transpose(0, 1), None


def _states(k: Tensor, v: Tensor, total: Tensor, state: Tensor, chunk: int) -> Tensor:
    """Return the state before each chunk and after the last, (H, B, N + 1, D, E)."""
    B, H, T, D = k.shape
    from_start, to_end = _boundary_decays(total, k.dtype)
    states = k.new_empty(H, B, T // chunk + 1, D, v.shape[3])
    for h in range(H):
        k_h, v_h = _head(k, h, chunk) * D**-0.5, _head(v, h, chunk)
        added = torch.bmm(k_h.mT, v_h * _head(to_end, h)[..., None])
        states[h, :, 1:] = added.unflatten(0, (B, -1))
    states[:, :, 0] = state.transpose(0, 1)
    chunk_decay = from_start[..., -1].transpose(0, 1)[..., None, None]  # (H, B, N, 1, 1)
    for n in range(T // chunk):
        states[:, :, n + 1].addcmul_(chunk_decay[:, :, n], states[:, :, n])
    return states


def _state_gradients(
    q: Tensor, grad: Tensor, total: Tensor, grad_state: Tensor, chunk: int
) -> Tensor:
    """Return the gradients of the states that _states returns, (H, B, N + 1, D, E)."""
    B, H, T, D = q.shape
    from_start, _ = _boundary_decays(total, q.dtype)
    grad_states = q.new_empty(H, B, T // chunk + 1, D, grad.shape[3])
    for h in range(H):
        grad_h = _head(grad, h, chunk) * _head(from_start, h)[..., None]
        read = torch.bmm(_head(q, h, chunk).mT, grad_h)
        grad_states[h, :, :-1] = read.unflatten(0, (B, -1))
    grad_states[:, :, -1] = grad_state.transpose(0, 1)
    chunk_decay = from_start[..., -1].transpose(0, 1)[..., None, None]
    for n in reversed(range(T // chunk)):
        grad_states[:, :, n].addcmul_(chunk_decay[:, :, n], grad_states[:, :, n + 1])
    return grad_states


def _head_gradients(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, before: Tensor, grad_after: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and total of one head, (B N, P, ...) each.

    before is the state before each chunk and grad_after the gradient of the state after it,
    (B N, D, E) both.
    """
    scale = q.shape[2] ** -0.5
    k = k * scale
    from_start, to_end = (x[..., None] for x in _boundary_decays(total, q.dtype))
    decay = _segment_decay(total, q.dtype)
    scores = torch.bmm(q, k.mT).mul_(decay)  # (B N, P, P)
    grad_decayed = torch.bmm(grad, v.mT)
    slope = (scores * grad_decayed).tril_(-1).double()  # of the exponents of decay
    grad_scores = grad_decayed.mul_(decay)
    read = torch.bmm(grad, before.mT).mul_(from_start)  # (B N, P, D)
    written = torch.bmm(v, grad_after.mT).mul_(to_end)
    starts = (read * q).sum(-1).double()  # slopes of the exponents of from_start
    ends = (written * k).sum(-1).double()[:, :-1]  # of to_end, whose last exponent is always 0
    grad_total = slope.sum(-1) - slope.sum(-2) + starts
    grad_total[:, :-1] -= ends
    carried = (before * grad_after).sum((-2, -1)) * from_start[:, -1, 0]
    grad_total[:, -1] += ends.sum(-1) + carried
    grad_k = written.baddbmm_(grad_scores.mT, q).mul_(scale)
    grad_v = torch.bmm(k, grad_after).mul_(to_end).baddbmm_(scores.mT, grad)
    return read.baddbmm_(grad_scores, k), grad_k, grad_v, grad_total


def _head(x: Tensor, h: int, chunk: int | None = None) -> Tensor:
    """Return head h of x (B, H, T, ...) in chunks, or of chunked x (B, H, N, P): (B N, P, ...)."""
    x = x[:, h] if chunk is None else x[:, h].unflatten(1, (-1, chunk))
    return x.flatten(0, 1)


def _first_state(k: Tensor, v: Tensor) -> Tensor:
    return k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])


def _cumulative(log_decay: Tensor) -> Tensor:
    """Return the cumulative sums of log_decay (..., P).

    In float64: a difference of float32 sums loses 4e-4 under strong decay.
    """
    return log_decay.double().clamp_min(_LOG_ZERO).cumsum(dim=-1)


def _segment_decay(total: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the decay from position m to position n, (..., P, P); 0 where m > n."""
    # Masked before exp: exponents of the future are positive and their gradients overflow. The
    # diagonal is masked, too: it is always 0, and two large terms of its gradient do not cancel.
    segment = (total[..., :, None] - total[..., None, :]).tril(-1)  # (..., P, P)
    return segment.to(dtype).exp().tril()


def _boundary_decays(total: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the decay from the start to each position, and from each position to the end, both
    (..., P).
    """
    last = (total[..., -1:] - total[..., :-1]).to(dtype).exp()
    return total.to(dtype).exp(), F.pad(last, (0, 1), value=1.0)
