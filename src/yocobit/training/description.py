"""RUN/run.json and RUN/README.md: how a run was made, for who finds its directory later.

run.json holds what decides the run (`config`, `corpus`, `model`) and one entry of `starts` for
the first start and each resume: date, command, code, machine. README.md says the same in prose.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yocobit import _native
from yocobit.benchmark.machine import describe_machine
from yocobit.disk import flush
from yocobit.model import Decoder
from yocobit.training.config import PYTHON_STDLIB, TrainConfig
from yocobit.training.corpus import Corpus

DESCRIPTION, README = "run.json", "README.md"


def describe_run(
    run_dir: Path,
    config: TrainConfig,
    corpus: Corpus,
    model: Decoder,
    *,
    step: int,
    threads: int,
    now: datetime,
) -> None:
    """Write how the run that is at `step` came about; a resume adds itself to the starts."""
    path = run_dir / DESCRIPTION
    starts = _starts(path) if step > 0 else []
    description = {
        "config": _with_relative_paths(config.to_dict(), Path.cwd()),
        "corpus": {
            "sha256": corpus.sha256,
            **{
                split: {"bytes": shard.n_bytes, "tokens": len(shard.tokens)}
                for split, shard in (("train", corpus.train), ("valid", corpus.valid))
            },
            "vocab_size": model.config.vocab_size,
        },
        "model": {
            "parameters": model.n_parameters(),
            "parameters_in_blocks": model.n_parameters(embedding=False),
        },
        "starts": [*starts, _start(step, threads, now)],
    }
    _write(path, json.dumps(description, indent=2) + "\n")
    _write(run_dir / README, _readme(run_dir, description))


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    flush(partial)
    os.replace(partial, path)


def git_state(directory: Path) -> dict[str, Any] | None:
    """Return the commit around a directory and whether its files were changed; None outside."""
    try:
        commit = _git(directory, "rev-parse", "HEAD")
        changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
        return {"commit": commit, "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _starts(path: Path) -> list[dict[str, Any]]:
    try:
        starts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["starts"]
    except FileNotFoundError:  # a run of an earlier version
        return []
    return starts


def _start(step: int, threads: int, now: datetime) -> dict[str, Any]:
    machine = describe_machine()
    start = {
        "date": now.isoformat(timespec="seconds"),
        "step": step,
        "command": _command(sys.argv),
        "git": git_state(Path.cwd()),
        "versions": {
            "yocobit": machine.version,
            "yocobit_commit": machine.commit,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": sys.version.split()[0],
            "system": machine.system.split(",")[0],
        },
        "machine": {
            "cpu": machine.cpu,
            "cpus": machine.n_cpus,
            "features": list(machine.features),
            "memory_bytes": machine.memory_bytes,
        },
        "kernels": _native.supported_kernels()[-1],
        "threads": threads,
    }
    return {name: value for name, value in start.items() if value is not None}


def _command(argv: list[str]) -> str:
    """Return the command as it would be typed, without where its program lies."""
    program = Path(argv[0]).name
    return shlex.join(["yocobit" if program == "__main__.py" else program, *argv[1:]])


def _with_relative_paths(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return config with the paths of [data] that lie in `directory` relative to it."""

    def relative(value: str) -> str:
        if value == PYTHON_STDLIB or not Path(value).is_relative_to(directory):
            return value
        return str(Path(value).relative_to(directory))

    data = dict(config["data"])
    for name in ("train", "valid"):
        data[name] = [relative(value) for value in data.get(name, [])]
    if "tokenizer" in data:
        data["tokenizer"] = relative(data["tokenizer"])
    return {**config, "data": data}


def _readme(run_dir: Path, description: dict[str, Any]) -> str:
    model, corpus = description["config"]["model"], description["corpus"]
    counts, starts = description["model"], description["starts"]
    lines = [
        f"# {run_dir.resolve().name}",
        "",
        f"A yocobit run: {counts['parameters'] / 1e6:.2f}M parameters, {model['weights']} weights, "
        f"layers {', '.join(model['layers'])}.",
        f"Text: {corpus['train']['bytes'] / 1e6:.2f} MB to train on, "
        f"{corpus['valid']['bytes'] / 1e6:.2f} MB to validate on, "
        f"vocabulary {corpus['vocab_size']}.",
        "",
        "| | |",
        "|---|---|",
        "| `run.json` | settings, text, code and machine, every start and resume |",
        "| `metrics.jsonl` | a record a step |",
        "| `samples/` | what the model wrote, by step |",
        "| `checkpoints/` | weights and optimizer, to resume, pack or load |",
        "| `data/` | the tokenizer and the text as tokens |",
        "| `tensorboard/` | the same curves for TensorBoard, where asked for |",
        "",
        "Started:",
        "",
        *(f"- {s['date']} at step {s['step']}: `{s['command']}`" for s in starts),
        "",
        "See it: `yocobit plot RUN`. Pack it: `yocobit pack RUN MODEL`.",
    ]
    return "\n".join(lines) + "\n"
