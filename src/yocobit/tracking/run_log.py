"""What a run leaves to read: metrics.jsonl, samples/ and, on request, TensorBoard's events.

A resumed run forgets what it recorded after the checkpoint that it goes on from.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from yocobit.disk import WriteError
from yocobit.tracking.progress import Metrics
from yocobit.tracking.tensorboard import Board

SAMPLES = "samples"
_SAMPLE = re.compile(r"step-(\d+)\.txt")


class Journal:
    """The records of one run; `step` is the last one that is not to be done again."""

    def __init__(self, run_dir: Path, step: int, *, tensorboard: bool) -> None:
        self.samples = run_dir / SAMPLES
        # First, as the one that can fail for what the user can mend.
        self.board = Board(run_dir, step) if tensorboard else None
        self.metrics = Metrics(run_dir, step)
        for path in self.samples.glob("step-*.txt"):
            if (match := _SAMPLE.fullmatch(path.name)) and int(match[1]) > step:
                path.unlink()

    @property
    def durations(self) -> list[float]:
        """Seconds of the last steps that were recorded before."""
        return self.metrics.durations

    def write(self, record: dict[str, Any]) -> None:
        """Add what one step has measured."""
        self.metrics.write(record)
        if self.board is not None:
            self.board.write(record)

    def write_sample(self, step: int, text: str) -> None:
        """Add a text of the model, its prompt included."""
        path = self.samples / f"step-{step:06d}.txt"
        try:
            self.samples.mkdir(exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            path.unlink(missing_ok=True)
            raise WriteError(path, error, "checkpoints are as they were") from None
        if self.board is not None:
            self.board.write_sample(step, text)

    def sync(self) -> None:
        """Bring all records to disk; due before the checkpoint that follows them."""
        self.metrics.sync()
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        self.metrics.close()
        if self.board is not None:
            self.board.close()


class NoJournal(Journal):
    """The journal of a process that is not the first of its run: written nowhere."""

    def __init__(self) -> None:
        pass

    def write(self, record: dict[str, Any]) -> None:
        pass

    def write_sample(self, step: int, text: str) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass
