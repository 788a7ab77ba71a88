"""Ctrl-C, SIGTERM and a closed terminal as a flag that the loop reads between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupt:
    """Inside `with`, the first signal sets `number`; a second one has its usual effect."""

    def __init__(self) -> None:
        self.number = 0  # no signal
        self.previous: dict[signal.Signals, object] = {}

    @property
    def name(self) -> str:
        """The name of the signal that was received."""
        return signal.Signals(self.number).name

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # only it can set handlers
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                is_ignored = number is not None and signal.getsignal(number) == signal.SIG_IGN
                if number is not None and not (name == "SIGHUP" and is_ignored):  # as nohup does
                    self.previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self.previous = {}
