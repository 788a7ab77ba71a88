"""The start lines: the served model, its memory and hardware, and the URLs."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from yocobit.serving.api.call import ServerState
from yocobit.serving.api.served_model import ServedModel
from yocobit.serving.settings import DEFAULT_CONTEXT

logger = logging.getLogger(__name__)


def log_start(state: ServerState, url: str) -> None:
    """Log the start lines of a server that is ready: as JSON, one record with the same fields."""
    # Not require_ready(): a signal may have begun the shutdown.
    model, runtime = state.model, state.runtime
    assert model is not None and runtime is not None
    whole = runtime.scheduler.session_bytes(model.settings.context)
    fields, note = start_fields(model, whole, url), context_note(model)
    if state.settings.log_json:
        more = {} if note is None else {"note": note}
        logger.info("started", extra={"fields": {"message": "started", **fields, **more}})
        return
    for line in start_lines(fields):
        logger.info("%s", line)
    if note is not None:
        logger.info("%s", note)


def start_fields(model: ServedModel, sequence_bytes: int, url: str) -> dict[str, Any]:
    """Return the fields of the start lines; `sequence_bytes` are the caches of a whole context."""
    settings, engine = model.settings, model.engine
    n_whole = settings.cache_bytes // sequence_bytes
    return {
        "model": model.name,
        "parameters": model.summary.parameters,
        "weights": engine.config.weights,
        "context": settings.context,
        "cache": settings.cache,
        "cache_mb": settings.cache_mb,
        "cache_bytes_per_token": model.summary.cache_bytes_per_token[settings.cache],
        "whole_contexts": min(n_whole, settings.max_sequences),
        "max_sequences": settings.max_sequences,
        "threads": engine.threads,
        "kernels": engine.kernels,
        "page": f"{url}{settings.root_path}/",
        "api": f"{url}{settings.root_path}/v1",
    }


def start_lines(fields: dict[str, Any]) -> list[str]:
    """Return the fields as text."""
    is_least = fields["whole_contexts"] < fields["max_sequences"]
    more = "; up to {max_sequences} shorter ones" if is_least else ""
    return [
        line.format(**fields)
        for line in (
            "model    {model}: {parameters:,} parameters, {weights}",
            "context  {context:,} tokens",
            "cache    {cache}, {cache_mb:,} MiB, {cache_bytes_per_token:,} bytes per token",
            "         sequences of the whole context at a time: {whole_contexts}" + more,
            "engine   threads {threads}, kernels {kernels}",
            "page     {page}",
            "API      {api}",
        )
    ]


def context_note(model: ServedModel) -> str | None:
    """Return a line if the context is longer than in training, or shorter for lack of memory."""
    settings, config = model.settings, model.engine.config
    context, trained = settings.context, config.trained_context
    if trained is not None and context > trained:
        return (
            f"--context {context:,} exceeds the {trained:,} tokens that the model was trained "
            "with; answers to longer texts may be worse"
        )
    most = dataclasses.replace(settings, context=-1).of_model(config).context
    wanted = trained or DEFAULT_CONTEXT
    if context == most < wanted:
        return (
            f"the context is {context:,} instead of {wanted:,} tokens, as --cache-mb "
            f"{settings.cache_mb} holds no more"
        )
    return None
