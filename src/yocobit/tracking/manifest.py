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
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from yocobit import _native
from yocobit.disk import replacing
from yocobit.hardware.host import describe_host
from yocobit.model import Decoder
from yocobit.training.checkpoint import RunState
from yocobit.training.config import TrainConfig
from yocobit.training.corpus import Corpus

DESCRIPTION, README = "run.json", "README.md"


def describe_run(
    run_dir: Path,
    config: TrainConfig,
    corpus: Corpus,
    model: Decoder,
    state: RunState,
    *,
    now: datetime,
) -> str | None:
    """Write how the run came about; a resume adds itself to the starts.

    Returns a warning if it cannot be read or written: that is no reason not to train.
    """
    path, warning = run_dir / DESCRIPTION, None
    try:
        starts = _starts(path) if state.step > 0 else []
    except (OSError, ValueError, LookupError, TypeError) as error:
        damaged = path.with_suffix(".json.damaged")
        warning = f"warning: {path}: is damaged ({error}); kept as {damaged}, written anew"
        starts = []
    description = {
        "config": _relative(config.to_dict(), Path.cwd()),
        "corpus": {
            "sha256": corpus.sha256,
            **{
                split: {
                    "bytes": sum(tokens.n_bytes for tokens in parts),
                    "tokens": sum(len(tokens) for tokens in parts),
                }
                for split, parts in (("train", corpus.train), ("valid", (corpus.valid,)))
            },
            "vocab_size": model.config.vocab_size,
        },
        "model": {
            "parameters": model.n_parameters(),
            "parameters_in_blocks": model.n_parameters(embedding=False),
        },
        "starts": [*starts, _start(state, now)],
    }
    try:
        if warning is not None:
            path.replace(damaged)
        for file, text in (
            (path, json.dumps(description, indent=2) + "\n"),
            (run_dir / README, _readme(run_dir, description)),
        ):
            with replacing(file) as partial:
                partial.write_text(text, encoding="utf-8")
    except OSError as error:
        return f"warning: {path}: cannot be written ({error.strerror}); the run goes on"
    return warning


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
    """Return the starts that a run.json has; an error of several kinds if it is damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:  # a run of an earlier version
        return []
    starts: list[dict[str, Any]] = json.loads(text)["starts"]
    for start in starts:
        _start_line(start)
    return starts


def _start(state: RunState, now: datetime) -> dict[str, Any]:
    machine = describe_host()
    start = {
        "date": now.isoformat(timespec="seconds"),
        "step": state.step,
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
        "threads": state.threads,
        "processes": state.processes,
        "precision": state.precision,
    }
    return {name: value for name, value in start.items() if value is not None}


def command_to_resume() -> str:
    """Return the command of this process as it would be typed to go on from where it stopped."""
    is_missing = sys.argv[1:2] == ["train"] and "--resume" not in sys.argv
    return _command([*sys.argv, "--resume"] if is_missing else sys.argv)


def _command(argv: list[str]) -> str:
    """Return the command as it would be typed, without where its program lies."""
    name = Path(argv[0]).name
    is_yocobit = name in ("__main__.py", "yocobit")
    if dist.is_torchelastic_launched():
        program = [*_torchrun(os.environ), *(["-m", "yocobit"] if is_yocobit else argv[:1])]
    else:
        program = ["yocobit" if is_yocobit else name]
    return shlex.join([*program, *argv[1:]])


def _torchrun(environment: Mapping[str, str]) -> list[str]:
    """Return the command that starts the processes of this machine, by what torchrun tells them."""
    command = ["torchrun", "--nproc-per-node", environment["LOCAL_WORLD_SIZE"]]
    if (n_restarts := environment.get("TORCHELASTIC_MAX_RESTARTS", "0")) != "0":
        command += ["--max-restarts", n_restarts]
    if (n_machines := environment.get("GROUP_WORLD_SIZE", "1")) != "1":
        command += ["--nnodes", n_machines, "--node-rank", environment["GROUP_RANK"]]
        command += ["--master-addr", environment["MASTER_ADDR"]]
        command += ["--master-port", environment["MASTER_PORT"]]
    return command


def _start_line(start: dict[str, Any]) -> str:
    return f"- {start['date']} at step {start['step']}: `{start['command']}`"


def _relative(value: Any, directory: Path) -> Any:
    """Return JSON values with the paths that lie in `directory` relative to it."""
    if isinstance(value, dict):
        return {name: _relative(item, directory) for name, item in value.items()}
    if isinstance(value, list):
        return [_relative(item, directory) for item in value]
    if isinstance(value, str) and Path(value).is_relative_to(directory):
        return str(Path(value).relative_to(directory))
    return value


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
        *map(_start_line, starts),
        "",
        "See it: `yocobit plot RUN`. Pack it: `yocobit pack RUN MODEL`.",
    ]
    return "\n".join(lines) + "\n"
