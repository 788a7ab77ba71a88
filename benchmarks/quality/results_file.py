"""JSON file to which a benchmark adds its results; it holds one recipe, replaced atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yocobit.hardware.host import provenance


def read(path: Path, made_by: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of a results file, or provenance and `made_by` for a new one.

    SystemExit if the file has other values for the keys of `made_by`, such as another recipe.
    """
    made_by = dict(made_by or {})
    if not path.exists():
        return {**provenance(), **made_by}
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if {name: results.get(name) for name in made_by} != made_by:
        raise SystemExit(f"{path}: holds results of another recipe; choose another file")
    return results


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Replace the content of a results file atomically."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
