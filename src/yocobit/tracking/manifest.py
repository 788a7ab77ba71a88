"""The run manifest, RUN/run.json, and its summary for readers, RUN/README.md.

run.json has settings, data and model (`config`, `corpus`, `model`) and, in `starts`, one entry for
the first start and each resume: date, command, code, machine.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist

from yocobit import _native
from yocobit.disk import replacing, write_json
from yocobit.errors import ConfigError
from yocobit.hardware.host import describe_host
from yocobit.packing.checkpoints import MANIFEST
from yocobit.reading import boundary, read_bytes, read_json

README = "README.md"
_MAX_README_BYTES = 1 << 20


def write_manifest(
    run_dir: Path, sections: Mapping[str, Any], step: int, settings: Mapping[str, Any]
) -> str | None:
    """Write the manifest of a run that starts, or resumes, after `step` steps.

    `sections` are `config`, `corpus` and `model`; `settings` (threads, precision, ...) are part of
    the entry of this start. If a file cannot be read or written, return a warning: training
    continues.
    """
    path, warning = run_dir / MANIFEST, None
    try:
        starts = _read_starts(path) if step > 0 else []
    except (OSError, ConfigError) as error:
        damaged = path.with_suffix(".json.damaged")
        warning = f"warning: {path}: is damaged ({error}); kept as {damaged} and written again"
        starts = []
    manifest = {
        **_relative(dict(sections), Path.cwd()),
        "starts": [*starts, _start(step, settings)],
    }
    title = _readme_title(run_dir)
    try:
        if warning is not None:
            path.replace(damaged)
        with replacing(path) as partial:
            write_json(partial, manifest)
        if title is not None:
            with replacing(run_dir / README) as partial:
                partial.write_bytes(title + b"\n" + _readme_body(manifest))
    except OSError as error:
        return f"warning: {path}: cannot be written ({error.strerror}); training continues"
    return warning


class _Start(msgspec.Struct):
    """The fields of a start in run.json that README.md shows; others are copied unchecked."""

    date: str
    step: int
    command: str


class _Starts(msgspec.Struct):
    starts: list[dict[str, Any]]


def git_state(directory: Path) -> dict[str, Any] | None:
    """Return the commit of the repository of a directory, and whether tracked files are modified.

    None outside a repository.
    """
    try:
        commit = _git(directory, "rev-parse", "HEAD")
        changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
        return {"commit": commit, "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    # A name of a file may not be UTF-8.
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=True
    )
    return done.stdout.strip()


def _read_starts(path: Path) -> list[dict[str, Any]]:
    """Return the starts in run.json; ConfigError if it is damaged."""
    try:
        starts = read_json(path, _Starts).starts
    except FileNotFoundError:  # a run of an earlier version
        return []
    with boundary(path, "has an invalid start"):
        for start in starts:
            msgspec.convert(start, _Start)
    return starts


def _start(step: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    machine = describe_host()
    start = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "command": _encoded(command_line()).decode(),
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
        **settings,
    }
    return {name: value for name, value in start.items() if value is not None}


def command_line() -> str:
    """Return the command line of this process."""
    return _command(sys.argv)


def command_to_resume() -> str:
    """Return the command line that resumes the run of this process."""
    is_missing = sys.argv[1:2] == ["train"] and "--resume" not in sys.argv
    return _command([*sys.argv, "--resume"] if is_missing else sys.argv)


def _command(argv: list[str]) -> str:
    """Return a command line without the directory of its program."""
    name = Path(argv[0]).name
    is_yocobit = name in ("__main__.py", "yocobit")
    if dist.is_torchelastic_launched():
        program = [*_torchrun(os.environ), *(["-m", "yocobit"] if is_yocobit else argv[:1])]
    else:
        program = ["yocobit" if is_yocobit else name]
    return shlex.join([*program, *argv[1:]])


def _torchrun(environment: Mapping[str, str]) -> list[str]:
    """Return the torchrun command of this machine's processes, from their environment."""
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
    """Return JSON values with the paths below `directory` made relative to it."""
    if isinstance(value, dict):
        return {name: _relative(item, directory) for name, item in value.items()}
    if isinstance(value, list):
        return [_relative(item, directory) for item in value]
    if isinstance(value, str) and Path(value).is_relative_to(directory):
        return str(Path(value).relative_to(directory))
    return value


def _readme_title(run_dir: Path) -> bytes | None:
    """Return the first line of the README.md to write; None to keep a user's or an edited file.

    An unedited file is that of the manifest, which the next start has not replaced yet.
    """
    path = run_dir / README
    try:
        title, _, body = read_bytes(path, _MAX_README_BYTES).partition(b"\n")
        manifest = read_json(run_dir / MANIFEST)
        with boundary(path, "is not that of the manifest"):
            return title if body == _readme_body(manifest) else None
    except FileNotFoundError:
        is_absent = not os.path.lexists(path)
        return _encoded(f"# {run_dir.resolve().name}") if is_absent else None
    except (OSError, ConfigError):
        return None


def _readme_body(manifest: dict[str, Any]) -> bytes:
    """Return README.md without its first line, which may be another after a run was renamed."""
    model, corpus = manifest["config"]["model"], manifest["corpus"]
    counts, starts = manifest["model"], manifest["starts"]
    lines = [
        "",
        f"A yocobit run: {counts['parameters'] / 1e6:.2f}M parameters, {model['weights']} weights, "
        f"layers {', '.join(model['layers'])}.",
        f"Corpus: {corpus['train']['bytes'] / 1e6:.2f} MB for training, "
        f"{corpus['valid']['bytes'] / 1e6:.2f} MB for validation, "
        f"vocabulary {corpus['vocab_size']}.",
        "",
        "| | |",
        "|---|---|",
        "| `run.json` | the run manifest: settings, corpus, code and machine of every start |",
        "| `metrics.jsonl` | one record per step |",
        "| `samples/` | generated text, by step |",
        "| `checkpoints/` | weights and optimizer state, to resume, pack or load |",
        "| `data/` | tokenizer and tokenised corpus |",
        "| `tensorboard/` | the same curves for TensorBoard, if enabled |",
        "",
        "Started:",
        "",
        *map(_start_line, starts),
        "",
        "Plot it: `yocobit plot RUN`. Pack it: `yocobit pack RUN MODEL`.",
    ]
    return _encoded("\n".join(lines) + "\n")


def _encoded(text: str) -> bytes:
    # A name or an argument may have bytes that are not UTF-8.
    return text.encode("utf-8", "backslashreplace")
