"""export: a packed model as files of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from yocobit import packing
from yocobit.cli.cache import packed
from yocobit.cli.options import Json, ModelPath, tokens
from yocobit.cli.output import print_json
from yocobit.errors import UserError
from yocobit.exporters import export_gguf, export_huggingface
from yocobit.exporters.rules import context_length

_MAX_CONTEXT = 1 << 24


def export(
    model: ModelPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new GGUF file or directory.")],
    to: Annotated[
        Literal["gguf", "hf"],
        typer.Option(help="Format: gguf is a file for llama.cpp, hf a directory for transformers."),
    ],
    type: Annotated[
        Literal["tq2_0", "tq1_0"],
        typer.Option(help="Tensor type of ternary weights in GGUF; tq1_0 is smaller and slower."),
    ] = "tq2_0",
    head: Annotated[
        Literal["f16", "f32"] | None,
        typer.Option(
            help="Tensor type of embedding and head in GGUF; by default the stored integers, in "
            "Q8_0 or Q4_0."
        ),
    ] = None,
    context: Annotated[
        int | None,
        tokens(
            1,
            _MAX_CONTEXT,
            help="Context length to write; by default that of the imported model, or 4096.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a model for llama.cpp or transformers.

    Models that these would compute differently are refused.
    """
    source = packing.read_model(packed(model))
    context = context_length(source.config, context)
    if to == "gguf":
        notes = export_gguf(source, out, type, head, context)
    elif head is not None or type != "tq2_0":
        raise UserError("--type and --head require --to gguf; hf rounds nothing")
    else:
        notes = export_huggingface(source, out, context)
    if as_json:
        print_json({"out": str(out), "notes": notes})
    else:
        print("\n".join([f"{out}: context length {context}", *notes]))
