"""Gated retention (YOCO, arXiv:2405.05254) in its three equal forms, on heads already projected.

    S_t = exp(log_decay_t) S_{t-1} + k_t^T v_t        o_t = q_t S_t        k scaled by D^-1/2

    recurrent   one position after the other: the definition, and what the engine computes
    parallel    all positions against all: O(T^2), no state between
    chunkwise   parallel inside chunks, recurrent between them: what training uses

Every exponent is a sum over one segment and is at most 0; a log_decay of -inf forgets everything.

Letters: B batch   H heads   T positions   D key size   E value size   N chunks   P chunk length
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
# exp() of this is 0 in float64 too, and sums of it stay finite and precise, unlike -inf.
_FORGET = -1000.0


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


def parallel(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `recurrent`, all positions at once."""
    total = _totals(log_decay)
    from_start, to_end = _ends(total, q.dtype)
    k = k * k.shape[-1] ** -0.5
    outputs = (q @ k.mT * _within(total, q.dtype)) @ v
    final = (k * to_end[..., None]).mT @ v
    if state is not None:
        outputs = outputs + (q * from_start[..., None]) @ state
        final = final + from_start[..., -1, None, None] * state
    return outputs, final


def chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """As `recurrent`, in chunks of `chunk` positions; linear in T.

    The backward pass keeps the inputs and the state before each chunk, no more.
    """
    state = _first_state(k, v) if state is None else state
    padding = -q.shape[2] % chunk
    if padding:
        # Padded positions add nothing (k = v = 0) and forget nothing (log_decay = 0). They stand in
        # front, so that the last position of every chunk is a true one (see the diagonal below).
        q, k, v = (F.pad(x, (0, 0, padding, 0)) for x in (q, k, v))
        log_decay = F.pad(log_decay, (padding, 0))
    outputs, state = _Chunkwise.apply(q, k, v, log_decay, state, chunk)  # type: ignore[no-untyped-call]
    return (outputs[:, :, padding:] if padding else outputs), state


