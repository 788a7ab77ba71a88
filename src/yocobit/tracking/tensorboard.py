"""A run in TensorBoard: RUN/tensorboard, where `run.tensorboard` asks for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yocobit.config import ConfigError
from yocobit.disk import WriteError
from yocobit.tracking.weight_counts import WEIGHT_COUNTS, shares

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

BOARD = "tensorboard"
_VALUES = ("-1", "0", "+1")
_NOT_CURVES = ("step", WEIGHT_COUNTS)


class Board:
    """Writes records and samples as events; those after the step resumed from are withdrawn."""

    def __init__(self, run_dir: Path, step: int) -> None:
        self.directory = run_dir / BOARD
        make = _import_writer()
        # Its thread hands an error over to the next call; printed there, it would be a traceback.
        self.hook, threading.excepthook = threading.excepthook, self._leave_to_next_call
        with self._writing():
            self.writer: SummaryWriter = make(str(self.directory), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Add a record of metrics.jsonl: every number a scalar, weight counts as shares."""
        step = record["step"]
        with self._writing():
            for name, value in record.items():
                if name not in _NOT_CURVES and isinstance(value, int | float):
                    self.writer.add_scalar(name, value, step)
            for matrix, counts in record.get(WEIGHT_COUNTS, {}).items():
                for value, share in zip(_VALUES, shares(counts), strict=True):
                    self.writer.add_scalar(f"weights {value}/{matrix}", share, step)

    def write_sample(self, step: int, text: str) -> None:
        # Indented, text is shown as it is: TensorBoard takes it for Markdown.
        with self._writing():
            self.writer.add_text("sample", "    " + text.replace("\n", "\n    "), step)

    def flush(self) -> None:
        """Hand all events over; due before the checkpoint that follows them."""
        with self._writing():
            self.writer.flush()

    def close(self) -> None:
        with suppress(OSError):  # tries again to write what could not be written
            self.writer.close()
        threading.excepthook = self.hook

    def _leave_to_next_call(self, args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            self.hook(args)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(self.directory, error, "checkpoints are as they were") from None


def _import_writer() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        if error.name != "tensorboard":
            raise
        raise ConfigError(
            "run.tensorboard is true but TensorBoard is absent: pip install 'yocobit[tensorboard]'"
        ) from None
    return SummaryWriter
