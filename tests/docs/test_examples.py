"""The examples run from a clone: scripts as programs, notebooks cell by cell."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from servers import running

from yocobit.serving import ServerSettings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = {
    "STEPS = 60": "STEPS = 4",
    'TEXT = "python-stdlib"': 'TEXT = "text"',
    '"context": 128': '"context": 32',
    '"optim": {': '"optim": {"batch_size": 4, ',
    '"run": {': '"run": {"threads": 1, ',
}


def run(name: str, *arguments: str, directory: Path) -> str:
    program = [sys.executable, str(EXAMPLES / name), *arguments]
    ended = subprocess.run(program, cwd=directory, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def cells_of(name: str) -> list[str]:
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("name", ["training.ipynb", "long_context.ipynb"])
def test_cells_of_a_notebook_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    licence = (EXAMPLES.parent / "LICENSE").read_text()
    (tmp_path / "text").mkdir()
    for i in range(20):
        (tmp_path / "text" / f"{i}.txt").write_text(licence[i * 400 : i * 400 + 800])
    names = {"__name__": "__main__"}

    for i, cell in enumerate(cells_of(name)):
        for old, new in SMALL.items():
            cell = cell.replace(old, new)
        exec(compile(cell, f"{name}[{i}]", "exec"), names)

    assert capsys.readouterr().out


@pytest.mark.parametrize("name", ["training.ipynb", "long_context.ipynb"])
def test_notebook_holds_no_output(name):
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))

    assert all(not cell.get("outputs") for cell in notebook["cells"])


def test_generate_continues_the_prompt(tmp_path):
    text = run("generate.py", "The sea", "--max-tokens", "5", directory=tmp_path)

    assert text.startswith("The sea")
    assert re.search(r"tokens/s, \w+ kernels$", text.strip())


def test_stream_openai_prints_the_answer_of_a_server(tmp_path):
    with running(ServerSettings(alias=("other-name",))) as server:
        text = run("stream_openai.py", "--url", f"{server.url}/v1", directory=tmp_path)

    assert re.search(r"\d+ tokens from tiny$", text.strip())
