"""generate, chat: text generation with a packed model; the packaged one by default."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from yocobit.cli import terminal
from yocobit.cli.cache import packed
from yocobit.cli.details import say_generation, say_load
from yocobit.cli.options import (
    MODEL_HELP,
    Attention,
    Cache,
    Exact,
    Json,
    Kernels,
    MinP,
    ModelOrTiny,
    RepetitionPenalty,
    Seed,
    Temperature,
    Threads,
    TopK,
    TopP,
    Verify,
    model_names,
    tokens,
)
from yocobit.cli.output import print_json, say_status
from yocobit.costs import session_bytes
from yocobit.engine import Chat, Engine, SamplingConfig
from yocobit.engine.session import DEFAULT_CACHE, MAX_TOKENS
from yocobit.errors import UserError
from yocobit.pretrained import TINY

# llama.cpp's defaults, for a model that sets no sampling parameters. A server and Engine sample
# such a model at temperature 1, as clients of OpenAI's API expect.
_DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="Text to continue; standard input if it is - or missing."
        ),
    ] = None,
    model_argument: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL", help=MODEL_HELP, show_default="tiny", autocompletion=model_names
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="The model, instead of the argument MODEL.",
            autocompletion=model_names,
        ),
    ] = None,
    max_tokens: Annotated[
        int,
        tokens(1, MAX_TOKENS, "--max-tokens", "-n", help="Maximum number of generated tokens."),
    ] = 256,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Annotated[
        list[str],
        typer.Option(metavar="TEXT", help="Additional stop string; can be repeated."),
    ] = [],  # noqa: B006
    cache: Cache = DEFAULT_CACHE,
    attention: Attention = None,
    exact: Exact = False,
    threads: Threads = None,
    kernels: Kernels = None,
    verify: Verify = False,
    as_json: Json = False,
) -> None:
    """Continue a text."""
    if prompt is None or prompt == "-":
        if prompt is None and sys.stdin.isatty():
            raise UserError("PROMPT is missing; give a text to continue or pipe one in")
        prompt = _read_stdin()
    if model is not None and model_argument is not None:
        raise UserError("MODEL must be given once but is given as an argument and as --model")
    engine = _load(model or model_argument or TINY, attention, exact, threads, kernels, verify)
    sampling = _sampling(engine, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    with _naming_options(("stop",)):
        generation = engine.stream(
            prompt,
            max_tokens=max_tokens,
            stop=(*stop, *engine.stop_strings),
            cache=cache,
            sampling=sampling,
        )
    if as_json:
        text = "".join(generation)
        say_generation(generation)
        print_json(
            {
                "text": text,
                "finish_reason": generation.finish_reason,
                "prompt_tokens": len(generation.prompt),
                "tokens": len(generation.tokens),
                "prefill_tokens_per_s": round(generation.prefill_tokens_per_s, 1),
                "decode_tokens_per_s": round(generation.decode_tokens_per_s, 1),
            }
        )
        return
    terminal.write(chain((prompt,), generation))
    say_generation(generation)
    say_status(
        f"{len(generation.prompt)} prompt tokens at {generation.prefill_tokens_per_s:,.0f}/s, "
        f"{len(generation.tokens)} tokens at {generation.decode_tokens_per_s:,.0f}/s, "
        f"{generation.finish_reason}"
    )


def chat(
    model: ModelOrTiny = TINY,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None,
    max_tokens: Annotated[
        int,
        tokens(1, MAX_TOKENS, "--max-tokens", "-n", help="Maximum number of tokens of a reply."),
    ] = 512,
    context: Annotated[
        int, tokens(1, MAX_TOKENS, help="Context length of the conversation, such as 8192 or 32k.")
    ] = 8192,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    cache: Cache = DEFAULT_CACHE,
    attention: Attention = None,
    exact: Exact = False,
    threads: Threads = None,
    kernels: Kernels = None,
    verify: Verify = False,
) -> None:
    """Chat with a model in the terminal."""
    engine = _load(model, attention, exact, threads, kernels, verify)
    sampling = _sampling(engine, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    try:
        conversation = Chat(
            engine,
            system=system,
            context=context,
            max_tokens=max_tokens,
            cache=cache,
            sampling=sampling,
        )
    except MemoryError:
        needed = session_bytes(engine.model.config, cache, context) / 1e9
        raise UserError(
            f"not enough memory: --context {context} needs {needed:,.1f} GB for caches; lower it"
            + (" or set --cache int4" if cache != "int4" else "")
        ) from None
    terminal.converse(conversation, model.resolve().name)


def _load(
    model: Path,
    attention: str | None,
    exact: bool,
    threads: int | None,
    kernels: str | None,
    verify: bool,
) -> Engine:
    started_s = time.monotonic()
    engine = Engine.load(
        packed(model),
        threads=threads,
        kernels=kernels,
        attention=attention,
        exact=exact,
        verify=verify,
    )
    say_load(engine, time.monotonic() - started_s)
    return engine


def _sampling(
    engine: Engine,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
) -> SamplingConfig:
    """Return the model's sampling parameters, or llama.cpp's, with the given ones changed."""
    settings = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    with _naming_options(settings):
        return engine.sampling(**{**({} if engine.own_sampling else _DEFAULTS), **given})


@contextmanager
def _naming_options(names: Iterable[str]) -> Iterator[None]:
    """Name the option instead of the setting in errors that start with one of these names."""
    try:
        yield
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        if name in names:
            raise UserError(f"--{name.replace('_', '-')} {rest}") from None
        raise UserError(str(error)) from None


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 (byte {error.start})") from None
