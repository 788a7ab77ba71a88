"""torch.compile where the machine has what it needs. Nothing of it is imported before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn


class CompilationError(RuntimeError):
    """A model that torch.compile gives up on."""


def why_not_compilable() -> str | None:
    """Return why torch.compile does not work on this machine, or None: it compiles one sum."""
    try:
        with clear_errors():
            torch.compile(lambda x: x + 1)(torch.zeros(2))
    except CompilationError as error:
        return str(error)
    return None


def compiled(module: nn.Module) -> nn.Module:
    """Return the module compiled for the shapes that it is called with first, and so on."""
    return cast(nn.Module, torch.compile(module, dynamic=False))


@contextmanager
def clear_errors() -> Iterator[None]:
    """Raise what torch.compile raises as one line with a remedy."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    try:
        yield
    except TorchDynamoException as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        # What a killed process was compiling lies there half written.
        raise CompilationError(
            f"torch.compile fails ({reason}); leave out --compile, or empty {cache_dir()}"
        ) from error
