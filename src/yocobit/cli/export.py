"""export: a packed model as files of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from yocobit import packing
from yocobit.cli.cache import packed
from yocobit.cli.options import Json, ModelPath, number
from yocobit.cli.output import print_json
from yocobit.exporters import export_huggingface
from yocobit.exporters.rules import CONTEXT

_MAX_CONTEXT = 1 << 24


def export(
    model: ModelPath,
    out: Annotated[Path, typer.Argument(help="The new directory.")],
    to: Annotated[Literal["hf"], typer.Option(help="Format: hf is a directory for transformers.")],
    context: Annotated[
        int,
        number(1, _MAX_CONTEXT, help="Context length to write; a packed model has none."),
    ] = CONTEXT,
    as_json: Json = False,
) -> None:
    """Export a model for other programs; what they would compute differently is refused."""
    source = packing.read_model(packed(model))
    notes = export_huggingface(source, out, context)
    if as_json:
        print_json({"out": str(out), "notes": notes})
    else:
        print("\n".join([f"{out}: context length {context}", *notes]))
