"""The name of a model: a path, or a name or URL on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_HUB_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(@(?P<revision>[^:@]+))?(:(?P<file>[^:]+))?"
)
# A path collapses the slashes after the scheme.
_URL = re.compile(
    r"(https?:/+)?(www\.)?(huggingface\.co|hf\.co)/+(?P<repository>[^/?#]+/[^/?#]+)"
    r"(/(tree|blob|resolve)/(?P<revision>[^/?#]+)(/(?P<file>[^?#]+))?)?/?([?#].*)?"
)


@dataclass(frozen=True)
class HubName:
    """ORG/NAME[@REVISION][:FILE], a model on the hub."""

    repository: str  # ORG/NAME
    revision: str | None = None  # a branch, tag or commit; None: the default branch
    file: str | None = None  # None: the most exact of the repository

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return self.repository + revision + (f":{self.file}" if self.file else "")


def parse_name(model: str | Path) -> Path | HubName:
    """Return the name on the hub that `model` is, or a path, which need not exist.

    A string is a path if it exists, names a checkpoint of a run ("checkpoints/last"), or is neither
    a valid name nor the URL of a model or one of its files.
    """
    path = Path(model)
    is_of_run = path.parent.name == "checkpoints" and os.path.isdir(path.parent)
    if isinstance(model, Path) or os.path.exists(path) or is_of_run:
        return path
    if (url := _URL.fullmatch(model)) is not None:
        revision, file = url["revision"], url["file"]
        revision = f"@{revision}" if revision not in (None, "main") else ""
        model = url["repository"] + revision + (f":{file}" if file else "")
    found = _HUB_NAME.fullmatch(model)
    if found is None or ".." in (found["file"] or "").split("/"):
        return path
    return HubName(found["repository"], found["revision"], found["file"])
