"""The training loop. Every step is a function of the configuration, the text and the step before:
a run that was stopped anywhere and resumed has the losses of one that never was.

Letters: B batch   T positions   V vocabulary
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from yocobit.config import ConfigError
from yocobit.model import Decoder
from yocobit.training import checkpoint
from yocobit.training.checkpoint import RunState
from yocobit.training.config import TrainConfig
from yocobit.training.corpus import Corpus, prepare
from yocobit.training.distributed import Processes, check_shared, joined
from yocobit.training.interrupt import Interrupt
from yocobit.training.optim import Optimizers
from yocobit.training.progress import Metrics, NoMetrics, Progress
from yocobit.training.sample import sample
from yocobit.training.schedule import rate_factor, weight_decay_factor
from yocobit.training.sharding import evaluation, gather_model, wrap
from yocobit.training.step import GradientStep, Objective, StepResult
from yocobit.training.tokenizer import end_token
from yocobit.training.validation import bits_per_byte

# A time budget becomes a number of steps after this many, the first few not counted.
_MEASURED_STEPS, _UNMEASURED_STEPS = 30, 6
_MARGIN = 0.94  # of the remaining time is planned; samples and checkpoints take some, too
_EVALUATION_COST = 0.7  # of training on as many tokens; every token is read twice
_SAMPLE_TEMPERATURE = 0.6


class TrainingError(RuntimeError):
    """A run that cannot go on: its last checkpoint is kept."""


def train(config: TrainConfig, run_dir: Path, *, resume: bool, console: Console) -> Path:
    """Train as configured into `run_dir`; return the checkpoint of the last step done.

    With `resume`, continue from the last checkpoint there, if any. Ctrl-C and SIGTERM end the run
    after the step at hand, with a checkpoint. Under torchrun, all its processes do this together.
    """
    started = time.monotonic()
    with joined(alike=(ConfigError, TrainingError)) as processes:
        return _train(config, run_dir, resume, console, started, processes)


def _train(
    config: TrainConfig,
    run_dir: Path,
    resume: bool,
    console: Console,
    started: float,
    processes: Processes,
) -> Path:
    if not processes.is_first:
        console = Console(quiet=True)
    _check_share(config, processes)
    threads = config.run.threads or max(1, (os.cpu_count() or 1) // processes.n_local)
    torch.set_num_threads(threads)
    found = processes.together(lambda: _find_checkpoint(config, run_dir, resume))
    check_shared(run_dir, processes)
    processes.first(lambda: checkpoint.remove_partial(run_dir))
    corpus = processes.first_then_others(
        lambda: prepare(config.data, config.model.vocab_size, run_dir / "data")
    )
    state = RunState(corpus.sha256, total_steps=config.run.steps)
    if found is not None:
        state = processes.together(lambda: _restore_state(found, corpus, config))
    model = processes.together(lambda: _model(config, corpus, found))
    objective = wrap(Objective(model), model, config.run.parallel, processes.size)
    optimizers = Optimizers(model, config.optim)
    if found is not None:
        processes.together(lambda: optimizers.load_state(checkpoint.load_optimizer(found)))
    _describe(console, corpus, model, state, threads, processes.size, found)
    state.threads, state.processes = threads, processes.size
    run = _Run(
        config, run_dir, corpus, model, objective, optimizers, state, console, started, processes
    )
    with _native_products():
        return run.run()


def _check_share(config: TrainConfig, processes: Processes) -> None:
    optim = config.optim
    n_windows = optim.batch_size * optim.accumulation
    if n_windows % processes.size != 0:
        raise ConfigError(
            f"optim.batch_size * optim.accumulation must be divisible by the {processes.size} "
            f"processes but is {optim.batch_size} * {optim.accumulation} = {n_windows}"
        )


@contextmanager
def _native_products() -> Iterator[None]:
    """Let products be of int8 and bfloat16 where the CPU has instructions for both."""
    before = torch.get_float32_matmul_precision()
    has_both = all(torch.cpu.get_capabilities().get(n) for n in ("avx512_bf16", "avx512_vnni"))
    torch.set_float32_matmul_precision("medium" if has_both else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
        self.gradient_step = GradientStep(objective, optimizers, optim.grad_clip, processes)
        self.durations: list[float] = []

    def run(self) -> Path:
        is_first = self.processes.is_first
        metrics = Metrics(self.run_dir, self.state.step) if is_first else NoMetrics()
        try:
            with Interrupt() as interrupt, Progress(self.console, self.tokens_per_step) as progress:
                while not self._is_done() and not self._is_stopped(interrupt):
                    self._step(metrics, progress)
                saved = self._save(metrics)
        finally:
            metrics.close()
        if self._is_done():
            bits = self.state.valid_bits_per_byte
            result = "" if bits is None else f", {bits:.4f} bits/byte on the validation text"
            self._print(f"done: {saved}{result}")
        else:
            self._print(
                f"{interrupt.name}: stopped after step {self.state.step}, saved {saved}\n"
                f"continue with: yocobit train CONFIG --out {self.run_dir} --resume"
            )
        return saved

    def _is_done(self) -> bool:
        return self.state.total_steps is not None and self.state.step >= self.state.total_steps

    def _is_stopped(self, interrupt: Interrupt) -> bool:
        """Whether any of the processes got a signal; all of them then stop after the same step."""
        interrupt.number = int(self.processes.max(interrupt.number))
        return interrupt.number != 0

    def _step(self, metrics: Metrics, progress: Progress) -> None:
        """Do one step and all that is due after it."""
        state, run = self.state, self.config.run
        begin = time.monotonic()
        factor = rate_factor(self.config.schedule, state.step, state.total_steps)
        result = self._update(factor)
        state.step += 1
        state.n_tokens += self.tokens_per_step
        self.durations.append(time.monotonic() - begin)
        is_planned = self._turn_budget_into_steps()
        record = {
            "step": state.step,
            "loss": result.loss,
            "lr": factor * self.config.optim.learning_rate,
            "grad_norm": result.grad_norm,
            "tokens": state.n_tokens,
        }
        if state.step % run.eval_every == 0 or self._is_done():
            record["valid_bits_per_byte"] = self._validate()
        state.seconds = self.seconds_before + time.monotonic() - self.started
        metrics.write({**record, "seconds": round(state.seconds, 3)})
        progress.update(
            state.step,
            state.total_steps,
            result.loss,
            self.durations[-1],
            state.valid_bits_per_byte,
        )
        if "valid_bits_per_byte" in record:
            progress.print(f"step {state.step}: {state.valid_bits_per_byte:.4f} bits/byte")
        if run.sample_every and (state.step % run.sample_every == 0 or self._is_done()):
            self._sample(progress)
        # A plan is saved at once: a run resumed before the next checkpoint must not make another.
        if (state.step % run.checkpoint_every == 0 or is_planned) and not self._is_done():
            self._save(metrics)

    def _update(self, factor: float) -> StepResult:
        """Move the weights by the gradient of the next batch."""
        optim, state = self.config.optim, self.state
        first = state.step * self.windows_per_step
        windows = self.processes.share(range(first, first + self.windows_per_step))
        batches = [
            self.corpus.batch(self.config.run.seed, part.start, len(part), self.config.data.context)
            for part in (
                windows[i : i + optim.batch_size] for i in range(0, len(windows), optim.batch_size)
            )
        ]
        decay = weight_decay_factor(self.config.schedule, state.step, state.total_steps)
        result = self.gradient_step(batches, factor, decay)
        if not result.is_finite:
            kept = checkpoint.last(self.run_dir)
            raise TrainingError(
                f"step {state.step + 1}: loss is {result.loss} and gradient norm "
                f"{result.grad_norm}; last checkpoint: {kept or 'none yet'}; "
                "lower optim.learning_rate"
            )
        return result

    def _sample(self, progress: Progress) -> None:
        run = self.config.run
        model = gather_model(self.model, self.processes.is_first)
        if model is None:
            return
        tokenizer, n_tokens = self.corpus.tokenizer, run.sample_tokens
        text = sample(model, tokenizer, run.prompt, n_tokens, _SAMPLE_TEMPERATURE, run.seed)
        progress.print(f"step {self.state.step}: {run.prompt}{text}")

    def _validate(self) -> float:
        """Measure bits per byte; at the end of the run on the whole validation text."""
        max_tokens = None if self._is_done() else self.config.run.eval_tokens
        end = end_token(self.corpus.tokenizer)
        valid, context = self.corpus.valid, self.config.data.context
        with evaluation(self.objective, self.model) as logits:
            bits = bits_per_byte(logits, valid, end, context, max_tokens, self.processes)
        best = self.state.best_bits_per_byte
        self.state.valid_bits_per_byte = bits
        self.state.best_bits_per_byte = bits if best is None else min(best, bits)
        return bits

    def _save(self, metrics: Metrics) -> Path:
        metrics.sync()
        return checkpoint.save(
            self.run_dir,
            self.state,
            self.model,
            self.optimizers.state(),
            self.config.to_dict(),
            self.corpus.tokenizer,
            self.config.run.keep,
            self.processes,
        )

    def _turn_budget_into_steps(self) -> bool:
        """Fix the number of steps of a time budget once the speed is known; say if that was now."""
        if self.config.run.minutes is None or self.state.total_steps is not None:
            return False
        self.state.total_steps = self.processes.from_first(self._planned_steps())
        return self.state.total_steps is not None

    def _planned_steps(self) -> int | None:
        """Return how many steps fit in the time budget, None if that is not known yet."""
        minutes = self.config.run.minutes
        assert minutes is not None
        remaining = minutes * 60 - self.seconds_before - (time.monotonic() - self.started)
        if len(self.durations) < _MEASURED_STEPS and remaining > 0:
            return None
        measured = sorted(self.durations[_UNMEASURED_STEPS:] or self.durations)
        seconds = measured[len(measured) // 2]
        valid_tokens = len(self.corpus.valid.tokens)
        evaluated = min(self.config.run.eval_tokens or valid_tokens, valid_tokens)
        evaluation = seconds * _EVALUATION_COST / self.tokens_per_step
        per_step = seconds + evaluation * evaluated / self.config.run.eval_every
        steps = (remaining * _MARGIN - evaluation * valid_tokens) / per_step
        return self.state.step + max(0, math.floor(steps))

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


# On resume. That the text is the same is checked by its hash, wherever it lies now.
_MAY_CHANGE = (("run", "steps"), ("data", "train"), ("data", "valid"), ("data", "tokenizer"))


def _find_checkpoint(config: TrainConfig, run_dir: Path, resume: bool) -> Path | None:
    """Return the checkpoint to resume from; ConfigError if it is of another run."""
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: must be a directory but is a file; choose another --out")
    found = checkpoint.last(run_dir)
    if found is None:
        return None
    if not resume:
        raise ConfigError(f"{run_dir}: already holds a run; pass --resume or choose another --out")
    before, now = checkpoint.load_train(found), config.to_dict()
    now["model"]["vocab_size"] = before["model"]["vocab_size"]  # the tokenizer's, once known
    for section in now:
        names = ("seed", "steps", "minutes") if section == "run" else now[section] | before[section]
        for name in names:
            old, new = before[section].get(name), now[section].get(name)
            if old != new and (section, name) not in _MAY_CHANGE:
                raise ConfigError(
                    f"{run_dir}: cannot resume, {section}.{name} was {old!r} and is now {new!r}"
                )
    return found


def _restore_state(found: Path, corpus: Corpus, config: TrainConfig) -> RunState:
    state = checkpoint.load_state(found)
    if state.corpus_sha256 != corpus.sha256:
        raise ConfigError(f"{found}: cannot resume, the text has changed since")
    if config.run.steps is not None:
        state.total_steps = config.run.steps
    return state


def _model(config: TrainConfig, corpus: Corpus, found: Path | None) -> Decoder:
    """Return a new model, or that of the checkpoint to resume from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        model = Decoder(config.model.replace(vocab_size=corpus.tokenizer.get_vocab_size()))
    if found is not None:
        checkpoint.load_weights(model, found)
    return model


