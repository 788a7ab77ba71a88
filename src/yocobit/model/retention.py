"""Gated retention (YOCO, arXiv:2405.05254) in its three equal forms, on heads already projected.

    S_t = exp(log_decay_t) S_{t-1} + k_t^T v_t        o_t = q_t S_t        k scaled by D^-1/2

    recurrent   one position after the other: the definition, and what the engine computes
    parallel    all positions against all: O(T^2), no state between
    chunkwise   parallel inside chunks, recurrent between them: what training uses

Every exponent is a sum over one segment and is at most 0; a log_decay of -inf forgets everything.

Letters: B batch   H heads   T positions   D key size   E value size   N chunks   P chunk length
"""

from __future__ import annotations

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
    within, from_start, to_end = _decays(log_decay)
    k = k * k.shape[-1] ** -0.5
    outputs = (q @ k.mT * within) @ v
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
    """As `recurrent`, in chunks of `chunk` positions; linear in T."""
    padding = -q.shape[2] % chunk
    # Padded positions add nothing (k = v = 0) and forget nothing (log_decay = 0). They stand in
    # front, so that the last position of every chunk is a true one (see the diagonal in _decays).
    q, k, v = (F.pad(x, (0, 0, padding, 0)).unflatten(2, (-1, chunk)) for x in (q, k, v))
    within, from_start, to_end = _decays(F.pad(log_decay, (padding, 0)).unflatten(2, (-1, chunk)))
    k = k * k.shape[-1] ** -0.5  # (B, H, N, P, D)
    outputs = (q @ k.mT * within) @ v  # (B, H, N, P, E)

    added = (k * to_end[..., None]).mT @ v  # (B, H, N, D, E)
    kept = from_start[..., -1, None, None]  # (B, H, N, 1, 1)
    state = _first_state(k, v) if state is None else state
    before = []
    for n in range(added.shape[2]):
        before.append(state)
        state = kept[:, :, n] * state + added[:, :, n]
    outputs = outputs + (q * from_start[..., None]) @ torch.stack(before, dim=2)
    return outputs.flatten(2, 3)[:, :, padding:], state


def _first_state(k: Tensor, v: Tensor) -> Tensor:
    return k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])


def _decays(log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what remains, for log_decay (..., P), between three pairs of moments.

    within (..., P, P)   at position n of what position m wrote; 0 where m > n
    from_start (..., P)  at position n of the state before the first
    to_end (..., P)      after the last position of what position m wrote

    In float64: a difference of float32 sums loses 4e-4 where the decay is strong.
    """
    total = log_decay.double().clamp_min(_FORGET).cumsum(dim=-1)  # (..., P)
    # The future is cut off before exp: its exponent is positive and the gradient would overflow.
    # So is the diagonal, always 0: two large terms of its gradient would not quite cancel.
    segment = (total[..., :, None] - total[..., None, :]).tril(-1)  # (..., P, P)
    within = segment.to(log_decay.dtype).exp().tril()
    from_start = total.to(log_decay.dtype).exp()
    to_end = segment[..., -1, :].to(log_decay.dtype).exp()
    return within, from_start, to_end
