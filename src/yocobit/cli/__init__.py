"""The command line: parses arguments, makes one call, prints a table or JSON. No arithmetic.

A user's mistake ends with one line on standard error and exit code 2, Ctrl-C with exit code 130.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from yocobit.cli.generation import chat, generate
from yocobit.cli.measurement import bench, eval_
from yocobit.cli.models import inspect, verify
from yocobit.cli.planning import plan
from yocobit.cli.serving import serve
from yocobit.cli.training import import_, pack, plot, train
from yocobit.errors import report_errors
from yocobit.version import __version__

_SPINS = "10000"  # 0.15 ms on a Xeon, several times the wake-up latency of a thread

app = typer.Typer(
    name="yocobit",
    help="Train, pack and serve YOCO language models with 1-bit and 1.58-bit weights on CPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; never returns."""
    _limit_openmp_spinning()
    report_errors(app)


def _limit_openmp_spinning() -> None:
    """Shorten the spin time of PyTorch's OpenMP threads, unless the environment sets it.

    By default they spin for milliseconds. On a busy machine, they occupy the CPU of the thread that
    they wait for. OpenMP reads the variable when PyTorch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def _print_version(value: bool) -> None:
    if value:
        print(f"yocobit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


app.command()(generate)
app.command()(chat)
app.command()(serve)
app.command()(train)
app.command()(plot)
app.command()(pack)
app.command("import")(import_)
app.command("eval")(eval_)
app.command()(bench)
app.command()(plan)
app.command()(inspect)
app.command()(verify)
