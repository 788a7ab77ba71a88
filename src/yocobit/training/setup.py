"""Everything before the first step: corpus, model, optimizers, and the state to resume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from yocobit.config import ConfigError
from yocobit.data.corpus import Corpus, prepare
from yocobit.model import Decoder
from yocobit.model.ops import dispatch
from yocobit.model.quantization import check_trainable
from yocobit.packing import checkpoints
from yocobit.packing.file_format import is_packed
from yocobit.packing.formats import INT8_PER_TOKEN, formats_of
from yocobit.text import n_ids
from yocobit.tracking.bar import bar
from yocobit.tracking.progress import print_line
from yocobit.training import checkpoint
from yocobit.training.backend import choose_precision, compile_error, compiled, set_threads
from yocobit.training.config import Precision, TrainConfig
from yocobit.training.distill import Teacher
from yocobit.training.distributed import Processes, check_shared_directory
from yocobit.training.errors import model_too_large, out_of_memory_as
from yocobit.training.masters import STARTED_FROM_PACKED
from yocobit.training.optim import Optimizers
from yocobit.training.resume import Resumable, check_settings, restore
from yocobit.training.sharding import wrap
from yocobit.training.state import RunState
from yocobit.training.step import Objective


@dataclass(frozen=True)
class Run:
    """A run before its first step, new or resumed."""

    config: TrainConfig
    directory: Path
    corpus: Corpus
    model: Decoder
    objective: nn.Module  # wraps the model; sharded, replicated or compiled
    optimizers: Optimizers
    state: RunState
    processes: Processes
    damaged: list[str]  # the damage of the newer checkpoints that were set aside


def set_up(
    config: TrainConfig,
    run_dir: Path,
    *,
    resume: bool,
    init: Path | None,
    console: Console,
    processes: Processes,
) -> Run:
    """Set up a run in `run_dir`, print a summary, and restore its last checkpoint."""
    check_batch(config, processes)
    check_trainable(config.model.weights)
    threads = set_threads(config.run.threads, processes.n_local)
    resumable = _find_checkpoint(config, run_dir, resume, processes)
    found = resumable.checkpoint
    teacher = _load_teacher(config, processes)
    config = _with_tokenizer_of(teacher, config)
    corpus = _prepare_corpus(config, run_dir, teacher, processes, console)
    compile_failure = _compile_failure(config, processes)
    state = RunState(
        corpus.sha256,
        teacher_sha256=None if teacher is None else teacher.sha256,
        total_steps=config.run.steps,
        threads=threads,
        processes=processes.size,
        precision=_common_precision(config, processes),
        is_compiled=config.run.compile and compile_failure is None,
    )
    model = _new_model(config, corpus)
    lines = [*_describe(corpus, model, state)]
    if compile_failure is not None:
        lines.append(f"warning: run.compile is on but nothing is compiled: {compile_failure}")
    if resume and found is None:
        lines.append(f"nothing to resume in {run_dir} yet: a new run")
    state, messages = _load_weights(found, init, state, config, model, processes)
    lines += processes.on_main(resumable.set_aside_damaged) or []
    for line in (*lines, *messages):
        print_line(console, line)
    objective = _objective(config, model, teacher, state, processes)
    optimizers = Optimizers(model, config.optim)
    if found is not None:
        file = found / checkpoints.OPTIMIZER
        processes.on_all(lambda: optimizers.load_state(checkpoint.load_optimizer(found), file))
    damaged = [*resumable.damaged.values()]
    return Run(config, run_dir, corpus, model, objective, optimizers, state, processes, damaged)


def check_batch(config: TrainConfig, processes: Processes) -> None:
    """Raise ConfigError unless the windows of a step can be divided among the processes."""
    optim = config.optim
    n_windows = optim.batch_size * optim.accumulation
    if n_windows % processes.size != 0:
        raise ConfigError(
            f"optim.batch_size * optim.accumulation must be divisible by the {processes.size} "
            f"processes but is {optim.batch_size} * {optim.accumulation} = {n_windows}"
        )


def _find_checkpoint(
    config: TrainConfig, run_dir: Path, resume: bool, processes: Processes
) -> Resumable:
    # In one process only, because it reads every file.
    found = processes.broadcast(processes.on_main(lambda: Resumable.find(run_dir, resume)))
    assert found is not None
    if (directory := found.checkpoint) is not None:
        processes.on_all(lambda: check_settings(config, run_dir, directory))
    check_shared_directory(run_dir, processes)
    processes.on_main(lambda: checkpoint.remove_partial(run_dir))
    return found


def _load_teacher(config: TrainConfig, processes: Processes) -> Teacher | None:
    distill = config.distill
    return processes.on_all(lambda: None if distill is None else Teacher(distill))


def _with_tokenizer_of(teacher: Teacher | None, config: TrainConfig) -> TrainConfig:
    """Use the teacher's tokenizer unless [data] specifies one."""
    data = config.data
    if teacher is None or data.tokenizer is not None or data.vocab_size is not None:
        return config
    return replace(config, data=replace(data, tokenizer=str(teacher.tokenizer_path)))


