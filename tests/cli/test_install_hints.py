"""Install hints: each names an extra that exists and a command that works where it is printed."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

from yocobit import extras
from yocobit.errors import ConfigError
from yocobit.extras import install_command, needs_extra

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
HINTS = {"needs_extra": 0, "_import": 1}  # functions that print a hint: position of the extra


def hints() -> Iterator[str]:
    """Yield the extras that the package names in messages."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                position = HINTS.get(node.func.id)
                if position is not None and isinstance(node.args[position], ast.Constant):
                    yield str(node.args[position].value)


def own_requirements(extra: str) -> Iterator[Requirement]:
    """Yield the requirements of an extra in pyproject.toml, those of included extras too."""
    for requirement in map(Requirement, EXTRAS[extra]):
        if requirement.name == "yocobit":
            for included in requirement.extras:
                yield from own_requirements(included)
        else:
            yield requirement


def test_every_extra_in_a_message_exists():
    named = set(hints())

    assert named >= {"hub", "serve", "train", "plot", "hf", "tensorboard", "parquet", "zstd"}
    assert named <= EXTRAS.keys()


def test_no_message_and_no_page_installs_yocobit_from_an_index():
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").iterdir()]
    code = [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    files = [path for path in (*pages, *code) if path.is_file()]

    lines = [f"{path}: {n}" for path in files if "yocobit[" in (n := path.read_text("utf-8"))]

    assert len(files) > 200
    assert not [line[:200] for line in lines]


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_in_a_clone_names_the_clone(extra, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    here = shlex.split(install_command(extra))
    monkeypatch.chdir(tmp_path)
    elsewhere = shlex.split(install_command(extra))

    assert here[-2:] == ["-e", f".[{extra}]"]
    assert elsewhere[-2:] == ["-e", f"{ROOT}[{extra}]"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_command_of_a_wheel_names_the_requirements(extra, monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "lib/site-packages/yocobit/extras.py"))

    command = shlex.split(install_command(extra))

    expected = list(own_requirements(extra))
    printed = command[-len(expected) :]
    assert sorted(str(Requirement(each)) for each in printed) == sorted(map(str, expected))
    assert command[: -len(expected)][-1] == "install"


def test_the_command_installs_into_the_environment_of_the_process(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    pip = python.with_name("pip")
    pip.parent.mkdir(parents=True)
    pip.write_text("#!/bin/sh\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    monkeypatch.setenv("PATH", "/usr/bin")
    outside = install_command("hub")
    monkeypatch.setenv("PATH", f"{pip.parent}:/usr/bin")
    activated = install_command("hub")

    assert outside.startswith("env/bin/python -m pip install ")
    assert activated.startswith("pip install ")


def test_a_hint_is_an_error_of_one_line():
    error = needs_extra("hub", "models on the hub need huggingface_hub")

    assert isinstance(error, ConfigError)
    assert re.fullmatch(r"models on the hub need huggingface_hub: \S+.* install .*", str(error))
