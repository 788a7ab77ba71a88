"""What a run shows and records: a live line or plain lines, and RUN/metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from yocobit.disk import WriteError

METRICS = "metrics.jsonl"
_REMEMBERED_STEPS = 128
_PLAIN_INTERVAL_S = 10.0  # between lines where there is no terminal


class Metrics:
    """RUN/metrics.jsonl: one object per step, appended; a resumed run forgets later steps."""

    def __init__(self, run_dir: Path, step: int) -> None:
        self.path = run_dir / METRICS
        kept = _records_until(self.path, step) if self.path.exists() else []
        # Of the last steps; no less than what times are rounded to.
        times = [record["seconds"] for record in kept[-_REMEMBERED_STEPS:]]
        self.durations = [max(0.001, after - before) for before, after in pairwise(times)]
        # Beside and renamed: a run killed here has lost nothing.
        partial = self.path.with_suffix(".partial")
        try:
            partial.write_text("".join(_line(record) for record in kept), encoding="utf-8")
            os.replace(partial, self.path)
            self.file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise self._error(error) from None

    def write(self, record: dict[str, Any]) -> None:
        try:
            self.file.write(_line(record))
            self.file.flush()
        except OSError as error:
            raise self._error(error) from None

    def sync(self) -> None:
        """Bring all records to disk; due before the checkpoint that follows them."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise self._error(error) from None

    def close(self) -> None:
        with suppress(OSError):  # tries again to write what could not be written
            self.file.close()

    def _error(self, error: OSError) -> WriteError:
        return WriteError(self.path, error, "checkpoints are as they were")


def _line(record: dict[str, Any]) -> str:
    """Return a record as JSON, which has no NaN and no infinity."""
    is_bad = {k: isinstance(v, float) and not math.isfinite(v) for k, v in record.items()}
    return json.dumps({k: None if is_bad[k] else v for k, v in record.items()}) + "\n"


def _records_until(path: Path, step: int) -> list[dict[str, Any]]:
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the line a killed run was writing
            break
        if record["step"] > step:
            break
        records.append(record)
    return records


class Progress:
    """Loss, bits per byte, speed and remaining time of a run."""

    def __init__(self, console: Console, tokens_per_step: int) -> None:
        self.console = console
        self.tokens_per_step = tokens_per_step
        self.loss, self.seconds_per_step = _Mean(), _Mean()
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
        self.seconds_per_step.add(seconds)
        line = self._line(step, total, bits)
        if self.console.is_terminal:
            self.live.update(Text(line))
        elif time.monotonic() - self.last_line >= _PLAIN_INTERVAL_S or step == total:
            self.last_line = time.monotonic()
            self.print(line)

    def print(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _line(self, step: int, total: int | None, bits: float | None) -> str:
        loss = "?" if self.loss.weight == 0 else f"{self.loss.value:.3f}"
        seconds = self.seconds_per_step.value
        parts = [f"step {step}/{total or '?'}", f"loss {loss}"]
        if bits is not None:
            parts.append(f"valid {bits:.3f} bits/byte")
        parts.append(f"{self.tokens_per_step / seconds:,.0f} tokens/s")
        if total is not None:
            parts.append(f"{_clock((total - step) * seconds)} left")
        return "  ".join(parts)


class _Mean:
    """Exponential mean of about the last twenty values; of the first ones, nearly their mean."""

    def __init__(self) -> None:
        self.sum = self.weight = 0.0  # the weight comes up to 1

    def add(self, value: float) -> None:
        self.sum += (value - self.sum) / 20
        self.weight += (1 - self.weight) / 20

    @property
    def value(self) -> float:
        return self.sum / self.weight


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
