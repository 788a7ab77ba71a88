"""The output of a run: permanent lines, and its progress.

Progress is a live line in a terminal, and otherwise a line at intervals. A failed output does not
end a run: characters that its encoding lacks are escaped, and after an error of the pipe, terminal
or disk, nothing more is printed.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from yocobit.tracking.bar import quiet_on_error

_PLAIN_INTERVAL_S, _LIVE_INTERVAL_S = 10.0, 0.25  # between lines without and with a terminal
_BAR_WIDTH = 20
# Control characters except newline and tab: generated text must not control the terminal.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_PICTURES |= dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)


def print_line(console: Console, line: str) -> None:
    """Print a permanent line."""
    line = line.translate(_PICTURES)
    with quiet_on_error(console):
        encoded = line.encode(console.encoding, "backslashreplace")
        line = encoded.decode(console.encoding)
        console.print(line, markup=False, highlight=False, soft_wrap=True)


class Progress:
    """Loss, bits per byte, speed and remaining time of a run."""

    def __init__(self, console: Console, tokens_per_step: int) -> None:
        self.console = console
        self.tokens_per_step = tokens_per_step
        self.loss, self.step_s = _Mean(), _Mean()
        self.line = ""  # of the last step
        self.last_line = self.last_refresh = time.monotonic()
        # Without a thread of its own, whose errors could not be caught.
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            with quiet_on_error(self.console):
                self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with quiet_on_error(self.console):
            self.live.stop()

    def update(
        self, step: int, total: int | None, loss: float | None, seconds: float, bits: float | None
    ) -> None:
        """Show one step that took `seconds`; loss (None: skipped) and speed are smoothed."""
        if loss is not None:
            self.loss.add(loss)
        self.step_s.add(seconds)
        self.line = self._line(step, total, bits)
        self._show(self.line, is_last=step == total)

    def evaluating(self, share: float) -> None:
        """Show the progress of an evaluation, a fraction."""
        n_done = round(share * _BAR_WIDTH)
        bar = "#" * n_done + "-" * (_BAR_WIDTH - n_done)
        self._show(f"{self.line}  evaluating [{bar}] {share:.0%}".strip())

    def _show(self, line: str, is_last: bool = False) -> None:
        """Show a temporary line, unless the last one was shown too recently."""
        now = time.monotonic()
        if self.console.is_terminal:
            if now - self.last_refresh >= _LIVE_INTERVAL_S:
                self.last_refresh = now
                with quiet_on_error(self.console):
                    self.live.update(Text(line), refresh=True)
        elif now - self.last_line >= _PLAIN_INTERVAL_S or is_last:
            self.last_line = now
            self.print(line)

    def print(self, line: str) -> None:
        """Print a permanent line."""
        print_line(self.console, line)

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
