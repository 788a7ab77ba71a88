"""What the workers of test_preparation.py run: a module that imports little."""

from __future__ import annotations

import os
import time
from pathlib import Path

from yocobit.errors import UserError
from yocobit.serving.errors import APIError

MB = 1 << 20


def make_context() -> str:
    return "context"


def no_context() -> str:
    raise UserError("model: has no tokenizer")


def describe(context: str, argument: int) -> tuple[str, int, int, int]:
    return context, argument, os.getpid(), os.nice(0)


def measure(context: str, content: bytes) -> int:
    return len(content)


def spin(context: str) -> None:
    while True:
        pass


def sleep(context: str, path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(1000)


def allocate(context: str) -> int:
    return len(bytearray(256 * MB))


def grow(context: str) -> int:
    return len(b"x" * (80 * MB))


def end(context: str) -> None:
    os._exit(3)


def divide(context: str) -> float:
    return 1 / 0


def refuse(context: str) -> None:
    raise APIError(404, "no such model", param="model", code="model_not_found", retry_after=7)
