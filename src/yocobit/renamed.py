"""Aliases of renamed public names, kept for one minor version."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def aliases(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` (PEP 562) that resolves old names.

    `names` maps each old name to "module:name". Access to an old name emits DeprecationWarning and
    imports the new module.
    """

    def resolve(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, new = names[name].partition(":")
        warnings.warn(
            f"{package}.{name} is now {module}.{new}; the old name will be removed in 0.2",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(module), new)

    return resolve
