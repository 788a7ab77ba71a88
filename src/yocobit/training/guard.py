"""The guard of the weights: which steps are skipped."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

_WINDOW = 128  # gradient norms that the median is of
_ENOUGH = 32  # with fewer, a spike cannot be told from the start of a run


@dataclass
class Guard:
    """Skips a step whose loss or gradient norm is not finite, or whose norm is a spike.

    A spike is above `spike_factor` times the median norm of the last steps that were not skipped:
    a median, as one large norm must not make room for the next. The fields are what it remembers,
    and belong into a checkpoint.
    """

    norms: list[float] = field(default_factory=list)  # of steps not skipped, oldest first
    n_skipped: int = 0
    n_in_a_row: int = 0  # skipped steps up to now

    def check(self, loss: float, grad_norm: float, spike_factor: float) -> str | None:
        """Return why this step must be skipped, or None; take note of it."""
        reason = self._reason(loss, grad_norm, spike_factor)
        if reason is None:
            self.norms = [*self.norms[1 - _WINDOW :], grad_norm]
            self.n_in_a_row = 0
        else:
            self.n_skipped += 1
            self.n_in_a_row += 1
        return reason

    def _reason(self, loss: float, grad_norm: float, spike_factor: float) -> str | None:
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"gradient norm is {grad_norm}"
        if spike_factor == 0 or len(self.norms) < _ENOUGH:
            return None
        usual = median(self.norms)
        if grad_norm <= spike_factor * usual:
            return None
        return (
            f"gradient norm {grad_norm:.3g} is above {spike_factor:g} times its median {usual:.3g}"
        )
