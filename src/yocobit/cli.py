"""The command line: arguments in, one call, a table or a line out. No arithmetic.

A user's mistake ends in one line on standard error and exit code 2, Ctrl-C in exit code 130.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

import yocobit
from yocobit import _native, benchmark, evaluation, packing
from yocobit.engine.session import CacheType
from yocobit.errors import USER_ERROR, UserError, report_errors
from yocobit.packing import PackedModel, describe, summarize

app = typer.Typer(
    name="yocobit",
    help="Train, pack and run YOCO language models with 1-bit and 1.58-bit weights on CPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A packed model's directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Threads = Annotated[int | None, typer.Option(help="Threads; one per CPU unless given.", min=1)]
Kernels = Annotated[
    str | None, typer.Option(help="Kernels by name; the fastest of this CPU unless given.")
]
Head = Annotated[
    Literal["int8", "int4"],
    typer.Option(help="How to store the output head; int4 is faster and less exact."),
]
Verify = Annotated[bool, typer.Option("--verify", help="Check every weight before use.")]


def main() -> None:
    """Run the command line; never returns."""
    report_errors(app)


def _print_version(value: bool) -> None:
    if value:
        print(f"yocobit {yocobit.__version__}")
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


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file; see configs/.")],
    out: Annotated[Path, typer.Option(help="The run's directory.", show_default=False)],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run that is there.")
    ] = False,
    init: Annotated[
        Path | None,
        typer.Option(help="Start from the weights and tokenizer of a run or checkpoint."),
    ] = None,
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the file."),
    ] = [],  # noqa: B006  # typer's way to say that an option can be repeated
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="Learn from its logits, too: a run, or a Hugging Face directory."
        ),
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the model by torch.compile.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's events, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model; Ctrl-C saves a checkpoint that --resume continues from."""
    training = _import_training()
    console = Console(stderr=as_json)
    overrides = [*set_]
    if teacher is not None:
        overrides.append(f"distill.teacher={json.dumps(str(teacher))}")
    if compile_:
        overrides.append("run.compile=true")
    if tensorboard:
        overrides.append("run.tensorboard=true")
    settings = training.load(config, overrides, init)
    checkpoint = training.train(settings, out, resume=resume, console=console, init=init)
    if console.quiet:  # in a process that is not the first of its run
        return
    if as_json:
        print(json.dumps({"checkpoint": str(checkpoint)}))
    else:
        console.print(f"pack it with: yocobit pack {out} MODEL", markup=False, highlight=False)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of runs.")],
    out: Annotated[
        list[Path],
        typer.Option(help="A .html, .png, .svg or .pdf file; can be repeated."),
    ] = [Path("runs.html"), Path("runs.png")],  # noqa: B006
    x: Annotated[
        Literal["step", "tokens", "seconds"], typer.Option(help="What curves are drawn over.")
    ] = "step",
) -> None:
    """Draw the curves of runs over each other, as a page to explore and as a picture."""
    _import_training()
    from yocobit.training.plot import plot_runs

    for path in out:
        plot_runs(runs, path, x)
        print(path)


@app.command()
def pack(
    checkpoint: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints.")],
    out: Annotated[Path, typer.Argument(metavar="MODEL", help="The new model's directory.")],
    weights: Annotated[
        Literal["ternary", "sign", "f32", "f16"] | None,
        typer.Option(help="How to store the weights; as trained unless given."),
    ] = None,
    head: Head = "int8",
    as_json: Json = False,
) -> None:
    """Pack a checkpoint into a model that the engine runs."""
    _import_training()
    _print_summary(packing.pack(checkpoint, out, weights, head), as_json)


@app.command("import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A Hugging Face directory.")],
    out: Annotated[Path, typer.Argument(metavar="MODEL", help="The new model's directory.")],
    head: Head = "int8",
    as_json: Json = False,
) -> None:
    """Bring a published BitNet b1.58 checkpoint (model_type bitnet) into the packed format."""
    _import_training()
    _print_summary(packing.import_bitnet(checkpoint, out, head), as_json)


