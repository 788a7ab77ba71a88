"""Kinds of models on disk, and the command that converts each to a packed model."""

from __future__ import annotations

import difflib
import re
import shlex
from contextlib import suppress
from pathlib import Path

from yocobit.hub.cache import ModelCache
from yocobit.hub.name import HubName, parse_name
from yocobit.packing import checkpoints
from yocobit.packing.file_format import CONFIG, MODEL, is_packed
from yocobit.pretrained import TINY
from yocobit.reading import read_json

_YOCOBIT = "yocobit"  # model_type of checkpoints that `yocobit pack` converts
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FILES = (".gguf", ".safetensors", *_PICKLES)
_TEXTS = (".txt", ".md", ".jsonl")
_PICKLED = (
    "holds pickled weights, which could run code; choose a source of the model with safetensors or "
    "GGUF files"
)


def is_published(path: Path) -> bool:
    """Whether a path is a GGUF file or a Hugging Face directory that yocobit did not write."""
    if path.is_file():
        return path.suffix.lower() == ".gguf"
    if not (path / CONFIG).is_file() or is_packed(path):
        return False
    if not (path / MODEL).exists() and not any(path.glob("*.safetensors")):
        return False
    return read_json(path / CONFIG).get("model_type") != _YOCOBIT


def not_packed(path: Path) -> str | None:
    """Return the kind of a path and a remedy, as part of a line; None for a packed model.

    None also where the error of packing.read_model is enough.
    """
    if is_packed(path):
        return None
    if path.is_dir():
        return _directory(path)
    if path.exists():
        return _file(path)
    if re.match(r"\w+:/", str(path)):
        return "is not the URL of a model on huggingface.co; download the file and give its path"
    if (close := similar_model(path)) is not None:
        return f"no such file or directory; did you mean {close}?"
    if path.suffix.lower() in _FILES:
        return "no such file; give the path of a model"
    return None


def missing(path: Path) -> str:
    """Return a line about a source for `yocobit import` that does not exist."""
    name = parse_name(str(path))
    if isinstance(name, HubName):
        return f"{name}: no such file or directory; if it is on the hub, run: yocobit pull {name}"
    return f"{path}: no such file or directory"


def similar_model(path: Path) -> str | None:
    """Return the name of a known model that `path` may be a misspelling of; None for its own."""
    known = _known_names(path)
    if str(path) in known:
        return None
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(path).lower(), names, n=1)
    return names[close[0]] if close else None


def not_trained(path: Path) -> str | None:
    """Return the kind of a path and a remedy, as part of a line, if `yocobit pack` cannot read it.

    None for a run or checkpoint, and for an unknown kind.
    """
    own = shlex.quote(str(path))
    if is_packed(path) or (str(path) == TINY.name and not path.exists()):
        return f"is packed already; run it with: yocobit chat {own}"
    if is_published(path):
        kind = "a GGUF file" if path.is_file() else "a checkpoint in Hugging Face format"
        return f"is {kind}, not a checkpoint of yocobit train; run: yocobit import {own} MODEL"
    is_alias = path.parent.name == checkpoints.DIRECTORY
    if not path.exists() and not is_alias and isinstance(parse_name(str(path)), HubName):
        return f"no such run or checkpoint; if it is a model on the hub, run: yocobit pull {own}"
    return None


def _directory(path: Path) -> str | None:
    own = shlex.quote(str(path))
    if checkpoints.is_run(path):
        return f"is a run, not a packed model; run: yocobit pack {own} MODEL"
    if (path / checkpoints.OPTIMIZER).exists() or _is_own_checkpoint(path):
        return f"is a checkpoint, not a packed model; run: yocobit pack {own} MODEL"
    if (path / "adapter_config.json").is_file():
        return "is a LoRA adapter, not a model; merge it into its base model first"
    ggufs = sorted(each.name for each in path.glob("*.gguf"))
    if len(ggufs) > 1 and not (path / CONFIG).exists():
        return f"holds {len(ggufs)} GGUF files; name one, such as {path / ggufs[0]}"
    has_weights = any(path.glob("*.safetensors")) or ggufs
    if not has_weights and any(each.suffix in _PICKLES for each in path.iterdir()):
        return _PICKLED
    return None


def _is_own_checkpoint(path: Path) -> bool:
    if not (path / CONFIG).is_file() or not (path / MODEL).exists():
        return False
    return read_json(path / CONFIG).get("model_type") == _YOCOBIT


def _file(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        return f"is a file of tensors without {CONFIG} next to it; give the directory of a model"
    if path.suffix in _PICKLES:
        return _PICKLED
    if path.suffix == ".toml":
        own = shlex.quote(str(path))
        return f"is a training configuration; train it with: yocobit train {own} --out RUN"
    if path.suffix in _TEXTS:
        own = shlex.quote(str(path))
        return f"is text, not a model; train a model on it with: yocobit train {own} --out RUN"
    return None


def _known_names(path: Path) -> list[str]:
    """Return candidates for a misspelt name: cached models, and models next to the path."""
    names = [TINY.name, *(entry.name for entry in ModelCache().entries())]
    with suppress(OSError):
        names += [str(each) for each in path.parent.iterdir() if each.is_dir() or is_packed(each)]
    return names