class _Chunkwise(torch.autograd.Function):
    """o = (q k^T * within) v + from_start (q S_n) for the N chunks that fill T, where S_n is the
    state before chunk n: S_n+1 = kept S_n + k^T (to_end v).

    Head by head: what lies between two products stays in the cache.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        B, H, T, D = q.shape
        total = _totals(log_decay.unflatten(2, (-1, chunk)))  # (B, H, N, P)
        from_start, to_end = _ends(total, q.dtype)
        states = q.new_empty(H, B, T // chunk + 1, D, v.shape[3])
        for h in range(H):
            k_h, v_h = _head(k, h, chunk) * D**-0.5, _head(v, h, chunk)  # (B N, P, D), (B N, P, E)
            added = torch.bmm(k_h.mT, v_h * _head(to_end, h)[..., None])
            states[h, :, 1:] = added.unflatten(0, (B, -1))
        states[:, :, 0] = state.transpose(0, 1)
        kept = from_start[..., -1].transpose(0, 1)[..., None, None]  # (H, B, N, 1, 1)
        for n in range(T // chunk):
            states[:, :, n + 1].addcmul_(kept[:, :, n], states[:, :, n])
        outputs = v.new_empty(H, B * T // chunk, chunk, v.shape[3])
        for h in range(H):
            q_h, v_h = _head(q, h, chunk), _head(v, h, chunk)
            reads = torch.bmm(q_h, (_head(k, h, chunk) * D**-0.5).mT)  # (B N, P, P)
            torch.bmm(reads.mul_(_within(_head(total, h), q.dtype)), v_h, out=outputs[h])
            carried = torch.bmm(q_h, states[h, :, :-1].flatten(0, 1))
            outputs[h].addcmul_(_head(from_start, h)[..., None], carried)
        ctx.save_for_backward(q, k, v, log_decay, states)
        ctx.chunk = chunk
        return outputs.view(H, B, T, -1).transpose(0, 1), states[:, :, -1].transpose(0, 1).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, log_decay, states = ctx.saved_tensors
        chunk = ctx.chunk
        B, H, T, D = q.shape
        total = _totals(log_decay.unflatten(2, (-1, chunk)))
        from_start, to_end = _ends(total, q.dtype)
        kept = from_start[..., -1].transpose(0, 1)[..., None, None]
        grad_states = torch.empty_like(states)
        for h in range(H):
            grad_h = _head(grad, h, chunk) * _head(from_start, h)[..., None]
            read = torch.bmm(_head(q, h, chunk).mT, grad_h)
            grad_states[h, :, :-1] = read.unflatten(0, (B, -1))
        grad_states[:, :, -1] = grad_state.transpose(0, 1)
        for n in reversed(range(T // chunk)):
            grad_states[:, :, n].addcmul_(kept[:, :, n], grad_states[:, :, n + 1])
        grads = [x.new_empty(B, T, H, x.shape[3]).transpose(1, 2) for x in (q, k, v)]
        grad_total = torch.empty_like(total)
        for h in range(H):
            q_h, k_h, v_h, grad_h = (_head(x, h, chunk) for x in (q, k, v, grad))
            before, grad_after = (
                states[h, :, :-1].flatten(0, 1),
                grad_states[h, :, 1:].flatten(0, 1),
            )
            from_start_h, to_end_h = _head(from_start, h)[..., None], _head(to_end, h)[..., None]
            k_h = k_h * D**-0.5
            within = _within(_head(total, h), q.dtype)
            reads = torch.bmm(q_h, k_h.mT).mul_(within)  # (B N, P, P)
            grad_reads = torch.bmm(grad_h, v_h.mT)
            slope = (reads * grad_reads).tril_(-1).double()  # of the exponents of within
            grad_scores = grad_reads.mul_(within)
            read = torch.bmm(grad_h, before.mT).mul_(from_start_h)  # (B N, P, D)
            written = torch.bmm(v_h, grad_after.mT).mul_(to_end_h)
            starts = (read * q_h).sum(-1).double()  # slopes of the exponents of from_start
            ends = (written * k_h).sum(-1).double()[:, :-1]  # of to_end; its last is always 0
            grad_total_h = slope.sum(-1) - slope.sum(-2) + starts
            grad_total_h[:, :-1] -= ends
            carried = (before * grad_after).sum((-2, -1)) * from_start_h[:, -1, 0]
            grad_total_h[:, -1] += ends.sum(-1) + carried
            grad_total[:, h] = grad_total_h.unflatten(0, (B, -1))
            written.baddbmm_(grad_scores.mT, q_h)
            grad_v = torch.bmm(k_h, grad_after).mul_(to_end_h).baddbmm_(reads.mT, grad_h)
            _head(grads[0], h, chunk).copy_(read.baddbmm_(grad_scores, k_h))
            _head(grads[1], h, chunk).copy_(written.mul_(D**-0.5))
            _head(grads[2], h, chunk).copy_(grad_v)
        grad_log_decay = grad_total.flip(-1).cumsum(-1).flip(-1).flatten(2).to(log_decay.dtype)
        return *grads, grad_log_decay, grad_states[:, :, 0].transpose(0, 1), None


def _head(x: Tensor, h: int, chunk: int | None = None) -> Tensor:
    """Return head h of x (B, H, T, ...) in chunks, or of x (B, H, N, P), as (B N, P, ...)."""
    x = x[:, h] if chunk is None else x[:, h].unflatten(1, (-1, chunk))
    return x.flatten(0, 1)


def _first_state(k: Tensor, v: Tensor) -> Tensor:
    return k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])


def _totals(log_decay: Tensor) -> Tensor:
    """Return the sums of log_decay (..., P) up to each position.

    In float64: a difference of float32 sums loses 4e-4 where the decay is strong.
    """
    return log_decay.double().clamp_min(_FORGET).cumsum(dim=-1)


def _within(total: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what remains at position n of what position m wrote, (..., P, P); 0 where m > n."""
    # The future is cut off before exp: its exponent is positive and the gradient would overflow.
    # So is the diagonal, always 0: two large terms of its gradient would not quite cancel.
    segment = (total[..., :, None] - total[..., None, :]).tril(-1)  # (..., P, P)
    return segment.to(dtype).exp().tril()


def _ends(total: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what remains at each position of the state before the first, and after the last
    position of what each wrote, (..., P) both.
    """
    last = (total[..., -1:] - total[..., :-1]).to(dtype).exp()
    return total.to(dtype).exp(), F.pad(last, (0, 1), value=1.0)
