"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yocobit.engine.session import CacheType

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A packed model's directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Threads = Annotated[int | None, typer.Option(help="Threads; one per CPU unless given.", min=1)]
Kernels = Annotated[
    str | None, typer.Option(help="Kernels by name; the fastest of this CPU unless given.")
]
Attention = Annotated[
    str | None,
    typer.Option(
        metavar="full|index:N|window:N",
        help="Positions that cross layers attend to; as the model says unless given.",
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Check every weight before use.")]
Cache = Annotated[CacheType, typer.Option(help="What keys and values are stored as.")]

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
