"""TensorBoard events of a run: RUN/tensorboard, written if `run.tensorboard` is true."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yocobit.disk import WriteError
from yocobit.errors import is_out_of_memory
from yocobit.extras import needs_extra
from yocobit.reading import cause
from yocobit.tracking.curves import WEIGHT_COUNTS, shares

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD = "tensorboard"
UNCHANGED = "checkpoints are unchanged"  # after a failed write of a log
_CODES = ("-1", "0", "+1")
_NOT_SCALARS = ("step", WEIGHT_COUNTS)


class TensorBoardWriter:
    """Writes records and samples as events."""

    def __init__(self, run_dir: Path, step: int) -> None:
        """Open the events of a run that continues after `step`, and purge all later ones."""
        self.directory = run_dir / TENSORBOARD
        writer = _import_writer()
        # The writer raises an error of its thread again in the next call; this hook only suppresses
        # the traceback that the thread would print.
        self.hook, threading.excepthook = threading.excepthook, self._ignore_write_error
        with self._writing():
            self.writer: SummaryWriter = writer(str(self.directory), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Add a record of metrics.jsonl: each number as a scalar, weight counts as shares."""
        step = record["step"]
        with self._writing():
            for name, value in record.items():
                if name not in _NOT_SCALARS and isinstance(value, int | float):
                    self.writer.add_scalar(name, value, step)
            for matrix, counts in record.get(WEIGHT_COUNTS, {}).items():
                for code, share in zip(_CODES, shares(counts), strict=True):
                    self.writer.add_scalar(f"weights {code}/{matrix}", share, step)

    def write_sample(self, step: int, text: str) -> None:
        """Add a sample as text."""
        # TensorBoard renders Markdown; indented text is shown verbatim.
        with self._writing():
            self.writer.add_text("sample", "    " + text.replace("\n", "\n    "), step)

    def flush(self) -> None:
        """Flush all events to the file; required before the checkpoint that follows them."""
        with self._writing():
            self.writer.flush()

    def close(self) -> None:
        """Close the writer and restore the exception hook of threads."""
        with suppress(Exception):  # closing retries a failed write
            self.writer.close()
        threading.excepthook = self.hook

    def _ignore_write_error(self, args: threading.ExceptHookArgs) -> None:
        if args.thread is None or "tensorboard" not in type(args.thread).__module__:
            self.hook(args)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the file system, or of TensorBoard or protobuf
            if is_out_of_memory(error):
                raise
            raise WriteError(self.directory, error, UNCHANGED) from None


def _import_writer() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        if error.name != "tensorboard":
            raise
        subject = "run.tensorboard is true but TensorBoard is not installed"
        raise needs_extra("tensorboard", subject) from None
    except Exception as error:  # such as a protobuf of another version
        subject = f"run.tensorboard is true but TensorBoard cannot be imported ({cause(error)})"
        raise needs_extra("tensorboard", f"{subject}; install it again") from None
    return SummaryWriter
