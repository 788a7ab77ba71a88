"""inspect, verify: the content of a packed model."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from yocobit import packing
from yocobit.cli.cache import packed
from yocobit.cli.options import Json, ModelPath
from yocobit.cli.output import columns, print_json, progress, say, styled
from yocobit.costs import describe, folded, summarize
from yocobit.errors import USER_ERROR, ConfigError, printable
from yocobit.packing import PackedModel


def inspect(model: ModelPath, as_json: Json = False) -> None:
    """Show the parameters, sizes and KV cache of a model."""
    print_summary(packing.read_model(packed(model)), as_json)


def verify(
    model: ModelPath,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Compare codes and scales with another source of the same model: a GGUF file, a "
            "Hugging Face directory, or ORG/NAME on the hub.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify every byte of a model against its hashes.

    With --against, compare its weights with those of another source.
    """
    if against is not None:
        _compare(model, packed(model), against, as_json)
        return
    with progress("verifying") as advance:
        problems = packing.verify(packed(model), advance)
    with suppress(BrokenPipeError):  # the exit code tells the result
        if as_json:
            print_json({"model": str(model), "ok": not problems, "problems": problems})
        elif not problems:
            ok = styled("ok", "green", sys.stdout)
            print(f"{model}: {ok}, every byte matches its hash")
        else:
            print("\n".join(map(printable, problems)), file=sys.stderr)
    if problems:
        raise typer.Exit(USER_ERROR)


def _compare(name: Path, model: Path, against: str, as_json: bool) -> None:
    from yocobit import hub, importers

    path = hub.source(against, say)
    if not path.exists():
        raise ConfigError(hub.missing(path))
    source = importers.open_checkpoint(path)
    result = importers.compare(packing.read_model(model), source)
    if as_json:
        print_json({"model": str(name), "source": against, **result.to_dict()}, indent=2)
    else:
        print(f"{name} and {against} ({source.source_type}):")
        print("\n".join(result.describe()))
    if not result.is_equal:
        raise typer.Exit(USER_ERROR)


def print_summary(model: PackedModel, as_json: bool) -> None:
    """Print the summary of a model as text or JSON."""
    if as_json:
        print_json(summarize(model).to_dict(), indent=2)
    else:
        print(folded(describe(model), columns(sys.stdout)))
