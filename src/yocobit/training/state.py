"""Progress of a run, as state.json of a checkpoint stores it, with its gradient-spike guard."""

from __future__ import annotations

import math
from statistics import median

import msgspec

from yocobit.packing.checkpoints import FileName
from yocobit.settings import Count, Natural, NotNegative
from yocobit.training.config import Precision

_WINDOW = 128  # gradient norms that the median is taken over
_MIN_NORMS = 32  # with fewer norms, a spike cannot be distinguished from the start of a run


class GradientSpikeGuard(msgspec.Struct, forbid_unknown_fields=True):
    """Skips a step whose loss or gradient norm is not finite, or whose norm is a spike.

    A spike is above `spike_factor` times the median norm of the last steps that were not skipped.
    With a mean, one spike would raise the threshold for the next. The fields are part of a
    checkpoint.
    """

    norms: list[NotNegative] = []  # of steps not skipped, oldest first; copied by msgspec
    n_skipped: Natural = 0
    n_in_a_row: Natural = 0  # consecutive skipped steps up to now

    def check(self, loss: float, grad_norm: float, spike_factor: float) -> str | None:
        """Return why this step must be skipped, or None, and record its norm."""
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
        if spike_factor == 0 or len(self.norms) < _MIN_NORMS:
            return None
        usual = median(self.norms)
        if grad_norm <= spike_factor * usual:
            return None
        return (
            f"gradient norm {grad_norm:.3g} is above {spike_factor:g} times its median {usual:.3g}"
        )


class RunState(msgspec.Struct):
    """Progress of a run. The next step depends only on it, the configuration and the weights."""

    corpus_sha256: str
    teacher_sha256: str | None = None
    step: Natural = 0  # completed steps
    total_steps: Natural | None = None  # None: a time budget that is not converted to steps yet
    n_tokens: Natural = 0
    seconds: NotNegative = 0.0
    valid_bits_per_byte: float | None = None  # latest
    best_bits_per_byte: float | None = None  # on the text of every evaluation but the last
    best_step: Natural | None = None
    # Seconds of a token of an evaluation and of a sample, measured if the run has a time budget.
    evaluation_s: NotNegative | None = None
    sample_s: NotNegative = 0.0
    guard: GradientSpikeGuard = msgspec.field(default_factory=GradientSpikeGuard)
    # Settings of the arithmetic: with other values, losses differ in their last bits.
    threads: Count = 1  # of each process
    processes: Count = 1
    precision: Precision = "float32"
    is_compiled: bool = False

    @property
    def arithmetic(self) -> str:
        """Threads, processes, precision and compilation, in words."""
        workers = f"{self.threads} threads"
        if self.processes > 1:
            workers += f" in each of {self.processes} processes"
        return f"{workers}, {self.precision}{', compiled' * self.is_compiled}"


class StateFile(RunState, kw_only=True, forbid_unknown_fields=True):
    """state.json: the progress, and the sizes and hashes of the files of a checkpoint."""

    size_bytes: dict[FileName, int]
    sha256: dict[FileName, str] = {}  # empty in checkpoints of earlier versions
