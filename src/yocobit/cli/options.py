"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from yocobit.config import ConfigError, parse_attention
from yocobit.engine.session import CacheType
from yocobit.errors import UserError

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A packed model's directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Threads = Annotated[int | None, typer.Option(help="Threads; one per CPU unless given.", min=1)]
Kernels = Annotated[
    str | None, typer.Option(help="Kernels by name; the fastest of this CPU unless given.")
]


def _check_attention(text: str | None) -> str | None:
    """UserError, before a model is opened or made, for what no model can attend to."""
    try:
        if text is not None:
            parse_attention(text)
    except ConfigError as error:
        raise UserError(f"--{error}") from None
    return text


Attention = Annotated[
    str | None,
    typer.Option(
        metavar="full|index:N|window:N",
        callback=_check_attention,
        help="Positions that cross layers attend to; as the model says unless given.",
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Check every weight before use.")]
Cache = Annotated[CacheType, typer.Option(help="What keys and values are stored as.")]

# A packed model, or a shape that has none.
ModelOrNone = Annotated[
    Path | None, typer.Argument(metavar="MODEL", help="A packed model's directory.")
]
ShapeWeights = Annotated[
    Literal["ternary", "sign", "f32", "f16"] | None,
    typer.Option(help="Of --shape; ternary unless given."),
]
ShapeHead = Annotated[
    Literal["int8", "int4"] | None,
    typer.Option(help="Of --shape, unless it is f32 or f16; int8 unless given."),
]

# Of sampling; the model's own unless given.
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token.")]
TopK = Annotated[int | None, typer.Option(help="Draw from this many tokens; 0: all.")]
TopP = Annotated[
    float | None, typer.Option(help="Draw from the likeliest tokens that reach this sum.")
]
MinP = Annotated[
    float | None,
    typer.Option(help="Draw from tokens at least this times as likely as the likeliest."),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1 discourages tokens of the text so far.")
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text.")]


def check_model_or_shape(
    command: str, model: Path | None, shape: str | None, weights: str | None, head: str | None
) -> None:
    """UserError unless there is one of a model and a shape, and the rest goes with a shape."""
    if (model is None) == (shape is None):
        raise UserError(f"{command} needs a packed model's directory or --shape, one of the two")
    if shape is None and (weights or head):
        raise UserError("--weights and --head go with --shape; a packed model has its own")
    if head and weights in ("f32", "f16"):
        raise UserError(
            f"--head goes with ternary or sign weights, but they are {weights}, and the head stays "
            "in float, too; leave it out"
        )
