"""The processes of one run, as torchrun starts them.

Every process computes its part of each step and each evaluation. The main process (rank 0) alone
prepares the corpus, prints and writes. Collectives run over gloo; a single process runs none.
"""

from __future__ import annotations

import logging
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from yocobit.config import ConfigError

T = TypeVar("T")

_LONG_TIMEOUT = timedelta(days=7)  # while one process prepares a corpus or writes a file
_EXIT_TIMEOUT = timedelta(seconds=20)  # a process that raised an error exits within this time


class LostProcess(RuntimeError):
    """Another process of the run has exited or is unreachable."""


class QuietExit(SystemExit):
    """Ends a process without a message: the main process reports the error."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and the rank of this one; a single process by default."""

    rank: int = 0
    size: int = 1
    n_local: int = 1  # on this machine
    long_group: Any = None  # process group with a long timeout

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def shard(self, items: range) -> range:
        """Return this process's part of items; all parts have the same size."""
        n = len(items) // self.size
        return items[self.rank * n : (self.rank + 1) * n]

    def sum(self, *values: float) -> list[float]:
        """Return the sum of each value over processes, bit-identical in all of them."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, value: int) -> int:
        """Return the maximum of a value over processes."""
        return int(self._reduce((value,), dist.ReduceOp.MAX)[0])

    def broadcast(self, value: T) -> T:
        """Return the main process's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.long_group)
        return values[0]

    def on_main(self, work: Callable[[], T]) -> T | None:
        """Run `work` in the main process while the others wait; return its result there.

        If `work` raises an error, the other processes exit.
        """
        result, failed = None, True
        try:
            if self.is_main:
                result = work()
            failed = False
        finally:
            failed = self.broadcast(failed)
            if failed and not self.is_main:
                raise QuietExit(1)
        return result

    def main_first(self, work: Callable[[], T]) -> T:
        """Run `work` in the main process, then in the others; return its result in each."""
        if self.size == 1:
            return work()
        done = self.on_main(lambda: [work()])
        return self.on_all(lambda: done[0] if done else work())

    def on_all(self, work: Callable[[], T]) -> T:
        """Run `work` in all processes; a user error in one is raised in all."""
        if self.size == 1:
            return work()
        messages: list[str | None] = [None] * self.size
        result: list[T] = []
        message = None
        try:
            result.append(work())
        except (ConfigError, OSError) as error:
            message = str(error)
        dist.all_gather_object(messages, message, group=self.long_group)
        for i, found in enumerate(messages):
            if found is not None:
                raise ConfigError(found if i == 0 else f"process {i}: {found}")
        return result[0]

    def _reduce(self, values: Sequence[float], operation: Any) -> list[float]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()


SINGLE_PROCESS = Processes()


@contextmanager
def process_group(simultaneous: tuple[type[Exception], ...]) -> Iterator[Processes]:
    """Yield the processes that torchrun has started, or a single process.

    Errors of the types `simultaneous` occur in all processes: only the main process raises them.
    """
    if not is_distributed():
        yield SINGLE_PROCESS
        return
    _silence_expected_warnings()
    # An earlier run of the process may have initialised it: torchrun's rendezvous works only once.
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    long_group = dist.new_group(timeout=_LONG_TIMEOUT)
    exit_group = dist.new_group(timeout=_EXIT_TIMEOUT)
    try:
        yield Processes(rank, size, int(os.environ["LOCAL_WORLD_SIZE"]), long_group)
    except (Exception, QuietExit) as error:
        is_simultaneous = isinstance(error, (*simultaneous, QuietExit))
        if rank > 0 and is_simultaneous and _has_main_exited(exit_group):
            raise QuietExit(1) from None
        if not _is_connection_error(error):
            raise
        raise LostProcess(
            f"process {rank} of {size} lost the connection to another one; restart all of them "
            "with --resume, which continues from the last checkpoint"
        ) from error


def is_distributed() -> bool:
    """Whether torchrun has started several processes."""
    return dist.is_torchelastic_launched() and os.environ["WORLD_SIZE"] != "1"


def is_main_process() -> bool:
    """Whether this process prints and writes: rank 0 of torchrun, or a single process."""
    return not dist.is_torchelastic_launched() or os.environ["RANK"] == "0"


def _has_main_exited(group: Any) -> bool:
    """Wait for the main process to exit: torchrun kills it if another exits earlier."""
    try:
        dist.barrier(group)
    except RuntimeError as error:
        if not _is_connection_error(error):
            raise
        return "Timed out" not in str(error)
    return False


def _is_connection_error(error: BaseException) -> bool:
    # gloo's errors have no type of their own.
    return "gloo/transport" in str(error)


def _silence_expected_warnings() -> None:
    """Suppress torch's warnings about expected behaviour, once per process."""
    # Blocks return views (cached keys and values); nothing here changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    # DTensor's all-to-all over gloo is an all-gather.
    logging.getLogger("torch.distributed.tensor._collective_utils").setLevel(logging.ERROR)


def check_shared_directory(directory: Path, processes: Processes) -> None:
    """Raise ConfigError unless `directory` is the same directory in all processes."""
    if processes.size == 1:
        return
    marker = directory / processes.broadcast(f".shared-{uuid.uuid4().hex}")

    def write() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        marker.touch()

    processes.on_main(write)
    (n_visible,) = processes.sum(marker.exists())
    processes.on_main(marker.unlink)
    if n_visible < processes.size:
        raise ConfigError(
            f"{directory}: must be on a file system that all processes share, but a file written "
            f"there is visible to only {n_visible:.0f} of {processes.size}"
        )
