"""plan: what of a model fits where, and how fast it runs at best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from yocobit import planning
from yocobit.cli.options import Cache, Json, Kernels
from yocobit.errors import UserError


def plan(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="A packed model's directory.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Instead of MODEL: a shape by name, such as 3b, 150m or 2b4t-yoco."),
    ] = None,
    weights: Annotated[
        Literal["ternary", "sign", "f32", "f16"] | None,
        typer.Option(help="Of --shape; ternary unless given."),
    ] = None,
    head: Annotated[
        Literal["int8", "int4"] | None, typer.Option(help="Of --shape; int8 unless given.")
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of each session.")] = 4096,
    batch: Annotated[int, typer.Option("--batch", "-b", help="Sessions decoded together.")] = 1,
    cache: Cache = "f16",
    machine: Annotated[
        str, typer.Option(help="here, which is measured, or a data sheet: groq, h100.")
    ] = "here",
    threads: Annotated[
        int | None,
        typer.Option("--threads", "-t", help="Of here; one per CPU unless given."),
    ] = None,
    kernels: Kernels = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the model beside the machine's memory: a PNG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what fits where, the chips needed and the speed at best; predict it for this machine."""
    if (model is None) == (shape is None):
        raise UserError("plan needs a packed model's directory or --shape, one of the two")
    if shape is None and (weights or head):
        raise UserError("--weights and --head go with --shape; a packed model has its own")
    request = planning.Request(
        context=context,
        batch=batch,
        cache=cache,
        machine=machine,
        threads=threads,
        kernels=kernels,
    )
    name, opened = planning.open_shape(model, shape, weights, head)
    with Console(stderr=True).status("measuring this machine"):
        made = planning.make_plan(name, opened, request)
    if picture is not None:
        planning.draw_plan(made, picture)
    if as_json:
        print(json.dumps(made.to_dict(), indent=2))
    else:
        planning.print_plan(made, Console())
