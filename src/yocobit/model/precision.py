"""float32 where half precision would be wrong: in bfloat16 and float16 models and under autocast.

Quantisation, norms, rope, decay and recurrent states compute in float32 and return the dtype of
their inputs. Nothing changes for float32 and float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

_Function = TypeVar("_Function", bound=Callable[..., Any])
_HALF = (torch.bfloat16, torch.float16)


def widened(x: Tensor) -> Tensor:
    """Return x in float32 if it is in half precision, otherwise x itself."""
    return x.float() if x.dtype in _HALF else x


def in_float32(function: _Function) -> _Function:
    """Widen the tensors among positional arguments of a function, and run it without autocast."""
    plain = without_autocast(function)

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        return plain(*[widened(x) if isinstance(x, Tensor) else x for x in args], **options)

    return run  # type: ignore[return-value]


def without_autocast(function: _Function) -> _Function:
    """Run a function without the autocast of the device of its tensors.

    Both passes of an autograd function need it: autocast applies to their operators, too.
    """

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        device = _autocast_device(args)
        if device is None:
            return function(*args, **options)
        with torch.autocast(device, enabled=False):
            return function(*args, **options)

    return run  # type: ignore[return-value]


float32_linear = in_float32(F.linear)


def _autocast_device(args: tuple[Any, ...]) -> str | None:
    """Return the device type of the first tensor if autocast is enabled for it."""
    for x in args:
        if isinstance(x, Tensor):
            device = x.device.type
            is_available = device == "cpu" or torch.amp.is_autocast_available(device)
            return device if is_available and torch.is_autocast_enabled(device) else None
    return None