@app.command()
def generate(
    model: ModelPath,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", help="Text to continue; standard input if it is - or absent."
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", help="Tokens to generate at most.", min=1)
    ] = 256,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from this many tokens; 0: all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens that reach this sum.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Draw from tokens at least this times as likely as the likeliest."),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 discourages tokens of the text so far.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same text.")] = None,
    stop: Annotated[list[str], typer.Option(help="Stop before this text; can be repeated.")] = [],  # noqa: B006
    cache: Annotated[CacheType, typer.Option(help="What keys and values are stored as.")] = "f32",
    threads: Threads = None,
    kernels: Kernels = None,
    verify: Verify = False,
    as_json: Json = False,
) -> None:
    """Continue a text."""
    if prompt is None or prompt == "-":
        if prompt is None and sys.stdin.isatty():
            raise UserError("prompt is missing; give --prompt TEXT or pipe a text in")
        prompt = _read_stdin()
    engine = _load(model, threads, kernels, verify)
    settings: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    sampling = engine.sampling(**{k: v for k, v in settings.items() if v is not None})
    try:
        generation = engine.stream(
            prompt, max_tokens=max_tokens, stop=stop, cache=cache, sampling=sampling
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    if as_json:
        text = "".join(generation)
        print(
            json.dumps(
                {
                    "text": text,
                    "finish_reason": generation.finish_reason,
                    "prompt_tokens": len(generation.prompt),
                    "tokens": len(generation.tokens),
                    "prefill_tokens_per_s": round(generation.prefill_tokens_per_s, 1),
                    "decode_tokens_per_s": round(generation.decode_tokens_per_s, 1),
                }
            )
        )
        return
    sys.stdout.write(prompt)
    for piece in generation:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if sys.stderr.isatty():
        print(
            f"[{len(generation.prompt)} prompt tokens at "
            f"{generation.prefill_tokens_per_s:,.0f}/s, {len(generation.tokens)} tokens at "
            f"{generation.decode_tokens_per_s:,.0f}/s, {generation.finish_reason}]",
            file=sys.stderr,
        )


@app.command()
def verify(model: ModelPath, as_json: Json = False) -> None:
    """Check every byte of a model against its hashes."""
    problems = packing.verify(model)
    if as_json:
        print(json.dumps({"model": str(model), "ok": not problems, "problems": problems}))
    elif not problems:
        print(f"{model}: ok, every byte matches its hash")
    else:
        print("\n".join(problems), file=sys.stderr)
    if problems:
        raise typer.Exit(USER_ERROR)


@app.command()
def inspect(model: ModelPath, as_json: Json = False) -> None:
    """Show what is in a model: parameters, bytes, cache."""
    _print_summary(packing.read_model(model), as_json)


@app.command("eval")
def eval_(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A packed model, a run, or a checkpoint.")
    ],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Texts; a .jsonl has one in each line.")
    ],
    backend: Annotated[
        evaluation.Backend | None,
        typer.Option(help="native for a packed model, torch for others, unless given."),
    ] = None,
    context: Annotated[
        int, typer.Option(help="Tokens of a window; the next one is moved by half.")
    ] = evaluation.CONTEXT,
    cache: Annotated[
        CacheType | None, typer.Option(help="What the engine stores keys and values as; f32.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure perplexity and bits per byte of texts."""
    scorer = _open_scorer(model, backend, threads, cache)
    result = evaluation.perplexity(scorer, evaluation.read_documents(files), context)
    if as_json:
        print(json.dumps({"backend": scorer.backend, "context": context, **result.to_dict()}))
    else:
        print("\n".join(result.describe()))


@app.command()
def bench(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="A packed model's directory.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Instead of MODEL: random weights of a shape, such as 150m or 2b4t."),
    ] = None,
    weights: Annotated[
        Literal["ternary", "sign", "f32", "f16"] | None,
        typer.Option(help="Of --shape; ternary unless given."),
    ] = None,
    head: Annotated[
        Literal["int8", "int4"] | None, typer.Option(help="Of --shape; int8 unless given.")
    ] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="Tokens to prefill, such as 128,512; 0: none.")
    ] = "512",
    gen: Annotated[str, typer.Option("--gen", "-n", help="Tokens to decode; 0: none.")] = "64",
    depth: Annotated[
        str, typer.Option("--depth", "-d", help="Tokens before those, such as 0,4096.")
    ] = "0",
    batch: Annotated[
        str, typer.Option("--batch", "-b", help="Sessions decoded together, such as 1,16.")
    ] = "1",
    threads: Annotated[
        str | None,
        typer.Option("--threads", "-t", help="Such as 1,2; one per CPU unless given."),
    ] = None,
    cache: Annotated[str, typer.Option(help="Cache types, such as f16,int8.")] = "f16",
    kernels: Kernels = None,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", help="Rounds.")] = 5,
    no_limits: Annotated[
        bool, typer.Option("--no-limits", help="Do not measure what the machine can do at most.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure prefill and decode, beside what the machine can do at most."""
    if (model is None) == (shape is None):
        raise UserError("bench needs a packed model's directory or --shape, one of the two")
    if shape is None and (weights or head):
        raise UserError("--weights and --head go with --shape; a packed model has its own")
    plan = benchmark.Plan.parse(
        prompts=prompt,
        generations=gen,
        depths=depth,
        batches=batch,
        threads=threads,
        caches=cache,
        kernels=kernels,
        repetitions=repetitions,
        with_limits=not no_limits,
    )
    status = Console(stderr=True).status("opening the model")
    with status, benchmark.open_model(model, shape, weights, head) as (name, opened):
        report = benchmark.run(opened, plan, name, status.update)
    if as_json:
        print(json.dumps(benchmark.to_dict(report), indent=2))
    else:
        benchmark.print_report(report, Console())


def _print_summary(model: PackedModel, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summarize(model).to_dict(), indent=2))
    else:
        print("\n".join(describe(model)))


def _load(model: Path, threads: int | None, kernels: str | None, verify: bool) -> yocobit.Engine:
    supported = _native.supported_kernels()
    if kernels is not None and kernels not in supported:
        raise UserError(f"--kernels must be one of {', '.join(supported)} but is {kernels!r}")
    return yocobit.Engine.load(model, threads=threads, kernels=kernels, verify=verify)


def _open_scorer(
    model: Path,
    backend: evaluation.Backend | None,
    threads: int | None,
    cache: CacheType | None,
) -> evaluation.Scorer:
    try:
        return evaluation.open_scorer(model, backend, threads, cache)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError(
            f"{model}: is not a packed model, and others need PyTorch: pip install 'yocobit[train]'"
        ) from None


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 (byte {error.start})") from None


def _import_training() -> Any:
    try:
        import yocobit.training
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError("training and packing need PyTorch: pip install 'yocobit[train]'") from None
    return yocobit.training