def _prepare_corpus(
    config: TrainConfig,
    run_dir: Path,
    teacher: Teacher | None,
    processes: Processes,
    console: Console,
) -> Corpus:
    with bar("tokenising", console) as advance:
        corpus = processes.main_first(
            lambda: prepare(
                config.data,
                config.model.vocab_size,
                run_dir / "data",
                verify=processes.is_main,
                progress=advance,
            )
        )
    if teacher is not None:
        teacher.check(corpus.tokenizer)
    return corpus


def _compile_failure(config: TrainConfig, processes: Processes) -> str | None:
    """Return the reason that run.compile has no effect; None if it is off or works."""
    if not config.run.compile:
        return None
    return compile_error() if processes.size == 1 else "the run has several processes"


def _common_precision(config: TrainConfig, processes: Processes) -> Precision:
    """Return the precision of all processes: float32 if one of their machines needs it."""
    precision = processes.on_all(lambda: choose_precision(config.run.precision))
    return "float32" if processes.max(precision == "float32") else precision


def _new_model(config: TrainConfig, corpus: Corpus) -> Decoder:
    model = config.model.replace(vocab_size=n_ids(corpus.tokenizer))
    with torch.random.fork_rng(devices=[]), out_of_memory_as(lambda: model_too_large(model)):
        torch.manual_seed(config.run.seed)
        return Decoder(model)


def _load_weights(
    found: Path | None,
    init: Path | None,
    state: RunState,
    config: TrainConfig,
    model: Decoder,
    processes: Processes,
) -> tuple[RunState, list[str]]:
    """Load the weights of the checkpoint to resume, or of `init`; return the state and messages."""
    if found is not None:
        state, warnings = processes.on_all(lambda: restore(found, state, config, model))
        return state, [f"resuming from {found}, step {state.step}", *warnings]
    if init is not None:
        source = checkpoints.find_initial(init)
        processes.on_all(lambda: checkpoint.load_initial_weights(model, source))
        if is_packed(source):
            return state, [f"starting from {source}: {STARTED_FROM_PACKED}"]
    return state, []


def _objective(
    config: TrainConfig,
    model: Decoder,
    teacher: Teacher | None,
    state: RunState,
    processes: Processes,
) -> nn.Module:
    model.recompute = config.run.recompute
    optim = config.optim
    objective: nn.Module = Objective(model, optim.z_loss, teacher, optim.router_aux_loss_coef)
    objective = wrap(objective, model, config.run.parallel, processes.size)
    return compiled(objective) if state.is_compiled else objective


def _describe(corpus: Corpus, model: Decoder, state: RunState) -> Iterator[str]:
    yield from corpus.describe()
    yield (
        f"model {model.n_parameters() / 1e6:.2f}M parameters, "
        f"{model.n_parameters(embedding=False) / 1e6:.2f}M in blocks; {state.arithmetic}"
    )
    if formats_of(model.config.weights)[0].activations is INT8_PER_TOKEN:
        yield f"matmuls of {model.config.weights} weights: {dispatch.describe()}"
