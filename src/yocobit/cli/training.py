"""train, plot, pack, import: the commands of training and conversion."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from yocobit import importers, packing
from yocobit.cli.cache import as_typed, command_to_run, packed_or_trained
from yocobit.cli.models import print_summary
from yocobit.cli.options import (
    FORMATS_HELP,
    Head,
    ImportHead,
    ImportWeights,
    Json,
    ProjectionFormat,
    TokenizerFrom,
    number,
)
from yocobit.cli.output import is_quiet, print_json, progress, say
from yocobit.errors import ConfigError
from yocobit.extras import needs_extra


def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="TEXT|CONFIG",
            help="A file or directory of text, or a TOML file such as those in configs/.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Directory of the run.")],
    minutes: Annotated[
        float | None,
        number(
            0.001,
            1e6,
            metavar="MINUTES",
            help="Duration of the run; by default 10 for TEXT, or as in CONFIG.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="Start from the weights and tokenizer of a run, a checkpoint, or any MODEL of "
            "other commands, such as tiny or ORG/NAME.",
        ),
    ] = None,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="Override a setting; can be repeated."
        ),
    ] = [],  # noqa: B006  # typer's way to say that an option can be repeated
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="Distil from this model: a run, or a Hugging Face directory."
        ),
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the model with torch.compile.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model on text or from a TOML file.

    Ctrl-C saves a checkpoint; the same command with --resume continues the run.
    """
    training = _import_training()
    from yocobit.packing import checkpoints
    from yocobit.tracking.progress import print_line
    from yocobit.training import run_lock
    from yocobit.training.distributed import is_distributed, is_main_process

    training.keep_freed_memory()
    console = Console(stderr=as_json, quiet=is_quiet() or not is_main_process())
    overrides = [*set_]
    if teacher is not None:
        overrides.append(f"distill.teacher={json.dumps(str(teacher))}")
    if compile_:
        overrides.append("run.compile=true")
    if tensorboard:
        overrides.append("run.tensorboard=true")
    if init is not None:
        init = packed_or_trained(init)
    if config.suffix.lower() == ".toml":
        if minutes is not None:
            overrides.append(f"run.minutes={minutes}")
        settings = training.load(config, overrides, init)
    elif re.match(r"\w+:/", str(config)):
        raise ConfigError(
            f"{as_typed(config)}: must be a path but is a URL; download the text first"
        )
    else:
        run_lock.claim_run(out, resume)  # a mistake in --out should not take seconds
        is_refused = not resume and checkpoints.last(out) is not None
        with console.status("timing a step"):
            settings, reason = training.configure(
                str(config),
                minutes=minutes,
                overrides=overrides,
                init=init,
                resumed=out if resume else None,
                step_seconds=None if is_distributed() or is_refused else training.step_seconds,
            )
        print_line(console, reason)
    checkpoint = training.train(settings, out, resume=resume, console=console, init=init)
    if not is_main_process():
        return
    if as_json:
        print_json({"checkpoint": str(checkpoint)})
    elif is_quiet():
        print(checkpoint)
    else:
        print_line(console, f"pack it with: yocobit pack {shlex.quote(str(out))} MODEL")


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Directories of runs.")],
    out: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="A .png, .svg, .pdf or .csv file; can be repeated."),
    ] = [Path("runs.png")],  # noqa: B006
    x: Annotated[Literal["step", "tokens", "seconds"], typer.Option(help="The x axis.")] = "step",
) -> None:
    """Plot the metrics of training runs."""
    from yocobit.tracking.plot import plot_runs

    for path in out:
        plot_runs(runs, path, x)
        print(path)


def pack(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run, or one of its checkpoints.")
    ],
    out: Annotated[Path, typer.Argument(metavar="MODEL", help="The new model's directory.")],
    weights: Annotated[
        ProjectionFormat | None,
        typer.Option(
            metavar="FORMAT",
            help=f"Weight format of the projections; as trained by default. {FORMATS_HELP}",
        ),
    ] = None,
    head: Head = "int8",
    as_json: Json = False,
) -> None:
    """Pack a checkpoint into a model for the engine."""
    from yocobit import hub

    if (fault := hub.not_trained(checkpoint)) is not None:
        raise ConfigError(f"{checkpoint}: {fault}")
    with progress("packing") as advance:
        model = packing.pack(checkpoint, out, weights, head, advance)
    print_summary(model, as_json)
    if not as_json:
        say(f"run it with: {command_to_run(out, str(out))}")


def import_(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A Hugging Face directory or a GGUF file."),
    ],
    out: Annotated[Path, typer.Argument(metavar="MODEL", help="The new model's directory.")],
    head: ImportHead = None,
    weights: ImportWeights = None,
    tokenizer: TokenizerFrom = None,
    as_json: Json = False,
) -> None:
    """Convert a published checkpoint to a packed model."""
    from yocobit import hub

    if not checkpoint.exists():
        raise ConfigError(hub.missing(checkpoint))
    with progress("converting") as advance:
        model = importers.import_model(
            checkpoint,
            out,
            head,
            weights=weights,
            tokenizer=tokenizer,
            report=say,
            progress=advance,
        )
    print_summary(model, as_json)


def _import_training() -> Any:
    try:
        import yocobit.training
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise needs_extra("train", "training needs PyTorch") from None
    return yocobit.training
