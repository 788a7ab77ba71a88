"""The tests of transformers for its own models, of the installed version.

The wheel has no tests. The source distribution has the mixins of models but not those of generation
and export, which a checkout of the repository has: the environment variable TRANSFORMERS_TESTS
names its directory `tests`. Otherwise pip downloads the source distribution once into `build`.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import subprocess
import sys
import tarfile
import time
import types
from pathlib import Path

import pytest
import transformers

_PACKAGE = "tests"  # the name by which its modules import each other
_CACHE = Path(__file__).resolve().parents[2] / "build/transformers_tests"
_RETRY_S = 600  # after a failed download: all workers of a run see the same result
_ABSENT = {  # modules that the source distribution lacks, and the names that are imported from them
    "exporters.test_export": "ExportTesterMixin",
    "generation.test_utils": "GenerationTesterMixin",
}


def load(module: str) -> types.ModuleType:
    """Import a module of the tests; skip the calling module if they cannot be had."""
    pytest.importorskip("parameterized")
    if _PACKAGE not in sys.modules:
        package = types.ModuleType(_PACKAGE)
        package.__path__ = [str(directory())]
        sys.modules[_PACKAGE] = package
        for name, attribute in _ABSENT.items():
            if not (directory() / f"{name.replace('.', '/')}.py").exists():
                _add_empty(name, attribute)
    return importlib.import_module(f"{_PACKAGE}.{module}")


def directory() -> Path:
    """Return the directory of the tests."""
    if "TRANSFORMERS_TESTS" in os.environ:
        return Path(os.environ["TRANSFORMERS_TESTS"])
    version = transformers.__version__
    tests, failed = _CACHE / f"transformers-{version}/tests", _CACHE / f"no-{version}"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tests.is_dir():
            was_tried = failed.exists() and time.time() - failed.stat().st_mtime < _RETRY_S
            if was_tried or not _download(version):
                if not was_tried:
                    failed.touch()
                pytest.skip(
                    f"pip cannot download the source distribution of transformers {version}",
                    allow_module_level=True,
                )
    return tests


def _download(version: str) -> bool:
    arguments = ["download", "-q", "--retries=1", "--timeout=20", "--no-deps"]
    arguments += ["--no-binary=transformers", "-d", str(_CACHE), f"transformers=={version}"]
    result = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True)
    file = _CACHE / f"transformers-{version}.tar.gz"
    if result.returncode or not file.is_file():
        return False
    with tarfile.open(file) as archive:
        prefix = f"transformers-{version}/tests/"
        members = [member for member in archive if member.name.startswith(prefix)]
        archive.extractall(_CACHE, members, filter="data")
    file.unlink()
    return True


def _add_empty(name: str, attribute: str) -> None:
    """Add a module of one class without tests."""
    for path in (name.rpartition(".")[0], name):
        module = types.ModuleType(f"{_PACKAGE}.{path}")
        module.__path__ = []
        sys.modules[module.__name__] = module
    setattr(module, attribute, type(attribute, (), {"__module__": module.__name__}))
