"""eval, bench: how good a model is, and how fast."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from yocobit import benchmark, evaluation
from yocobit.cli.options import (
    Attention,
    Json,
    Kernels,
    ModelOrNone,
    ShapeHead,
    ShapeWeights,
    Threads,
    check_model_or_shape,
)
from yocobit.data.documents import Documents
from yocobit.data.sources import describe_unread
from yocobit.engine.session import CacheType
from yocobit.errors import UserError
from yocobit.pictures import check_picture


def eval_(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A packed model, a run, or a checkpoint.")
    ],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Texts, as `train` reads them.")
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
    attention: Attention = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure perplexity and bits per byte of texts."""
    documents = Documents.of(files)
    scorer = _open_scorer(model, backend, threads, cache, attention)
    result = evaluation.perplexity(scorer, _texts(documents), context)
    if as_json:
        print(json.dumps({"backend": scorer.backend, "context": context, **result.to_dict()}))
    else:
        print("\n".join(result.describe()))


def bench(
    model: ModelOrNone = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Instead of MODEL: random weights of a shape, such as 150m or 2b4t."),
    ] = None,
    weights: ShapeWeights = None,
    head: ShapeHead = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", help="Tokens to prefill, such as 128,512; 0: none; 512 unless given."
        ),
    ] = None,
    gen: Annotated[
        str | None,
        typer.Option("--gen", "-n", help="Tokens to decode; 0: none; 64 unless given."),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option("--depth", "-d", help="Tokens before those, such as 0,4096; 0 unless given."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch", "-b", help="Sessions decoded together, such as 1,16; 1 unless given."
        ),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option("--threads", "-t", help="Such as 1,2; one per CPU unless given."),
    ] = None,
    cache: Annotated[str, typer.Option(help="Cache types, such as f16,int8.")] = "f16",
    attention: Attention = None,
    kernels: Kernels = None,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", help="Rounds.")] = 5,
    no_limits: Annotated[
        bool, typer.Option("--no-limits", help="Do not measure what the machine can do at most.")
    ] = False,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper", help="A YOCO --shape beside its Transformer, by length (--depth) up to 1M."
        ),
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --paper: draw it, as PNG, SVG or PDF.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure prefill and decode, beside what the machine can do at most."""
    if paper:
        if model is not None or head or (weights or "ternary") not in ("ternary", "sign"):
            raise UserError("--paper takes a --shape with ternary or sign weights and no model")
        _refuse_with_paper(
            {
                "--prompt": prompt,
                "--gen": gen,
                "--batch": batch,
                "--attention": attention,
                "--no-limits": no_limits or None,
            }
        )
        _bench_paper(
            shape or "small", weights, depth, threads, cache, kernels, repetitions, picture, as_json
        )
        return
    if picture is not None:
        raise UserError("--picture goes with --paper")
    check_model_or_shape("bench", model, shape, weights, head)
    plan = benchmark.Plan.parse(
        prompts="512" if prompt is None else prompt,
        generations="64" if gen is None else gen,
        depths="0" if depth is None else depth,
        batches="1" if batch is None else batch,
        threads=threads,
        caches=cache,
        kernels=kernels,
        repetitions=repetitions,
        with_limits=not no_limits,
    )
    status = Console(stderr=True).status("opening the model")
    with status, benchmark.open_model(model, shape, weights, head, attention) as (name, opened):
        report = benchmark.run(opened, plan, name, status.update)
    if as_json:
        print(json.dumps(benchmark.to_dict(report), indent=2))
    else:
        benchmark.print_report(report, Console())


def _refuse_with_paper(options: Mapping[str, object]) -> None:
    for option, value in options.items():
        if value is not None:
            raise UserError(
                f"{option} does nothing with --paper, which sets what is measured but for its "
                "--depth; leave it out"
            )


def _bench_paper(
    shape: str,
    weights: str | None,
    depth: str | None,
    threads: str | None,
    cache: str,
    kernels: str | None,
    repetitions: int,
    picture: Path | None,
    as_json: bool,
) -> None:
    plan = benchmark.Plan.parse(
        prompts="1",
        generations="1",
        depths=",".join(map(str, benchmark.LENGTHS)) if depth is None else depth,
        batches="1",
        threads=threads,
        caches=cache,
        kernels=kernels,
        repetitions=repetitions,
        with_limits=False,
    )
    if len(plan.threads) > 1 or len(plan.caches) > 1:
        raise UserError("--paper takes one number of --threads and one --cache")
    if picture is not None:
        check_picture(picture)
    config = benchmark.named_shape(shape)
    with Console(stderr=True).status("") as status:
        report = benchmark.run_paper(
            shape,
            config.replace(weights=weights or "ternary"),
            lengths=plan.depths,
            cache=plan.caches[0],
            threads=plan.threads[0],
            kernels=kernels,
            repetitions=repetitions,
            progress=status.update,
        )
    if picture is not None:
        benchmark.write_paper_picture(report, picture)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        benchmark.print_paper(report, Console())


def _texts(documents: Documents) -> Iterator[str]:
    """Yield the text of each document, then say how many files were passed over."""
    for document in documents:
        yield document.text()
    if documents.skipped:
        print(f"skipped {len(documents.skipped)} .py files that are not UTF-8", file=sys.stderr)
    if documents.unread:
        print(describe_unread(documents.unread), file=sys.stderr)


def _open_scorer(
    model: Path,
    backend: evaluation.Backend | None,
    threads: int | None,
    cache: CacheType | None,
    attention: str | None,
) -> evaluation.Scorer:
    try:
        return evaluation.open_scorer(model, backend, threads, cache, attention)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError(
            f"{model}: is not a packed model, and others need PyTorch: pip install 'yocobit[train]'"
        ) from None
