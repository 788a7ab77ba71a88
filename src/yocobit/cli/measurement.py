"""eval, bench: quality and speed of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from yocobit import benchmark, evaluation
from yocobit.cli.cache import packed, packed_or_trained
from yocobit.cli.options import (
    MODEL_HELP,
    Attention,
    CacheOrNone,
    Exact,
    Json,
    Kernels,
    ModelOrNone,
    ShapeHead,
    ShapeWeights,
    Threads,
    cache_alias,
    check_model_or_shape,
    each_item,
    expand_tokens,
    model_names,
    number,
    tokens,
)
from yocobit.cli.output import is_quiet, print_json, progress, say
from yocobit.data.documents import DocumentReader
from yocobit.data.sources import describe_ignored
from yocobit.engine.session import DEFAULT_CACHE, MAX_TOKENS, CacheType
from yocobit.extras import needs_extra


def eval_(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help=f"{MODEL_HELP[:-1]}; also a run or a checkpoint.",
            autocompletion=model_names,
        ),
    ],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Text files, in the formats of `train`."),
    ],
    backend: Annotated[
        evaluation.Backend | None,
        typer.Option(help="By default native for a packed model, torch otherwise."),
    ] = None,
    context: Annotated[
        int, tokens(2, MAX_TOKENS, help="Window length; windows overlap by half.")
    ] = evaluation.CONTEXT,
    cache: CacheOrNone = None,
    attention: Attention = None,
    exact: Exact = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure perplexity and bits per byte on texts.

    The KV cache of the native engine is f32 by default, so that nothing is rounded.
    """
    documents = DocumentReader.of(files)
    scorer = _open_scorer(packed_or_trained(model), backend, threads, cache, attention, exact)
    with progress("evaluating") as advance:
        size = sum(file.size for file in documents.files)  # compressed files hold more text
        result = evaluation.perplexity(
            scorer, _texts(documents), context, lambda n: advance(n, max(n, size))
        )
    if as_json:
        print_json({"backend": scorer.backend, "context": context, **result.to_dict()})
    else:
        print("\n".join(result.describe()))


def bench(
    model: ModelOrNone = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead of MODEL: random weights of a named shape, such as 150m or 2b4t.",
        ),
    ] = None,
    weights: ShapeWeights = None,
    head: ShapeHead = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="LIST",
            help="Tokens to prefill, such as 128,512; 0 skips prefill; 512 by default.",
        ),
    ] = None,
    gen: Annotated[
        str | None,
        typer.Option(
            "--gen",
            "-n",
            metavar="LIST",
            help="Tokens to decode; 0 skips decode; 64 by default.",
        ),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(
            "--depth",
            "-d",
            metavar="LIST",
            help="Tokens of context before each test, such as 0,4096; 0 by default.",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            "-b",
            metavar="LIST",
            help="Decode batch sizes, such as 1,16; 1 by default.",
        ),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(
            "--threads",
            "-t",
            metavar="LIST",
            help="Numbers of threads, such as 1,2; one per CPU by default.",
        ),
    ] = None,
    cache: Annotated[
        str, typer.Option(metavar="LIST", help="KV cache types, such as f16,int8.")
    ] = DEFAULT_CACHE,
    attention: Attention = None,
    exact: Exact = False,
    kernels: Kernels = None,
    repetitions: Annotated[
        int, number(1, 1 << 16, "--repetitions", "-r", help="Number of rounds over all cases.")
    ] = 5,
    no_limits: Annotated[
        bool, typer.Option("--no-limits", help="Do not measure the limits of this machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure the speed of a model and the limits of this machine."""
    check_model_or_shape("bench", model, shape, weights, head)
    grid = benchmark.Grid.parse(
        prompts="512" if prompt is None else each_item(prompt, expand_tokens),
        generations="64" if gen is None else each_item(gen, expand_tokens),
        depths="0" if depth is None else each_item(depth, expand_tokens),
        batches="1" if batch is None else batch,
        threads=threads,
        caches=each_item(cache, cache_alias),
        kernels=kernels,
        repetitions=repetitions,
        with_limits=not no_limits,
    )
    path = None if model is None else packed(model)
    status = Console(stderr=True, quiet=is_quiet()).status("opening the model")
    opening = benchmark.open_model(path, shape, weights, head, attention, exact)
    with status, opening as (name, opened):
        report = benchmark.run(opened, grid, name if model is None else str(model), status.update)
    if as_json:
        print_json(benchmark.to_dict(report), indent=2)
    else:
        benchmark.print_report(report, Console())


def _texts(documents: DocumentReader) -> Iterator[Iterable[str]]:
    """Yield the pieces of each document, then report how many files were skipped."""
    for document in documents:
        yield (piece.text for piece in document.pieces)
    if documents.skipped:
        say(f"skipped {len(documents.skipped)} .py files that are not UTF-8")
    if documents.ignored:
        say(describe_ignored(documents.ignored))


def _open_scorer(
    model: Path,
    backend: evaluation.Backend | None,
    threads: int | None,
    cache: CacheType | None,
    attention: str | None,
    exact: bool,
) -> evaluation.Scorer:
    try:
        return evaluation.open_scorer(model, backend, threads, cache, attention, exact)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise needs_extra("train", f"{model}: is not a packed model, so it needs PyTorch") from None
