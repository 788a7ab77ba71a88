"""The progress line of a run: live in a terminal, printed every few seconds otherwise."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

_PLAIN_INTERVAL_S = 10.0  # between lines without a terminal


class Progress:
    """Loss, bits per byte, speed and remaining time of a run."""

    def __init__(self, console: Console, tokens_per_step: int) -> None:
        self.console = console
        self.tokens_per_step = tokens_per_step
        self.loss, self.step_s = _Mean(), _Mean()
        self.last_line = time.monotonic()
        self.live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.live.stop()

    def update(
        self, step: int, total: int | None, loss: float | None, seconds: float, bits: float | None
    ) -> None:
        """Show one step that took `seconds`; loss (None: skipped) and speed are smoothed."""
        if loss is not None:
            self.loss.add(loss)
        self.step_s.add(seconds)
        line = self._line(step, total, bits)
        if self.console.is_terminal:
            self.live.update(Text(line))
        elif time.monotonic() - self.last_line >= _PLAIN_INTERVAL_S or step == total:
            self.last_line = time.monotonic()
            self.print(line)

    def print(self, line: str) -> None:
        """Print a permanent line."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _line(self, step: int, total: int | None, bits: float | None) -> str:
        loss = "?" if self.loss.weight == 0 else f"{self.loss.value:.3f}"
        step_s = self.step_s.value
        parts = [f"step {step}/{total or '?'}", f"loss {loss}"]
        if bits is not None:
            parts.append(f"valid {bits:.3f} bits/byte")
        parts.append(f"{self.tokens_per_step / step_s:,.0f} tokens/s")
        if total is not None:
            parts.append(f"{_clock((total - step) * step_s)} left")
        return "  ".join(parts)


class _Mean:
    """Bias-corrected exponential moving average over about twenty values."""

    def __init__(self) -> None:
        self.sum = self.weight = 0.0  # the weight approaches 1

    def add(self, value: float) -> None:
        self.sum += (value - self.sum) / 20
        self.weight += (1 - self.weight) / 20

    @property
    def value(self) -> float:
        return self.sum / self.weight


def _clock(seconds: float) -> str:
    """Return a duration as h:mm:ss or m:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
