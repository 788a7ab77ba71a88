"""Files that are whole, or absent, after a power failure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def flush(path: Path) -> None:
    """Bring a file's content, or a directory's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
