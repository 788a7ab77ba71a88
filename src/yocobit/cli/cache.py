"""pull, list, remove: models from the Hugging Face Hub or a file, in the cache."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from yocobit import packing
from yocobit.cli.options import ImportHead, ImportWeights, Json, TokenizerFrom
from yocobit.cli.output import print_json, progress, say
from yocobit.errors import ConfigError, printable
from yocobit.packing.file_format import CHAT_TEMPLATE, is_packed

Source = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="ORG/NAME[@REVISION][:FILE] or a URL of the hub, a GGUF file, or a Hugging Face "
        "directory.",
    ),
]


def pull(
    model: Source,
    head: ImportHead = None,
    weights: ImportWeights = None,
    tokenizer: TokenizerFrom = None,
) -> None:
    """Download and convert a model, or update the cached one.

    Supported models, with their size on disk: microsoft/bitnet-b1.58-2B-4T 0.85 GB,
    prism-ml/Bonsai-8B-gguf 1.2 GB, tiiuae/Falcon3-3B-Instruct-1.58bit 1.4 GB,
    tiiuae/Falcon3-7B-Instruct-1.58bit 2.5 GB, tiiuae/Falcon3-10B-Instruct-1.58bit 3.2 GB,
    deepgrove/maple-preview 5.5 GB. Others of the same architectures work, too.
    """
    from yocobit import hub

    folder = os.path.abspath(tokenizer) if tokenizer else None
    options = hub.Options(head=head, weights=weights, tokenizer=folder)
    with progress("converting") as advance:
        path = hub.pull(model, options, say, advance)
    print(path)
    say(f"run it with: {command_to_run(path, model)}")


def command_to_run(model: Path, name: str) -> str:
    """Return a command that runs a packed model; one without a chat template cannot chat."""
    if (model / CHAT_TEMPLATE).exists():
        return f"yocobit chat {shlex.quote(name)}"
    return f'yocobit generate "In the beginning" {shlex.quote(name)}'


def list_(as_json: Json = False) -> None:
    """List the models in the cache."""
    from yocobit import hub

    cache = hub.ModelCache()
    rows = [(entry, cache.size_bytes(entry)) for entry in cache.entries()]
    if as_json:
        models = [
            {
                "name": entry.name,
                "size_bytes": size,
                "source": entry.source,
                "revision": entry.revision,
                "head": entry.options.head,
                "path": str(cache.path(entry)),
            }
            for entry, size in rows
        ]
        print_json({"models": models}, indent=2)
        return
    if not rows:
        print("no models; `yocobit pull ORG/NAME` downloads one")
    width = max((len(entry.name) for entry, _ in rows), default=0)
    for entry, size in rows:
        revision = (entry.revision or "")[:12]
        print(f"{printable(entry.name):{width}}  {size / 1e6:8,.0f} MB  {revision}".rstrip())


def remove(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name in `yocobit list`.")],
) -> None:
    """Remove a model from the cache.

    The downloaded files stay in the cache of huggingface_hub.
    """
    from yocobit import hub

    freed = hub.ModelCache().remove(model)
    print(f"{printable(model)}: removed, {freed / 1e6:,.0f} MB freed")


def packed(model: Path) -> Path:
    """Return the directory of the packed model that a MODEL argument names.

    ConfigError for another kind of model, with the command that converts it.
    """
    from yocobit import hub

    path = packed_or_trained(model)
    if (fault := hub.not_packed(path)) is not None:
        raise ConfigError(f"{as_typed(path)}: {fault}")
    if not is_packed(path):
        packing.read_model(path)  # its error names the path as it is here, not as it is resolved
    return path


def as_typed(path: Path) -> str:
    """Return a path, or a URL, which lost a slash when it became a Path."""
    return re.sub(r"^(\w+:/)(?=[^/])", r"\1/", str(path))


def packed_or_trained(model: Path) -> Path:
    """Return the directory of a packed model, or the path of a run or checkpoint."""
    from yocobit import hub

    with progress("converting") as advance:
        return hub.resolve(str(model), say, advance)
