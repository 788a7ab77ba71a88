"""The import graph of the package: layers, no cycles, modules that work without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"

# The lowest layer is first: a module may import from its own line and from the lines before it.
# Its layer is that of the longest name here which is the module or one of its parents.
LAYERS = (
    "version errors extras renamed system _native",
    "reading",
    "disk pictures settings",
    "config",
    "mixers",
    "hardware",
    "packing",
    "text",
    "costs",
    "data",
    "model",
    "packing.text_files packing.pack importers",
    "exporters",
    "tracking",
    "training",
    "engine pretrained",
    "hf",
    "evaluation",
    "benchmark",
    "planning",
    "serving",
    "hub",
    "cli",
    "__main__",
)
RANKS = {f"yocobit.{name}": rank for rank, line in enumerate(LAYERS) for name in line.split()}

WITHOUT_TORCH = (
    "yocobit",
    "yocobit.engine",
    "yocobit.serving",
    "yocobit.packing",
    "yocobit.costs",
    "yocobit.hardware",
    "yocobit.importers",
    "yocobit.hub",
    "yocobit.exporters",
    "yocobit.text",
    "yocobit.data.corpus",
    "yocobit.tracking.plot",
    "yocobit.benchmark",
    "yocobit.planning",
    "yocobit.evaluation",
    "yocobit.cli",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TOP = "yocobit"
FILES = {module_name(path): path for path in (SOURCE / "yocobit").rglob("*.py")}


def from_imports(name: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of each import of the package in a module, also inside functions."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == TOP)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == TOP:
            yield from ((str(node.module), alias.name) for alias in node.names)


def is_facade(name: str) -> bool:
    """Whether a module is a package's __init__, which only re-exports names of its modules."""
    return FILES[name].name == "__init__.py" and name != TOP


def imports(name: str) -> Iterator[str]:
    """Yield the modules that a module imports from; resolves the names that a facade re-exports."""
    for module, attribute in from_imports(name):
        submodule = f"{module}.{attribute}"
        if submodule in FILES or submodule == f"{TOP}._native":
            yield submodule
        elif module in FILES and is_facade(module) and module != name:
            origins = {exported: origin for origin, exported in from_imports(module)}
            yield origins.get(attribute, module)
        else:
            yield module


def rank(name: str) -> int:
    known = next((parent for parent in parents(name) if parent in RANKS), None)
    assert known, f"{name} has no layer: add it to LAYERS"
    return RANKS[known]


def parents(name: str) -> Iterator[str]:
    """Yield a dotted name and its parents, the longest first."""
    while name:
        yield name
        name = name.rpartition(".")[0]


GRAPH = {name: sorted(set(imports(name))) for name in FILES}


def test_every_module_has_a_layer():
    # The root imports only the version and, lazily, Engine.
    assert set(GRAPH["yocobit"]) == {"yocobit.version", "yocobit.engine.engine"}
    assert all(rank(name) >= 0 for name in FILES if name != "yocobit")


@pytest.mark.parametrize("name", sorted(name for name in FILES if name != TOP))
def test_module_imports_nothing_from_a_higher_layer(name):
    own = f"{name}." if is_facade(name) else None  # a facade imports from its own package
    upward = {
        other
        for other in GRAPH[name]
        if other == TOP or (rank(other) > rank(name) and not (own and other.startswith(own)))
    }
    assert not upward, f"{name} imports {upward}: see LAYERS"


def test_import_graph_has_no_cycle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name in done or name not in GRAPH:
            return
        for other in GRAPH[name]:
            visit(other, (*path, name))
        done.add(name)

    for name in GRAPH:
        visit(name, ())


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, check=True, timeout=120, stdout=subprocess.PIPE, text=True
    ).stdout


# Imports each package in a process of its own, forked from one that has their dependencies.
WITHOUT_TORCH_CODE = """
import importlib, os, sys
sys.modules["torch"] = None
import numpy, rich.console, safetensors, tokenizers, typer
for name in sys.argv[1:]:
    if (child := os.fork()) == 0:
        importlib.import_module(name)
        os._exit(0)
    print(name, os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def imported() -> list[str]:
    """Each package and the status of the process that imported it without torch."""
    return run_python(WITHOUT_TORCH_CODE, *WITHOUT_TORCH).splitlines()


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_package_imports_without_torch(name, imported):
    assert f"{name} 0" in imported


def test_training_loads_neither_engine_nor_benchmark():
    run_python(
        "import sys, yocobit.training\n"
        "loaded = {'yocobit.engine', 'yocobit.benchmark', 'yocobit.serving'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )


def test_version_equals_that_of_pyproject():
    from yocobit.version import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert __version__ == project["version"]
