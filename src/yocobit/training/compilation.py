"""torch.compile where the machine has what it needs."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException


def why_not_compilable() -> str | None:
    """Return why torch.compile does not work on this machine, or None: it compiles one sum."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except (TorchDynamoException, RuntimeError, OSError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def compiled(module: nn.Module) -> nn.Module:
    """Return the module compiled for the shapes that it is called with first, and so on."""
    return cast(nn.Module, torch.compile(module, dynamic=False))
