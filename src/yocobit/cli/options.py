"""Options that several commands share, and the bounds of all numeric options."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from yocobit import _native
from yocobit.config import ConfigError, parse_attention
from yocobit.engine.session import CacheType
from yocobit.errors import UserError, shown
from yocobit.packing.formats import HEAD_FORMATS, PROJECTION_FORMATS

if TYPE_CHECKING:
    ProjectionFormat = str
    HeadFormat = str
else:  # the names in the table; type checkers cannot evaluate this
    ProjectionFormat = Literal[tuple(PROJECTION_FORMATS)]
    HeadFormat = Literal[tuple(HEAD_FORMATS)]


_TOKENS = "TOKENS"
_SUFFIXES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_LARGEST_SHOWN = 1 << 30  # a larger bound is not part of the help
# Cache types under their names in llama.cpp.
_CACHE_ALIASES = {"q8_0": "int8", "q4_0": "int4"}


def number(
    least: float, most: float, *names: str, metavar: str | None = None, **settings: Any
) -> Any:
    """Return a typer.Option for a number from `least` to `most`: an integer if `least` is one.

    The error of an invalid value says option, rule and value.
    """
    kind, noun = (int, "an integer") if isinstance(least, int) else (float, "a finite number")
    low, high = (f"{each:g}" if kind is float else str(each) for each in (least, most))
    is_count = metavar == _TOKENS

    def parse(text: str | float) -> float:
        try:
            value = kind(expand_tokens(text) if is_count and isinstance(text, str) else text)
        except ValueError:  # also more digits than Python converts
            value = math.nan
        if not math.isfinite(value):
            raise typer.BadParameter(f"must be {noun} but is {text!r}")
        if not least <= value <= most:
            raise typer.BadParameter(f"must be between {low} and {high} but is {text}")
        return value

    if metavar is None:
        unbounded = "N" if kind is int else "FLOAT"
        metavar = f"{low}..{high}" if most <= _LARGEST_SHOWN else unbounded
    return typer.Option(*names, parser=parse, metavar=metavar, **settings)


def tokens(least: int, most: int, *names: str, **settings: Any) -> Any:
    """Return a typer.Option for a number of tokens, such as 8192, 128k or 2M."""
    return number(least, most, *names, metavar=_TOKENS, **settings)


def expand_tokens(text: str) -> str:
    """Expand the suffix k, M or G (powers of 1024) of a number; return other text unchanged."""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([kKmMgG])", text)
    if match is None:
        return text
    value = float(match[1]) * _SUFFIXES[match[2].lower()]
    return str(int(value)) if value.is_integer() else text


def cache_alias(text: str) -> str:
    """Return a KV cache type by its name in llama.cpp; return other text unchanged."""
    return _CACHE_ALIASES.get(text, text)


def _cache_type(text: str) -> str:
    name = cache_alias(text)
    if name not in (types := get_args(CacheType)):
        raise typer.BadParameter(f"must be one of {', '.join(types)} but is {text!r}")
    return name


def each_item(text: str, convert: Callable[[str], str]) -> str:
    """Return a list separated by commas with each item converted."""
    return ",".join(convert(item) for item in text.split(","))


def _any_float(help: str) -> Any:
    """Return a typer.Option for a finite number; SamplingConfig checks its bounds."""
    return number(-math.inf, math.inf, help=help)


def model_names(incomplete: str) -> list[str]:
    """Return names of packaged and cached models, for shell completion."""
    from yocobit import hub

    names = [hub.TINY_NAME, *(entry.name for entry in hub.ModelCache().entries())]
    return [name for name in names if name.startswith(incomplete)]


MODEL_HELP = (
    "tiny, a packed model, a GGUF file, a Hugging Face directory, or ORG/NAME or a URL of the hub."
)
FORMATS_HELP = f"One of {', '.join(PROJECTION_FORMATS)}."
ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=model_names)
]
ModelOrTiny = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help=MODEL_HELP, show_default="tiny", autocompletion=model_names
    ),
]
Head = Annotated[
    HeadFormat,
    typer.Option(help="Weight format of the output head; int4 is faster and less exact."),
]
ImportHead = Annotated[
    HeadFormat | None,
    typer.Option(
        "--head",
        help="Weight format of the output head; f16 and f32 also apply to the embedding. By "
        "default int8, or the format of dense projections.",
    ),
]
ImportWeights = Annotated[
    ProjectionFormat | None,
    typer.Option(
        "--weights",
        metavar="FORMAT",
        help=f"Weight format of the projections; as published by default. {FORMATS_HELP}",
    ),
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
Threads = Annotated[int | None, number(1, 1024, help="Number of threads; one per CPU by default.")]


def _check_kernels(name: str | None) -> str | None:
    supported = _native.supported_kernels()
    if name is not None and name not in supported:
        raise UserError(f"--kernels must be one of {', '.join(supported)} but is {name!r}")
    return name


Kernels = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
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
        help="Use int16 instead of int8 activations; for models with weights-only quantisation.",
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Check all weights against their hashes.")]
_CacheOption: Any = typer.Option(
    parser=_cache_type,
    metavar="|".join(get_args(CacheType)),
    help="KV cache type; f32 is exact. q8_0 is int8, q4_0 is int4.",
)
Cache = Annotated[CacheType, _CacheOption]
CacheOrNone = Annotated[CacheType | None, _CacheOption]

# A model, or a named shape with random weights.
ModelOrNone = Annotated[
    Path | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=model_names)
]
ShapeWeights = Annotated[
    ProjectionFormat | None,
    typer.Option(
        metavar="FORMAT", help=f"Weight format of --shape; ternary by default. {FORMATS_HELP}"
    ),
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
    float | None, _any_float(help="Values above 1 penalise tokens that already occurred.")
]
Seed = Annotated[
    int | None,
    number(-1, 2**64 - 1, help="The same seed gives the same text; -1 selects one at random."),
]


def check_model_or_shape(
    command: str, model: Path | None, shape: str | None, weights: str | None, head: str | None
) -> None:
    """UserError unless exactly one of model and shape is given, with options that fit it."""
    if model is None and shape is None:
        raise UserError(f"{command} needs either MODEL or --shape; try: yocobit {command} tiny")
    if model is not None and shape is not None:
        raise UserError(
            f"{command} needs either MODEL or --shape but has both: {shown(str(model))} and "
            f"--shape {shown(shape)}; leave one out"
        )
    if shape is None and (weights or head):
        raise UserError("--weights and --head require --shape; a packed model has its own")
    if head and weights and not PROJECTION_FORMATS[weights].is_integer:
        quantised = [name for name, f in PROJECTION_FORMATS.items() if f.is_integer]
        raise UserError(
            f"--head requires {' or '.join(quantised)} weights but --weights is {weights}; "
            "leave it out: the head has the same format"
        )
