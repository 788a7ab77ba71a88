"""How the C library keeps memory between the operations of a step."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h> of glibc


def keep_freed_memory() -> None:
    """Reuse the memory of freed tensors for the rest of the process, where the C library can.

    By default glibc returns large blocks to the system, which hands out each page again as zeros
    at the next operation. Every step needs the same memory, so the peak hardly grows.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
