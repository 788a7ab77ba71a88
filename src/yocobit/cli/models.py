"""inspect, verify: the content of a packed model."""

from __future__ import annotations

import json
import sys

import typer

from yocobit import packing
from yocobit.cli.options import Json, ModelPath
from yocobit.costs import describe, summarize
from yocobit.errors import USER_ERROR
from yocobit.packing import PackedModel


def inspect(model: ModelPath, as_json: Json = False) -> None:
    """Show a model's parameters, sizes, KV cache and recurrent state."""
    print_summary(packing.read_model(model), as_json)


def verify(model: ModelPath, as_json: Json = False) -> None:
    """Verify every byte of a model against its hashes."""
    problems = packing.verify(model)
    if as_json:
        print(json.dumps({"model": str(model), "ok": not problems, "problems": problems}))
    elif not problems:
        print(f"{model}: ok, every byte matches its hash")
    else:
        print("\n".join(problems), file=sys.stderr)
    if problems:
        raise typer.Exit(USER_ERROR)


def print_summary(model: PackedModel, as_json: bool) -> None:
    """Print the summary of a model as text or JSON."""
    if as_json:
        print(json.dumps(summarize(model).to_dict(), indent=2))
    else:
        print("\n".join(describe(model)))
