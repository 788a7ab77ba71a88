"""Every command and code block of README and docs runs, or is marked with a reason not to.

A page runs from top to bottom in its own directory with the files that pages use: small
configurations, some text, a run and its packed model. docs/developing/documentation.md lists the
comments that change how a block is run.
"""

from __future__ import annotations

import contextlib
import doctest
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
from typer.testing import CliRunner

from yocobit.cli import app
from yocobit.errors import UserError
from yocobit.reading import tomllib
from yocobit.training.config import load

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNNABLE = ("sh", "console", "python")
CHECKED = ("toml", "json")  # parsed; other languages are not checked
SHELL = re.compile(r"[|&;<>$*]")  # needs a shell; other yocobit lines run in this process

BLOCK = re.compile(
    r"(?P<comments>(?:^ *<!--[^\n]*-->\n)*)"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block and the comments before it."""

    comments: str
    language: str
    code: str

    @property
    def not_run(self) -> str | None:
        match = re.search(r"<!-- not-run: (.+) -->", self.comments)
        return match and match[1]

    @property
    def file(self) -> str | None:
        match = re.search(r"<!-- file: (.+) -->", self.comments)
        return match and match[1]

    @property
    def is_slow(self) -> bool:
        return "<!-- slow -->" in self.comments


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        lines = match["code"].splitlines()
        code = "\n".join(line.removeprefix(match["indent"]) for line in lines) + "\n"
        found.append(Block(match["comments"], match["language"], code))
    return found


def pages_with(*languages: str, slow: bool = False) -> list[Path]:
    return [
        page
        for page in PAGES
        if any(b.language in languages and b.is_slow == slow for b in blocks_of(page))
    ]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


# Replacements that shrink the configurations of the repository to four steps of `nano`.
NANO = {
    "preset": '"nano"',
    "vocab_size": "280",
    "context": "48",
    "batch_size": "2",
    "warmup_steps": "1",
    "steps": "4",
    "minutes": None,
    "eval_every": "4",
    "checkpoint_every": "4",
    "sample_every": "0",
}


def shrunk(toml: str) -> str:
    """Return a configuration with the values of NANO, and the first and the last of its layers."""
    toml = toml.replace('["python-stdlib"]', '["../my/text", "../my/chats.jsonl"]')
    toml = re.sub(r"layers = \[(.*?), .*, (.*?)\]", r"layers = [\1, \2]", toml)
    lines = []
    for line in toml.splitlines():
        key = line.partition("=")[0].strip()
        value = NANO.get(key, "") if "=" in line else ""
        lines.append(line if value == "" else "steps = 4" if value is None else f"{key} = {value}")
        lines += ["threads = 1"] if line == "[run]" else []
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """The files that pages use."""
    root = tmp_path_factory.mktemp("pages")
    (root / "configs").mkdir()
    for path in (ROOT / "configs").glob("*.toml"):
        (root / "configs" / path.name).write_text(shrunk(path.read_text()))
    licence = (ROOT / "LICENSE").read_text()
    for name, text in (("text", licence), ("held-out", licence[:600])):
        (root / "my" / name).mkdir(parents=True)
        for i in range(20):
            (root / "my" / name / f"{i}.txt").write_text(text[i * 400 : i * 400 + 800])
    talk = {
        "messages": [
            {"role": "user", "content": "Tell me about the sea."},
            {"role": "assistant", "content": "The sea is deep, and the work of a licence."},
        ]
    }
    (root / "my" / "chats.jsonl").write_text(40 * (json.dumps(talk) + "\n"))
    (root / "models").mkdir()
    for command in (
        "yocobit train configs/yoco-gret.toml --out runs/mine",
        "yocobit pack runs/mine models/mine",
    ):
        yocobit(command, root)
    shutil.copytree(root / "runs/mine", root / "runs/other")
    shutil.copytree(ROOT / "examples", root / "examples")
    return root


@pytest.fixture
def directory(files, tmp_path, monkeypatch) -> Path:
    """A copy of `files`, which a page may change, as the working directory."""
    copy = tmp_path / "page"
    shutil.copytree(files, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return copy


@contextlib.contextmanager
def working_in(directory: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def yocobit(command: str, directory: Path) -> str:
    """Run a line `yocobit ...` in this process, where torch is imported only once."""
    with working_in(directory):
        result = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
    problem = result.exception
    if isinstance(problem, UserError | ValueError):
        pytest.fail(f"{command}\n{problem}")
    if problem is not None and not isinstance(problem, SystemExit):
        raise problem
    assert result.exit_code == 0, f"{command}\n{result.output}"
    return result.output


def shell(command: str, directory: Path) -> None:
    command = re.sub(r"^torchrun\b", f"{sys.executable} -m torch.distributed.run", command)
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=directory, capture_output=True, text=True
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"


@contextlib.contextmanager
def serving(command: str, directory: Path) -> Iterator[int]:
    """Run a line `yocobit serve ...` on a free port until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [*shlex.split(command, comments=True)[1:], "--port", str(port)]
    server = forked.Process(*arguments, cwd=directory)
    try:
        end = time.monotonic() + 60
        while not is_healthy(port):
            assert server.poll() is None, server.errors.read()
            assert time.monotonic() < end
            time.sleep(0.02)
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
        server.errors.close()


def is_healthy(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def commands_of(block: Block) -> list[str]:
    """Return the commands of a block of shell lines, with continued lines joined."""
    lines = block.code.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def run_page(page: Path, directory: Path, slow: bool) -> None:
    names: dict[str, object] = {"__name__": "__page__"}
    port = None
    with contextlib.ExitStack() as stack:
        for block in blocks_of(page):
            if block.file:
                (directory / block.file).write_text(shrunk(block.code))
            if block.not_run or block.is_slow != slow or block.language not in RUNNABLE:
                continue
            code = block.code if port is None else block.code.replace("8080", str(port))
            block = Block(block.comments, block.language, code)
            if block.language == "python" and block.code.startswith(">>>"):
                examples = doctest.DocTestParser().get_doctest(
                    block.code, names, str(page), None, 0
                )
                assert doctest.DocTestRunner().run(examples, clear_globs=False).failed == 0
                names = examples.globs
            elif block.language == "python":
                exec(compile(block.code, str(page), "exec"), names)
            else:
                for command in commands_of(block):
                    if command.startswith("yocobit serve"):
                        port = stack.enter_context(serving(command, directory))
                    elif command.startswith("yocobit ") and not SHELL.search(command):
                        yocobit(command, directory)
                    else:
                        shell(command, directory)


@pytest.mark.parametrize("page", pages_with(*RUNNABLE), ids=named)
def test_blocks_of_a_page_run(page, directory):
    run_page(page, directory, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with(*RUNNABLE, slow=True), ids=named)
def test_slow_blocks_of_a_page_run(page, directory):
    run_page(page, directory, slow=True)


@pytest.mark.parametrize("page", pages_with("toml"), ids=named)
def test_configurations_of_a_page_are_valid(page, tmp_path):
    for block in blocks_of(page):
        if block.language != "toml":
            continue
        sections = tomllib.loads(block.code)
        path = tmp_path / "page.toml"
        missing = [] if "model" in sections else ["[model]", 'preset = "nano"']
        missing += [] if "run" in sections else ["[run]", "steps = 1"]
        path.write_text(block.code + "\n" + "\n".join(missing) + "\n")
        data = sections.get("data", {})
        overrides = [] if "train" in data else ['data.train=["my/text"]']
        overrides += [] if {"valid", "valid_every"} & data.keys() else ["data.valid_every=20"]

        load(path, overrides)


@pytest.mark.parametrize("page", pages_with("json"), ids=named)
def test_json_of_a_page_is_valid(page):
    for block in blocks_of(page):
        if block.language == "json":
            json.loads(block.code)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_fences_of_a_page_name_a_language(page):
    languages = {block.language for block in blocks_of(page)}

    assert languages <= {*RUNNABLE, *CHECKED, "text", "mermaid", "nginx", "cpp"}


def test_reason_is_mandatory_for_a_block_that_is_not_run():
    for page in PAGES:
        for block in blocks_of(page):
            assert ("not-run" in block.comments) == (block.not_run is not None), page


def test_block_in_a_list_is_read_without_its_indentation(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("1. Do:\n\n    <!-- not-run: why -->\n    ```sh\n    a \\\n      b\n    ```\n")

    (block,) = blocks_of(page)

    assert block == Block("    <!-- not-run: why -->\n", "sh", "a \\\n  b\n")
    assert block.not_run == "why"
    assert commands_of(block) == ["a    b"]
