"""The training loop. Every step is a function of the configuration, the text and the step before:
a run that was stopped anywhere and resumed has the losses of one that never was.

Letters: B batch   T positions   V vocabulary
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from yocobit.config import ConfigError
from yocobit.data.tokenizer import end_token
from yocobit.disk import WriteError
from yocobit.model import Decoder
from yocobit.model.ops import dispatch
from yocobit.tracking.manifest import command_to_resume, describe_run
from yocobit.tracking.progress import Progress
from yocobit.tracking.run_log import Journal, NoJournal
from yocobit.tracking.weight_counts import WEIGHT_COUNTS, weight_counts
from yocobit.training import checkpoint
from yocobit.training.budget import steps_left
from yocobit.training.checkpoint import RunState
from yocobit.training.compilation import clear_errors, compiled, why_not_compilable
from yocobit.training.config import TrainConfig
from yocobit.training.corpus import Corpus, prepare
from yocobit.training.distill import Teacher
from yocobit.training.distributed import Processes, check_shared, joined
from yocobit.training.interrupt import Interrupt
from yocobit.training.memory import in_memory, too_large, too_long
from yocobit.training.optim import Optimizers
from yocobit.training.precision import choose_precision, products_in
from yocobit.training.resuming import find_resumable, restore
from yocobit.training.sample import sample
from yocobit.training.schedule import rate_factor, short_run_warning, weight_decay_factor
from yocobit.training.sharding import evaluation, gather_model, wrap
from yocobit.training.step import GradientStep, Objective, StepResult
from yocobit.training.validation import bits_per_byte

_SAMPLE_TEMPERATURE = 0.6


class TrainingError(RuntimeError):
    """A run that cannot go on: its last checkpoint is kept."""


def train(
    config: TrainConfig,
    run_dir: Path,
    *,
    resume: bool,
    console: Console,
    init: Path | None = None,
) -> Path:
    """Train as configured into `run_dir`; return the checkpoint of the last step done.

    With `resume`, continue from the last checkpoint there; in an empty directory, or where a run
    ended before its first checkpoint, begin. A new run starts from the weights of the run or
    checkpoint `init`, if given. Ctrl-C and SIGTERM end the run after the step at hand, with a
    checkpoint. The processes of one torchrun all call this.
    """
    started = time.monotonic()
    with joined(alike=(ConfigError, TrainingError, WriteError)) as processes:
        return _train(config, run_dir, resume, console, init, started, processes)


def _train(
    config: TrainConfig,
    run_dir: Path,
    resume: bool,
    console: Console,
    init: Path | None,
    started: float,
    processes: Processes,
) -> Path:
    console.quiet = console.quiet or not processes.is_first
    _check_share(config, processes)
    threads = config.run.threads or max(1, (os.cpu_count() or 1) // processes.n_local)
    torch.set_num_threads(threads)
    found = processes.together(lambda: find_resumable(config, run_dir, resume))
    check_shared(run_dir, processes)
    processes.first(lambda: checkpoint.remove_partial(run_dir))
    distill = config.distill
    teacher = processes.together(lambda: None if distill is None else Teacher(distill))
    config = _with_tokenizer_of(teacher, config)
    corpus = processes.first_then_others(
        lambda: prepare(config.data, config.model.vocab_size, run_dir / "data")
    )
    if teacher is not None:
        teacher.check(corpus.tokenizer)
    why_not = _why_not_compiled(processes) if config.run.compile else None
    precision = processes.together(lambda: choose_precision(config.run.precision))
    if processes.max(precision == "float32"):  # in the slowest of different machines
        precision = "float32"
    state = RunState(
        corpus.sha256,
        teacher_sha256=None if teacher is None else teacher.sha256,
        total_steps=config.run.steps,
        threads=threads,
        processes=processes.size,
        precision=precision,
        is_compiled=config.run.compile and why_not is None,
    )
    model = _new_model(config, corpus)
    if init is not None and found is None:
        start = init
        processes.together(lambda: checkpoint.load_initial_weights(model, checkpoint.find(start)))
    lines = [*_describe(corpus, model, state)]
    if resume and found is None:
        lines.append(f"nothing to resume in {run_dir} yet: a new run")
    if why_not is not None:
        lines.append(f"warning: run.compile is on but nothing is compiled: {why_not}")
    if found is not None:
        state, warnings = processes.together(lambda: restore(found, state, config, model))
        lines += [f"resuming from {found}, step {state.step}", *warnings]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    model.recompute = config.run.recompute
    objective: nn.Module = Objective(model, config.optim.z_loss, teacher)
    objective = wrap(objective, model, config.run.parallel, processes.size)
    if state.is_compiled:
        objective = compiled(objective)
    optimizers = Optimizers(model, config.optim)
    if found is not None:
        processes.together(lambda: optimizers.load_state(checkpoint.load_optimizer(found)))
    run = _Run(
        config, run_dir, corpus, model, objective, optimizers, state, console, started, processes
    )
    with products_in(state.precision), in_memory(lambda: too_long(config, run_dir)):
        return run.run()


def _why_not_compiled(processes: Processes) -> str | None:
    return why_not_compilable() if processes.size == 1 else "there are many processes"


def _check_share(config: TrainConfig, processes: Processes) -> None:
    optim = config.optim
    n_windows = optim.batch_size * optim.accumulation
    if n_windows % processes.size != 0:
        raise ConfigError(
            f"optim.batch_size * optim.accumulation must be divisible by the {processes.size} "
            f"processes but is {optim.batch_size} * {optim.accumulation} = {n_windows}"
        )


def _with_tokenizer_of(teacher: Teacher | None, config: TrainConfig) -> TrainConfig:
    """Take the teacher's tokenizer unless [data] says which."""
    data = config.data
    if teacher is None or data.tokenizer is not None or data.vocab_size is not None:
        return config
    return replace(config, data=replace(data, tokenizer=str(teacher.tokenizer_path)))


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        corpus: Corpus,
        model: Decoder,
        objective: nn.Module,
        optimizers: Optimizers,
        state: RunState,
        console: Console,
        started: float,
        processes: Processes,
    ) -> None:
        self.config, self.run_dir, self.corpus = config, run_dir, corpus
        self.model, self.objective, self.optimizers = model, objective, optimizers
        self.state, self.console, self.started = state, console, started
        self.processes = processes
        self.seconds_before = state.seconds
        optim = config.optim
        self.windows_per_step = optim.batch_size * optim.accumulation
        self.tokens_per_step = self.windows_per_step * config.data.context
        self.gradient_step = GradientStep(
            objective, optimizers, state.guard, optim.grad_clip, optim.spike_factor, processes
        )
        self.durations: list[float] = []

    def run(self) -> Path:
        journal = self.processes.together(self._open_journal)
        try:
            self.processes.first(self._describe)
            self._plan_changed_budget(journal)
            self._warn_of_short_run()
            with Interrupt() as interrupt, Progress(self.console, self.tokens_per_step) as progress:
                while not self._is_done() and not self._is_stopped(interrupt):
                    self._step(journal, progress)
                saved = self._save(journal)
        finally:
            journal.close()
        if self._is_done():
            bits = self.state.valid_bits_per_byte
            result = "" if bits is None else f", {bits:.4f} bits/byte on the validation text"
            self._print(f"done: {saved}{result}")
            if self.state.best_step not in (None, self.state.step):
                best = f"step {self.state.best_step}, {saved.parent / checkpoint.BEST}"
                self._print(f"fewer bits/byte on the text of evaluations: {best}")
        else:
            self._print(
                f"{interrupt.name}: stopped after step {self.state.step}, saved {saved}\n"
                f"continue with: {command_to_resume()}"
            )
        return saved

    def _open_journal(self) -> Journal:
        if not self.processes.is_first:
            return NoJournal()
        return Journal(self.run_dir, self.state.step, tensorboard=self.config.run.tensorboard)

    def _describe(self) -> None:
        now = datetime.now(timezone.utc)
        warning = describe_run(
            self.run_dir, self.config, self.corpus, self.model, self.state, now=now
        )
        if warning is not None:
            self._print(warning)

    def _is_done(self) -> bool:
        return self.state.total_steps is not None and self.state.step >= self.state.total_steps

    def _is_stopped(self, interrupt: Interrupt) -> bool:
        """Whether any of the processes got a signal: then all stop after the same step."""
        interrupt.number = self.processes.max(interrupt.number)
        return interrupt.number != 0

    def _step(self, journal: Journal, progress: Progress) -> None:
        """Do one step and all that is due after it."""
        state, run = self.state, self.config.run
        begin = time.monotonic()
        factor = rate_factor(self.config.schedule, state.step, state.total_steps)
        result = self._update(factor)
        state.step += 1
        state.n_tokens += self.tokens_per_step
        self.durations.append(time.monotonic() - begin)
        is_planned = self._turn_budget_into_steps(self._seconds())
        if is_planned:
            self._warn_of_short_run()
        record: dict[str, Any] = {
            "step": state.step,
            "loss": result.loss,
            "lr": factor * self.config.optim.learning_rate,
            "grad_norm": result.grad_norm,
            "tokens": state.n_tokens,
        }
        if self.config.distill is not None:
            record["divergence"] = result.divergence
        if result.skipped is not None:
            record["skipped"] = result.skipped
            progress.print(f"step {state.step}: skipped, {result.skipped}")
        if state.step % run.eval_every == 0 or self._is_done():
            record["valid_bits_per_byte"] = self._validate()
            record[WEIGHT_COUNTS] = weight_counts(self.model)
        state.seconds = self._seconds()
        journal.write({**record, "seconds": round(state.seconds, 3)})
        progress.update(
            state.step,
            state.total_steps,
            None if result.skipped else result.loss,
            self.durations[-1],
            state.valid_bits_per_byte,
        )
        if "valid_bits_per_byte" in record:
            progress.print(f"step {state.step}: {state.valid_bits_per_byte:.4f} bits/byte")
        if run.sample_every and (state.step % run.sample_every == 0 or self._is_done()):
            self._sample(journal, progress)
        self._check_skips(result)
        # A plan is saved at once: a run resumed before the next checkpoint must not make another.
        # While steps are skipped none is made: the weights may be past saving.
        is_due = state.step % run.checkpoint_every == 0 or state.best_step == state.step
        is_due = is_due and state.guard.n_in_a_row == 0
        if (is_due or is_planned) and not self._is_done():
            self._save(journal)

    def _update(self, factor: float) -> StepResult:
        """Move the weights by the gradient of the next batch."""
        optim, state = self.config.optim, self.state
        first = state.step * self.windows_per_step
        windows = self.processes.share(range(first, first + self.windows_per_step))
        seed, context = self.config.run.seed, self.config.data.context
        batches = []
        for i in range(0, len(windows), optim.batch_size):
            part = windows[i : i + optim.batch_size]
            batches.append(self.corpus.batch(seed, part.start, len(part), context))
        decay = weight_decay_factor(self.config.schedule, state.step, state.total_steps)
        with clear_errors() if state.is_compiled else nullcontext():
            return self.gradient_step(batches, factor, decay)

    def _check_skips(self, result: StepResult) -> None:
        n_skipped = self.state.guard.n_in_a_row
        if n_skipped < self.config.optim.max_skips:
            return
        kept = checkpoint.last(self.run_dir)
        raise TrainingError(
            f"step {self.state.step}: skipped {n_skipped} steps in a row, the last one because "
            f"{result.skipped}; last checkpoint: {kept or 'none yet'}; "
            "lower optim.learning_rate, or raise optim.spike_factor if only norms were too large"
        )

    def _sample(self, journal: Journal, progress: Progress) -> None:
        """Let the first process write some text."""
        run, tokenizer = self.config.run, self.corpus.tokenizer
        model = gather_model(self.model, self.processes.is_first)
        if model is not None:
            n_tokens = run.sample_tokens
            text = sample(model, tokenizer, run.prompt, n_tokens, _SAMPLE_TEMPERATURE, run.seed)
            progress.print(f"step {self.state.step}: {run.prompt}{text}")
            journal.write_sample(self.state.step, run.prompt + text)

    def _validate(self) -> float:
        """Measure bits per byte; at the end of the run on the whole validation text.

        The best step is found on the same text each time: a part of it where eval_tokens is set.
        """
        state, eval_tokens = self.state, self.config.run.eval_tokens
        bits = self._bits_per_byte(eval_tokens)
        if bits < (state.best_bits_per_byte or math.inf):
            state.best_bits_per_byte, state.best_step = bits, state.step
        if self._is_done() and eval_tokens is not None:
            bits = self._bits_per_byte(None)
        state.valid_bits_per_byte = bits
        return bits

    def _bits_per_byte(self, max_tokens: int | None) -> float:
        end, valid = end_token(self.corpus.tokenizer), self.corpus.valid
        context = self.config.data.context
        with evaluation(self.objective, Objective(self.model, 0.0)) as objective:
            return bits_per_byte(objective, valid, end, context, max_tokens, self.processes)

    def _save(self, journal: Journal) -> Path:
        journal.sync()
        return checkpoint.save(
            self.run_dir,
            self.state,
            self.model,
            self.optimizers.state(),
            self.config.to_dict(),
            self.corpus.tokenizer,
            self.config.run.keep,
            self.corpus.chat_template,
            self.processes,
        )

    def _seconds(self) -> float:
        """Return how long the run has taken, before it was resumed, too."""
        return self.seconds_before + time.monotonic() - self.started

    def _plan_changed_budget(self, journal: Journal) -> None:
        """Turn the budget of a resumed run into steps by the steps before, if they are enough.

        By nothing else: resumed from the same checkpoint once more, the run has the same plan.
        """
        is_first = self.processes.is_first
        self.durations = self.processes.from_first(journal.durations if is_first else [])
        if self.durations:
            self._turn_budget_into_steps(self.seconds_before)

    def _turn_budget_into_steps(self, seconds: float) -> bool:
        """Fix the number of steps of a time budget once the speed is known; say if that was now.

        `seconds` of the budget are over.
        """
        if self.config.run.minutes is None or self.state.total_steps is not None:
            return False
        left = steps_left(self.config, self.durations, seconds, len(self.corpus.valid))
        left = self.processes.from_first(left)
        self.state.total_steps = None if left is None else self.state.step + left
        return left is not None

    def _warn_of_short_run(self) -> None:
        warning = short_run_warning(self.config.schedule, self.state.total_steps)
        if warning is not None:
            self._print(warning)

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _new_model(config: TrainConfig, corpus: Corpus) -> Decoder:
    model = config.model.replace(vocab_size=corpus.tokenizer.get_vocab_size())
    with torch.random.fork_rng(devices=[]), in_memory(lambda: too_large(model)):
        torch.manual_seed(config.run.seed)
        return Decoder(model)


def _describe(corpus: Corpus, model: Decoder, state: RunState) -> Iterator[str]:
    yield from corpus.describe()
    yield (
        f"model {model.n_parameters() / 1e6:.2f}M parameters, "
        f"{model.n_parameters(embedding=False) / 1e6:.2f}M in blocks; {state.arithmetic}"
    )
    if model.config.weights != "dense":
        yield f"products of {model.config.weights} weights by {dispatch.describe()}"
