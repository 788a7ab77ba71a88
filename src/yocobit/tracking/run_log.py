"""The log of a run: RUN/metrics.jsonl, RUN/samples/ and optional TensorBoard events.

A resumed run discards the records after the checkpoint that it continues from.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from contextlib import suppress
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Protocol

from yocobit.disk import WriteError, replacing
from yocobit.tracking.curves import METRICS, read_records
from yocobit.tracking.tensorboard import UNCHANGED, TensorBoardWriter

SAMPLES = "samples"
_SAMPLE = re.compile(r"step-(\d+)\.txt")
_N_DURATIONS = 128  # steps whose durations a resumed run reads back


class MetricsFile:
    """RUN/metrics.jsonl: one JSON object per step, appended."""

    def __init__(self, run_dir: Path, step: int) -> None:
        """Open the file and discard the records of steps after `step`."""
        self.path = run_dir / METRICS
        records, damage = read_records(self.path) if self.path.exists() else ([], None)
        self.warning = None if damage is None else self._set_aside(damage)
        kept = [*takewhile(lambda record: record["step"] <= step, records)]
        times = [record.get("seconds") or 0.0 for record in kept[-_N_DURATIONS:]]
        # At least a millisecond, the resolution of recorded times.
        self.durations = [max(0.001, after - before) for before, after in pairwise(times)]
        try:
            with replacing(self.path) as partial:
                partial.write_text("".join(map(_line, kept)), encoding="utf-8")
            self.file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._error(error) from None

    def _set_aside(self, damage: str) -> str:
        """Keep a copy of a damaged file; return a warning."""
        copy = self.path.with_name(f"{METRICS}.damaged")
        try:
            with replacing(copy) as partial:
                shutil.copyfile(self.path, partial)
        except OSError as error:
            raise self._error(error) from None
        return f"warning: {damage}; the file is kept as {copy.name}, without the records from there"

    def write(self, record: dict[str, Any]) -> None:
        """Append the record of one step."""
        try:
            self.file.write(_line(record))
            self.file.flush()
        except OSError as error:
            raise self._error(error) from None

    def sync(self) -> None:
        """Flush all records to disk."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise self._error(error) from None

    def close(self) -> None:
        """Close the file; records that are not on disk may be lost."""
        with suppress(OSError):  # closing retries a failed write
            self.file.close()

    def _error(self, error: OSError) -> WriteError:
        return WriteError(self.path, error, UNCHANGED)


def _line(record: dict[str, Any]) -> str:
    """Return a record as JSON, with null for NaN and infinity."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite) + "\n"


class StepLog(Protocol):
    """Where a run writes its records and samples."""

    @property
    def durations(self) -> list[float]:
        """Seconds of each of the last steps in the log when it was opened."""

    @property
    def warning(self) -> str | None:
        """A line about damage of the log when it was opened."""

    def write(self, record: dict[str, Any]) -> None:
        """Append the record of one step."""

    def write_sample(self, step: int, text: str) -> None:
        """Store generated text, its prompt included."""

    def sync(self) -> None:
        """Flush all records to disk; required before the checkpoint that follows them."""

    def close(self) -> None:
        """Close all files."""


class RunLog:
    """Records and samples of one run, written by its main process."""

    def __init__(self, run_dir: Path, step: int, *, tensorboard: bool) -> None:
        """Open the log of a run that continues after `step`, and discard all later entries."""
        self.samples = run_dir / SAMPLES
        # First: it fails if TensorBoard is not installed.
        self.tensorboard = TensorBoardWriter(run_dir, step) if tensorboard else None
        self.metrics = MetricsFile(run_dir, step)
        for path in self.samples.glob("step-*.txt"):
            if (match := _SAMPLE.fullmatch(path.name)) and int(match[1]) > step:
                path.unlink()

    @property
    def durations(self) -> list[float]:
        """Seconds of each of the last steps in the log when it was opened."""
        return self.metrics.durations

    @property
    def warning(self) -> str | None:
        """A line about damage of metrics.jsonl when it was opened."""
        return self.metrics.warning

    def write(self, record: dict[str, Any]) -> None:
        """Append the record of one step."""
        self.metrics.write(record)
        if self.tensorboard is not None:
            self.tensorboard.write(record)

    def write_sample(self, step: int, text: str) -> None:
        """Store generated text, its prompt included."""
        path = self.samples / f"step-{step:06d}.txt"
        try:
            self.samples.mkdir(exist_ok=True)
            with replacing(path) as partial:
                partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise WriteError(path, error, UNCHANGED) from None
        if self.tensorboard is not None:
            self.tensorboard.write_sample(step, text)

    def sync(self) -> None:
        """Flush all records to disk; required before the checkpoint that follows them."""
        self.metrics.sync()
        if self.tensorboard is not None:
            self.tensorboard.flush()

    def close(self) -> None:
        """Close all files."""
        self.metrics.close()
        if self.tensorboard is not None:
            self.tensorboard.close()


class NullRunLog:
    """The log of all processes but the main one: it writes nothing."""

    def __init__(self) -> None:
        self.durations: list[float] = []
        self.warning: str | None = None

    def write(self, record: dict[str, Any]) -> None:
        pass

    def write_sample(self, step: int, text: str) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass
