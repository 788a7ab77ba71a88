"""Opening a model for scoring: a packed model natively, a checkpoint in PyTorch."""

from __future__ import annotations

from pathlib import Path

from yocobit.config import ConfigError
from yocobit.engine import Engine
from yocobit.engine.session import CacheType
from yocobit.evaluation.native import NativeScorer
from yocobit.evaluation.scorer import Backend, Scorer
from yocobit.packing import checkpoints, is_packed


def open_scorer(
    path: Path,
    backend: Backend | None = None,
    threads: int | None = None,
    cache: CacheType | None = None,
    attention: str | None = None,
    exact: bool = False,
) -> Scorer:
    """Open a packed model ("native"), or a run, checkpoint or transformers model ("torch").

    `backend` defaults to the one that reads `path`. `cache` (default f32), `attention` (default:
    the model's) and `exact` are the engine's. Raises ConfigError for a path of the other kind or
    without a model, PackedModelError for an invalid packed model.
    """
    if not path.exists() and not checkpoints.is_alias(path):
        raise ConfigError(f"{path}: no such packed model, run or checkpoint")
    if backend is None:
        backend = "native" if is_packed(path) else "torch"
    if backend == "native":
        engine = Engine.load(path, threads=threads, attention=attention, exact=exact)
        return NativeScorer(engine, cache or "f32")
    if cache is not None:
        raise ConfigError(
            "cache must not be given with the PyTorch backend, which has one cache type, but is "
            f"{cache!r}; leave it out"
        )
    if attention is not None:
        raise ConfigError(
            "attention must not be given with the PyTorch backend, which uses the model's, but is "
            f"{attention!r}; leave it out"
        )
    if exact:
        raise ConfigError(
            "exact must not be given with the PyTorch backend, whose activations are not rounded "
            "in weights-only formats; leave it out"
        )
    if is_packed(path):
        raise ConfigError(
            f"{path}: is a packed model, which only the native backend runs; for PyTorch name the "
            "run or checkpoint that it was packed from"
        )
    from yocobit.evaluation.pytorch import TorchScorer

    return TorchScorer(path, threads)
