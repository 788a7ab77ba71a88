"""The command line: parses arguments, makes one call, prints a table or JSON.

A user's mistake ends with one line on standard error and exit code 2, Ctrl-C with exit code 130.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
import typer.main

from yocobit.cli import help, streams
from yocobit.cli.cache import list_, pull, remove
from yocobit.cli.export import export
from yocobit.cli.generation import chat, generate
from yocobit.cli.measurement import bench, eval_
from yocobit.cli.models import inspect, verify
from yocobit.cli.planning import plan
from yocobit.cli.serving import serve
from yocobit.cli.training import import_, pack, plot, train
from yocobit.errors import UserError, report_errors
from yocobit.version import __version__

_COMPLETE = "_YOCOBIT_COMPLETE"  # of the scripts that --install-completion writes
_SPINS = "10000"  # 0.15 ms on a Xeon, several times the wake-up latency of a thread
# Names in llama.cpp, vLLM, Ollama and other programs, for hints.
_OPTIONS_ELSEWHERE = {
    "-c": "--context",
    "--ctx-size": "--context",
    "--max-model-len": "--context",
    "--n-predict": "--max-tokens",
    "--predict": "--max-tokens",
    "--repeat-penalty": "--repetition-penalty",
    "--system-prompt": "--system",
    "--cache-type-k": "--cache",
    "--kv-cache-dtype": "--cache",
    "--served-model-name": "--alias",
    "--max-num-seqs": "--max-sequences",
    "--parallel": "--max-sequences",
}
_COMMANDS_ELSEWHERE = {
    "run": "chat",
    "download": "pull",
    "convert": "import",
    "quantize": "pack",
    "ls": "list",
    "rm": "remove",
    "show": "inspect",
    "finetune": "train",
    "models": "list",
    "help": "--help",
    "version": "--version",
    "tiny": "chat tiny",
}
_UsageError: Any = typer.BadParameter.__base__  # typer does not export it

app = help.new_app(
    "Train, pack and serve YOCO language models with 1-bit and 1.58-bit weights on CPUs."
)


def main() -> NoReturn:
    """Run the command line."""
    streams.prepare()
    _limit_openmp_spinning()
    report_errors(lambda: run(sys.argv[1:] or ["--help"]))


def run(arguments: list[str]) -> None:
    """Run a command with its arguments; UserError for invalid ones, SystemExit as from exit().

    Typer's own main() prints errors on several lines and hides EOFError and BrokenPipeError.
    """
    command = typer.main.get_command(app)
    if _COMPLETE in os.environ:  # a shell asks for completions; prints them and exits
        command(prog_name="yocobit", complete_var=_COMPLETE)
    try:
        with command.make_context("yocobit", arguments) as context:
            command.invoke(context)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
    except _UsageError as error:
        raise UserError(_usage_line(error, arguments[0])) from None


def _usage_line(error: Any, command: str) -> str:
    """Return the message of a usage error and where to find help, as one line."""
    message = error.format_message().rstrip(".")
    option = getattr(error, "param", None)
    if option and error.message.startswith("must "):  # of cli.options
        source = error.ctx.get_parameter_source(option.name) if error.ctx else None
        is_variable = source is not None and source.name == "ENVIRONMENT"
        return f"{option.envvar if is_variable else option.opts[0]} {error.message}"
    message = message.replace("Value error, ", "")  # of pydantic
    message = re.sub("^Invalid value for '(.*?)': '(.*)' is not one of (.*)$", _one_of, message)
    if hasattr(error, "possibilities") and (given := getattr(error, "option_name", None)):
        message = f"no such option: {given}{_did_you_mean(_closest_options(given, error))}"
    elif (found := re.match("No such command '(.*?)'", message)) and (
        name := _COMMANDS_ELSEWHERE.get(found[1])
    ):
        message = f"{found[0]}{_did_you_mean([repr(name)])}"
    message = message.replace(". Did you mean", "; did you mean")  # of commands
    message = " ".join(message.replace(". Choose from:", "; choose from:").split())
    if error.ctx is None and command in _COMMANDS:  # an option of the command lacks its value
        path = f"yocobit {command}"
    else:
        path = error.ctx.command_path if error.ctx else "yocobit"
    if message.startswith("Missing ") and command in _COMMANDS:
        message += f"; try: {help.EXAMPLES[command][0]}"
    return f"{message[:1].lower()}{message[1:]} (see {path} --help)"


def _one_of(found: re.Match[str]) -> str:
    """Return the error of a value that is not one of a few names."""
    option, value, names = found.groups()
    names = names.replace("'", "")
    close = difflib.get_close_matches(value, names.split(", "), n=1)
    return f"{option} must be one of {names} but is {value!r}{_did_you_mean(close)}"


def _closest_options(given: str, error: Any) -> list[str]:
    """Return the options of the command that an unknown one may stand for."""
    own = {option for each in error.ctx.command.params for option in each.opts} if error.ctx else ()
    name = _OPTIONS_ELSEWHERE.get(given)
    if name is not None and name in own:
        return [name]
    possible = error.possibilities or []
    return [option for option in possible if option.startswith(given)] or sorted(possible)


def _did_you_mean(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


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


_COMMANDS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "chat": chat,
    "serve": serve,
    "pull": pull,
    "list": list_,
    "remove": remove,
    "train": train,
    "plot": plot,
    "pack": pack,
    "import": import_,
    "export": export,
    "eval": eval_,
    "bench": bench,
    "plan": plan,
    "inspect": inspect,
    "verify": verify,
}
for _name, _function in _COMMANDS.items():
    help.add_command(app, _name, _function)
