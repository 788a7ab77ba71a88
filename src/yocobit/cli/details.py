"""What --verbose prints to standard error: the model, timings and memory."""

from __future__ import annotations

import dataclasses
import os
import time

from yocobit.cli.output import say_details
from yocobit.costs import describe
from yocobit.engine import Engine
from yocobit.engine.generation import Generation
from yocobit.hardware.host import peak_bytes
from yocobit.packing import PackedModel


def say_load(engine: Engine, seconds: float) -> None:
    """Print the model, and how long it took to open."""
    say_model(engine.model)
    say_details(
        f"load        {seconds * 1e3:,.0f} ms; {engine.threads} threads, {engine.kernels} kernels"
    )


def say_model(model: PackedModel) -> None:
    """Print the summary of a model."""
    for line in describe(model):
        say_details(line)


def say_generation(generation: Generation) -> None:
    """Print the sampling parameters, timings and memory of a generated text."""
    parameters = dataclasses.asdict(generation.sampling).items()
    n_prefilled, n_steps = generation.n_prefilled, generation.n_decode_steps
    say_details(f"sampling    {', '.join(f'{name} {value}' for name, value in parameters)}")
    say_details(f"prefill     {_timing(n_prefilled, generation.prefill_s)}")
    say_details(f"decode      {_timing(n_steps, generation.decode_s)}, after the first token")
    say_details(f"caches      {generation.memory().total / 1e6:,.1f} MB reserved")


def say_total(started_s: float) -> None:
    """Print time and memory of the process; `started_s` is the time of time.monotonic() before."""
    times, peak = os.times(), peak_bytes()
    memory = f", {peak / 1e6:,.0f} MB of memory at most" if peak else ""
    say_details(
        f"total       {time.monotonic() - started_s:.2f} s, "
        f"{times.user + times.system:.2f} s of CPU time{memory}"
    )


def _timing(n_tokens: int, seconds: float) -> str:
    if n_tokens == 0 or seconds == 0:
        return f"{n_tokens} tokens"
    return (
        f"{n_tokens:,} tokens in {seconds * 1e3:,.1f} ms: {seconds * 1e3 / n_tokens:,.2f} ms each, "
        f"{n_tokens / seconds:,.1f}/s"
    )
