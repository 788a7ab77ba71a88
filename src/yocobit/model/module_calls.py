"""Whether a module's parameters may be used without calling it."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as _module


def has_own_call(module: nn.Module, of: type[nn.Module]) -> bool:
    """Return whether calling a module runs the forward method of the class `of` and nothing else.

    Adapters replace modules, offloading replaces their forward method, and users register hooks.
    """
    return type(module).forward is of.forward and not (
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _module._has_any_global_hook()  # type: ignore[no-untyped-call]
    )
