"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from yocobit.config import ConfigError, parse_attention
from yocobit.engine.session import CacheType
from yocobit.errors import UserError
from yocobit.packing.formats import HEAD_FORMATS, PROJECTION_FORMATS

if TYPE_CHECKING:
    ProjectionFormat = str
    HeadFormat = str
else:  # the names in the table; type checkers cannot evaluate this
    ProjectionFormat = Literal[tuple(PROJECTION_FORMATS)]
    HeadFormat = Literal[tuple(HEAD_FORMATS)]

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A packed model's directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Threads = Annotated[int | None, typer.Option(help="Threads; one per CPU by default.", min=1)]
Kernels = Annotated[
    str | None, typer.Option(help="Kernel family; by default the fastest that this CPU supports.")
]


def _check_attention(text: str | None) -> str | None:
    """Return the value; UserError if it is invalid, before a model is opened."""
    try:
        if text is not None:
            parse_attention(text)
    except ConfigError as error:
        raise UserError(f"--{error}") from None
    return text


Attention = Annotated[
    str | None,
    typer.Option(
        metavar="full|index:N",
        callback=_check_attention,
        help="Attention of cross layers; the model's own setting by default.",
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Check all weights against their hashes.")]
Cache = Annotated[CacheType, typer.Option(help="KV cache type.")]

# A packed model, or a named shape with random weights.
ModelOrNone = Annotated[
    Path | None, typer.Argument(metavar="MODEL", help="A packed model's directory.")
]
ShapeWeights = Annotated[
    ProjectionFormat | None,
    typer.Option(help="Weight format of --shape; ternary by default."),
]
ShapeHead = Annotated[
    HeadFormat | None,
    typer.Option(help="Head format of a quantised --shape; int8 by default."),
]

# Sampling parameters; the model's own by default.
Temperature = Annotated[float | None, typer.Option(help="Sampling temperature; 0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Sample from the k most probable tokens; 0: all.")]
TopP = Annotated[float | None, typer.Option(help="Nucleus (top-p) sampling threshold.")]
MinP = Annotated[
    float | None,
    typer.Option(help="Least probability, as a fraction of the most probable token's."),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1 penalises tokens that already occurred.")
]
Seed = Annotated[int | None, typer.Option(help="Random seed; the same seed gives the same text.")]


def check_model_or_shape(
    command: str, model: Path | None, shape: str | None, weights: str | None, head: str | None
) -> None:
    """UserError unless exactly one of model and shape is given, with options that fit it."""
    if (model is None) == (shape is None):
        raise UserError(f"{command} needs either a packed model's directory or --shape")
    if shape is None and (weights or head):
        raise UserError("--weights and --head require --shape; a packed model has its own")
    if head and weights and "head" in PROJECTION_FORMATS[weights].roles:
        quantised = [name for name, f in PROJECTION_FORMATS.items() if "head" not in f.roles]
        raise UserError(
            f"--head requires {' or '.join(quantised)} weights but --weights is {weights}; "
            "leave it out, as the head has the same format"
        )
