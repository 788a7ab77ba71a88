"""Extras of the package, and the command that installs one."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from yocobit.errors import ConfigError


def needs_extra(extra: str, message: str) -> ConfigError:
    """Return the error of a package that is not installed; the remedy is a command that works."""
    return ConfigError(f"{message}: {install_command(extra)}")


def install_command(extra: str) -> str:
    """Return the command that installs an extra into the environment of this process.

    No index has yocobit itself: the command names the clone that the package is imported from or,
    without one, the requirements of the extra.
    """
    clone = Path(__file__).resolve().parents[2]
    is_clone = (clone / "pyproject.toml").is_file()
    arguments = ["-e", f"{_relative(clone)}[{extra}]"] if is_clone else requirements(extra)
    python = Path(sys.executable)
    is_first = shutil.which("pip") == str(python.with_name("pip"))
    pip = ["pip"] if is_first else [_relative(python), "-m", "pip"]
    return shlex.join([*pip, "install", *arguments])


def requirements(extra: str) -> Iterator[str]:
    """Yield the requirements of an extra of this package, and of the extras that it includes."""
    for line in importlib.metadata.requires("yocobit") or ():
        requirement, _, marker = line.partition(";")
        condition, _, of = marker.partition("extra ==")
        if of.strip(" '\"") != extra:
            continue
        if included := re.fullmatch(r"yocobit\[(.+)\]", requirement.strip()):
            for name in included[1].split(","):
                yield from requirements(name)
        else:
            condition = condition.strip().removesuffix("and").strip()
            yield f"{requirement.strip()}; {condition}" if condition else requirement.strip()


def _relative(path: Path) -> str:
    """Return a path as short as possible from the working directory."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
