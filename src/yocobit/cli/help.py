"""Help of the command line: its layout and colours, and examples of each command."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
import typer.core

from yocobit.cli import output
from yocobit.cli.details import say_total

_MAX_WIDTH = 100

EXAMPLES = {
    "generate": (
        'yocobit generate "In the beginning" -n 40 --seed 1',
        "yocobit generate - models/mine < prompt.txt",
    ),
    "chat": (
        "yocobit chat",
        "yocobit chat microsoft/bitnet-b1.58-2B-4T --context 4k",
        'yocobit chat models/mine --system "Answer in one sentence." --temperature 0.7',
    ),
    "serve": (
        "yocobit serve",
        "yocobit serve microsoft/bitnet-b1.58-2B-4T --context 16k --port 8000",
        "yocobit serve models/mine --host 0.0.0.0 --api-key-file keys.txt",
    ),
    "pull": (
        "yocobit pull microsoft/bitnet-b1.58-2B-4T",
        "yocobit pull ORG/NAME-gguf:model-q2_0.gguf --head int4",
    ),
    "list": ("yocobit list", "yocobit list --json"),
    "remove": ("yocobit remove microsoft/bitnet-b1.58-2B-4T",),
    "train": (
        "yocobit train my.txt --out runs/mine --minutes 10",
        "yocobit train my.txt --out runs/mine --resume",
        "yocobit train chats.jsonl --out runs/chat --init tiny",
        "yocobit train configs/tiny.toml --out runs/tiny",
    ),
    "plot": (
        "yocobit plot runs/first runs/second --out runs.png --x tokens",
        "yocobit plot runs/seed-* --out seeds.png --out seeds.csv",
    ),
    "pack": ("yocobit pack runs/tiny models/tiny",),
    "import": (
        "yocobit import checkpoints/2b4t models/2b4t",
        "yocobit import model.gguf models/mine --head int4",
    ),
    "export": (
        "yocobit export models/falcon3 falcon3.gguf --to gguf",
        "yocobit export models/2b4t 2b4t-hf --to hf",
    ),
    "eval": (
        "yocobit eval tiny README.md",
        "yocobit eval models/mine held-out/ --context 4k --json",
    ),
    "bench": (
        "yocobit bench tiny",
        "yocobit bench --shape 2b4t -p 128,512 -n 64 -d 0,4k -t 1,2",
    ),
    "plan": (
        "yocobit plan tiny",
        "yocobit plan --shape 2b4t --context 128k --cache int4",
        "yocobit plan --shape 3b --machine groq --batch 8",
    ),
    "inspect": ("yocobit inspect tiny", "yocobit inspect models/mine --json"),
    "verify": (
        "yocobit verify tiny",
        "yocobit verify models/2b4t --against microsoft/bitnet-b1.58-2B-4T-gguf",
    ),
}
_FIRST_STEPS = (
    "yocobit chat",
    "yocobit chat microsoft/bitnet-b1.58-2B-4T",
    "yocobit serve",
    "yocobit train my.txt --out runs/mine --minutes 10",
)


def add_command(app: typer.Typer, name: str, function: Callable[..., None]) -> None:
    """Add a command with its examples, --verbose and --quiet."""
    app.command(name, cls=_Command, epilog="\n".join(EXAMPLES[name]))(_with_level(function))


def _with_level(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command that also has the options --verbose and --quiet."""

    @functools.wraps(function)
    def command(verbose: bool, quiet: bool, **arguments: Any) -> None:
        started_s = time.monotonic()
        output.set_level(verbose, quiet)
        try:
            function(**arguments)
        finally:
            say_total(started_s)

    flags = {
        "verbose": Annotated[
            bool, typer.Option("--verbose", help="Print timings, memory and other details.")
        ],
        "quiet": Annotated[
            bool, typer.Option("--quiet", "-q", help="Print results and errors only.")
        ],
    }
    command.__annotations__ = {**inspect.get_annotations(function, eval_str=True), **flags}
    parameters = [
        parameter.replace(annotation=command.__annotations__[name])
        for name, parameter in inspect.signature(function).parameters.items()
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in flags.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


_HelpFormatter: Any = typer.Context.formatter_class  # typer does not export it


class _Formatter(_HelpFormatter):  # type: ignore[misc]
    """Formats help; headings and names have colours on a terminal."""

    def write_heading(self, heading: str) -> None:
        self.write(f"{output.styled(heading + ':', 'bold', sys.stdout)}\n")

    def write_dl(self, rows: Any, col_max: int = 30, col_spacing: int = 2) -> None:
        # Without Typer's type of an argument, such as `FILE <list[Path]>`.
        names = [name if name.startswith("-") else name.partition(" <")[0] for name, _ in rows]
        meanings = [meaning for _, meaning in rows]
        styled = [output.styled(name, "cyan", sys.stdout) for name in names]
        super().write_dl(list(zip(styled, meanings, strict=True)), col_max, col_spacing)


class _Context(typer.Context):
    formatter_class = _Formatter


class _Command(typer.core.TyperCommand):
    context_class = _Context

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first sentence of the help; the list of commands wraps a long one."""
        return super().get_short_help_str(sys.maxsize)

    def format_epilog(self, context: Any, formatter: Any) -> None:
        _write_epilog(self.epilog, formatter)


class Group(typer.core.TyperGroup):
    """The program."""

    context_class = _Context

    def format_epilog(self, context: Any, formatter: Any) -> None:
        _write_epilog(self.epilog, formatter)


def _write_epilog(epilog: str | None, formatter: Any) -> None:
    if epilog:
        with formatter.section("Examples"):
            formatter.write("".join(f"  {example}\n" for example in epilog.splitlines()))


def new_app(help: str) -> typer.Typer:
    """Return the program without commands."""
    return typer.Typer(
        name="yocobit",
        cls=Group,
        help=help,
        epilog="\n".join(_FIRST_STEPS),
        no_args_is_help=True,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "max_content_width": _MAX_WIDTH,
        },
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
