"""The standard streams of the command line: none is closed, none raises UnicodeEncodeError."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


def prepare() -> None:
    """Replace closed streams by /dev/null; escape characters that an encoding lacks.

    Otherwise the next file that is opened gets the descriptor of the closed stream, and messages
    for the stream are written to it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, _null(descriptor))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _null(descriptor: int) -> TextIO:
    """Open /dev/null with a descriptor, unless another file has it already."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.fstat(descriptor)
    except OSError:
        os.dup2(null, descriptor)
        os.close(null)
        null = descriptor
    if null == descriptor:
        os.set_inheritable(descriptor, True)
    return open(null, "w" if descriptor else "r", encoding="utf-8")
