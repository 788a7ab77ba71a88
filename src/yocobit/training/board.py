"""A run in TensorBoard: RUN/tensorboard, where `run.tensorboard` asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from yocobit.config import ConfigError
from yocobit.training.weight_counts import WEIGHT_COUNTS, shares

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

BOARD = "tensorboard"
_VALUES = ("-1", "0", "+1")
_NOT_CURVES = ("step", WEIGHT_COUNTS)


class Board:
    """Writes records and samples as events; those after the step resumed from are withdrawn."""

    def __init__(self, run_dir: Path, step: int) -> None:
        self.writer: SummaryWriter = _import_writer()(str(run_dir / BOARD), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Add a record of metrics.jsonl: every number a scalar, weight counts as shares."""
        step = record["step"]
        for name, value in record.items():
            if name not in _NOT_CURVES and isinstance(value, int | float):
                self.writer.add_scalar(name, value, step)
        for matrix, counts in record.get(WEIGHT_COUNTS, {}).items():
            for value, share in zip(_VALUES, shares(counts), strict=True):
                self.writer.add_scalar(f"weights {value}/{matrix}", share, step)

    def write_sample(self, step: int, text: str) -> None:
        # Indented, text is shown as it is: TensorBoard takes it for Markdown.
        self.writer.add_text("sample", "    " + text.replace("\n", "\n    "), step)

    def flush(self) -> None:
        """Hand all events over; due before the checkpoint that follows them."""
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


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
