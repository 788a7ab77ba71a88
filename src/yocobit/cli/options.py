"""Options that several commands share, and the bounds of all numeric options."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from yocobit import _native
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


def number(least: float, most: float, *names: str, **settings: Any) -> Any:
    """Return a typer.Option for a number from `least` to `most`: an integer if `least` is one.

    The error of an invalid value says option, rule and value.
    """
    kind, noun = (int, "an integer") if isinstance(least, int) else (float, "a finite number")
    low, high = (f"{each:g}" if kind is float else str(each) for each in (least, most))

    def parse(text: str | float) -> float:
        try:
            value = kind(text)
        except ValueError:  # also more digits than Python converts
            value = math.nan
        if not math.isfinite(value):
            raise typer.BadParameter(f"must be {noun} but is {text!r}")
        if not least <= value <= most:
            raise typer.BadParameter(f"must be between {low} and {high} but is {text}")
        return value

    metavar = f"{low}..{high}" if math.isfinite(most) else "FLOAT"
    return typer.Option(*names, parser=parse, metavar=metavar, **settings)


def _any_float(help: str) -> Any:
    """Return a typer.Option for a finite number; SamplingConfig checks its bounds."""
    return number(-math.inf, math.inf, help=help)


MODEL_HELP = "A packed model, a GGUF file, a Hugging Face directory, or ORG/NAME on the hub."
ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Head = Annotated[
    HeadFormat,
    typer.Option(help="Weight format of the output head; int4 is faster and less exact."),
]
ImportHead = Annotated[
    HeadFormat | None,
    typer.Option(
        "--head",
        help="Weight format of the output head, and of the embedding if it is f16 or f32; by "
        "default int8, or that of dense projections.",
    ),
]
ImportWeights = Annotated[
    ProjectionFormat | None,
    typer.Option("--weights", help="Weight format of the projections; as published by default."),
]
TokenizerFrom = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="DIR",
        help="Directory of a tokenizer, for a checkpoint that has none.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Threads = Annotated[int | None, number(1, 1024, help="Threads; one per CPU by default.")]


def _check_kernels(name: str | None) -> str | None:
    supported = _native.supported_kernels()
    if name is not None and name not in supported:
        raise UserError(f"--kernels must be one of {', '.join(supported)} but is {name!r}")
    return name


Kernels = Annotated[
    str | None,
    typer.Option(
        callback=_check_kernels,
        help="Kernel family; by default the fastest that this CPU supports.",
    ),
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
Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help="int16 instead of int8 activations in models with weights-only quantisation.",
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Check all weights against their hashes.")]
Cache = Annotated[CacheType, typer.Option(help="KV cache type; f32 is exact.")]

# A model, or a named shape with random weights.
ModelOrNone = Annotated[Path | None, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
ShapeWeights = Annotated[
    ProjectionFormat | None,
    typer.Option(help="Weight format of --shape; ternary by default."),
]
ShapeHead = Annotated[
    HeadFormat | None,
    typer.Option(help="Head format of a quantised --shape; int8 by default."),
]

# Sampling parameters; the model's own by default.
Temperature = Annotated[float | None, _any_float(help="Sampling temperature; 0 is greedy.")]
TopK = Annotated[
    int | None, number(0, 2**31 - 1, help="Sample from the k most probable tokens; 0: all.")
]
TopP = Annotated[float | None, _any_float(help="Nucleus (top-p) sampling threshold.")]
MinP = Annotated[
    float | None,
    _any_float(help="Minimum probability, as a fraction of the most probable token's."),
]
RepetitionPenalty = Annotated[
    float | None, _any_float(help="Above 1 penalises tokens that already occurred.")
]
Seed = Annotated[
    int | None,
    number(-1, 2**64 - 1, help="The same seed gives the same text; -1 selects one at random."),
]


def check_model_or_shape(
    command: str, model: Path | None, shape: str | None, weights: str | None, head: str | None
) -> None:
    """UserError unless exactly one of model and shape is given, with options that fit it."""
    if (model is None) == (shape is None):
        raise UserError(f"{command} needs either MODEL or --shape")
    if shape is None and (weights or head):
        raise UserError("--weights and --head require --shape; a packed model has its own")
    if head and weights and not PROJECTION_FORMATS[weights].is_integer:
        quantised = [name for name, f in PROJECTION_FORMATS.items() if f.is_integer]
        raise UserError(
            f"--head requires {' or '.join(quantised)} weights but --weights is {weights}; "
            "leave it out, as the head has the same format"
        )