def _describe(
    console: Console,
    corpus: Corpus,
    model: Decoder,
    state: RunState,
    threads: int,
    n_processes: int,
    found: Path | None,
) -> None:
    train, valid = corpus.train, corpus.valid
    lines = [
        f"train {train.n_bytes / 1e6:.2f} MB, {len(train.tokens):,} tokens; "
        f"valid {valid.n_bytes / 1e6:.2f} MB, {len(valid.tokens):,} tokens; "
        f"vocabulary {model.config.vocab_size:,}",
        f"model {model.n_parameters() / 1e6:.2f}M parameters, "
        f"{model.n_parameters(embedding=False) / 1e6:.2f}M in blocks; "
        + _workers(threads, n_processes),
    ]
    if corpus.n_skipped:
        lines.append(f"skipped {corpus.n_skipped} .py files that are not UTF-8")
    if found is not None:
        lines.append(f"resuming from {found}, step {state.step}")
        now, before = (threads, n_processes), (state.threads, state.processes)
        if now != before:
            lines.append(
                f"warning: {_workers(*now)}, not {_workers(*before)} as before: sums are ordered "
                "differently and losses will differ in the last bits"
            )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _workers(threads: int, n_processes: int) -> str:
    return f"{threads} threads" + (f" in each of {n_processes} processes" * (n_processes > 1))
