"""One run in many processes, as torchrun starts them.

Every process does its share of each step and of each evaluation; the first one alone prepares the
text, prints and writes. They meet over gloo. A process that is alone waits for nobody.
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

_PATIENCE = timedelta(days=7)  # with a process that prepares a text or writes a file
_END = timedelta(seconds=20)  # in which a process that raises an error ends


class LostProcess(RuntimeError):
    """Another process of the run has ended, or cannot be reached."""


class Ended(SystemExit):
    """Ends a process quietly: the first one says why."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them; by default it is alone."""

    rank: int = 0
    size: int = 1
    n_local: int = 1  # on this machine
    patient: Any = None  # process group of waits that may take long

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: range) -> range:
        """Return this process's part of items; all parts are of one size."""
        n = len(items) // self.size
        return items[self.rank * n : (self.rank + 1) * n]

    def sum(self, *values: float) -> list[float]:
        """Return the sum over processes of each value: to the last bit the same in all."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, value: int) -> int:
        """Return the largest of the processes' values."""
        return int(self._reduce((value,), dist.ReduceOp.MAX)[0])

    def from_first(self, value: T) -> T:
        """Return the first process's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.patient)
        return values[0]

    def first(self, work: Callable[[], T]) -> T | None:
        """Do `work` in the first process while the others wait; return its result there.

        An error there ends the others, too.
        """
        result, failed = None, True
        try:
            if self.is_first:
                result = work()
            failed = False
        finally:
            failed = self.from_first(failed)
            if failed and not self.is_first:
                raise Ended(1)
        return result

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Do `work` in the first process, then in the others; return its result in each."""
        if self.size == 1:
            return work()
        done = self.first(lambda: [work()])
        return self.together(lambda: done[0] if done else work())

    def together(self, work: Callable[[], T]) -> T:
        """Do `work` in all processes; a user's error in any is one in all."""
        if self.size == 1:
            return work()
        messages: list[str | None] = [None] * self.size
        result: list[T] = []
        message = None
        try:
            result.append(work())
        except (ConfigError, OSError) as error:
            message = str(error)
        dist.all_gather_object(messages, message, group=self.patient)
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


ALONE = Processes()


@contextmanager
def joined(alike: tuple[type[Exception], ...]) -> Iterator[Processes]:
    """Give the processes that torchrun has started, or this one alone.

    Errors of the types `alike` occur in all processes at once: only the first one raises them.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    _silence()
    if not dist.is_initialized():  # by an earlier run: torchrun's processes can meet once only
        dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    patient, ending = dist.new_group(timeout=_PATIENCE), dist.new_group(timeout=_END)
    try:
        yield Processes(rank, size, int(os.environ["LOCAL_WORLD_SIZE"]), patient)
    except (Exception, Ended) as error:
        if rank > 0 and isinstance(error, (*alike, Ended)) and _has_first_ended(ending):
            raise Ended(1) from None
        if not _is_lost(error):
            raise
        raise LostProcess(
            f"process {rank} of {size} has lost another one; start them all again with --resume, "
            "from the last checkpoint"
        ) from error


def _has_first_ended(group: Any) -> bool:
    """Whether the first process ends about now: torchrun kills it if others do before it."""
    try:
        dist.barrier(group)
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        return "Timed out" not in str(error)
    return False


def _is_lost(error: BaseException) -> bool:
    # What gloo raises has no type of its own.
    return "gloo/transport" in str(error)


def _silence() -> None:
    """Keep quiet what torch tells each process about things that are as they should be."""
    # Blocks return views (cached keys and values); nothing here changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    # DTensor's all-to-all over gloo is an all-gather.
    logging.getLogger("torch.distributed.tensor._collective_utils").setLevel(logging.ERROR)


def check_shared(directory: Path, processes: Processes) -> None:
    """Raise ConfigError unless all processes see one directory under this name."""
    if processes.size == 1:
        return
    mark = directory / processes.from_first(f".shared-{uuid.uuid4().hex}")

    def write() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        mark.touch()

    processes.first(write)
    (n_seen,) = processes.sum(mark.exists())
    processes.first(mark.unlink)
    if n_seen < processes.size:
        raise ConfigError(
            f"{directory}: must be on a file system that all processes share, but only "
            f"{n_seen:.0f} of {processes.size} see what the first one writes there"
        )
