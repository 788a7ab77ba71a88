"""plan: memory placement and roofline of a model on a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from yocobit import planning
from yocobit.cli.cache import packed
from yocobit.cli.options import (
    Attention,
    Cache,
    Json,
    Kernels,
    ModelOrNone,
    ShapeHead,
    ShapeWeights,
    check_model_or_shape,
    number,
    tokens,
)
from yocobit.cli.output import is_quiet, print_json
from yocobit.engine.session import DEFAULT_CACHE
from yocobit.pictures import check_picture


def plan(
    model: ModelOrNone = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead of MODEL: a named shape, such as 3b, 150m or 2b4t-yoco.",
        ),
    ] = None,
    weights: ShapeWeights = None,
    head: ShapeHead = None,
    context: Annotated[
        int, tokens(1, 1 << 32, help="Context length of each session, such as 4096 or 128k.")
    ] = 4096,
    batch: Annotated[int, number(1, 1 << 16, "--batch", "-b", help="Decode batch size.")] = 1,
    cache: Cache = DEFAULT_CACHE,
    attention: Attention = None,
    machine: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="here (this host, measured) or a data sheet: groq, h100."
        ),
    ] = "here",
    threads: Annotated[
        int | None,
        number(
            1, 1024, "--threads", "-t", help="Threads of --machine here; one per CPU by default."
        ),
    ] = None,
    kernels: Kernels = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the plan to a PNG, SVG or PDF file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the speed of a model and its place in caches and memory."""
    check_model_or_shape("plan", model, shape, weights, head)
    request = planning.PlanRequest(
        context=context,
        batch=batch,
        cache=cache,
        machine=machine,
        threads=threads,
        kernels=kernels,
    )
    if picture is not None:
        check_picture(picture)
    path = None if model is None else packed(model)
    name, opened = planning.open_shape(path, shape, weights, head, attention)
    with Console(stderr=True, quiet=is_quiet()).status("measuring this machine"):
        made = planning.make_plan(name if model is None else str(model), opened, request)
    if picture is not None:
        planning.draw_plan(made, picture)
    if as_json:
        print_json(made.to_dict(), indent=2)
    else:
        planning.print_plan(made, Console())
