"""The training loop: steps, evaluations, samples and checkpoints until the run is done.

Every step is a function of configuration, corpus and the previous step, so a run that was
interrupted anywhere and resumed has the same losses as an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from yocobit.config import ConfigError
from yocobit.data.tokenizer import end_token
from yocobit.disk import WriteError
from yocobit.packing import checkpoints
from yocobit.tracking.curves import WEIGHT_COUNTS
from yocobit.tracking.manifest import command_to_resume, write_manifest
from yocobit.tracking.progress import Progress, print_line
from yocobit.tracking.run_log import NullRunLog, RunLog, StepLog
from yocobit.training import checkpoint
from yocobit.training.backend import compile_errors_in_one_line, matmul_precision
from yocobit.training.batch import Batch
from yocobit.training.config import TrainConfig
from yocobit.training.distributed import Processes, process_group
from yocobit.training.divergence import divergence_error, skips_error, unusable_weight
from yocobit.training.errors import (
    DamagedCheckpoint,
    TrainingError,
    out_of_memory_as,
    step_too_large,
)
from yocobit.training.interrupt import Interrupt
from yocobit.training.run_lock import claim_run, locked
from yocobit.training.sample import printable_sample, sample
from yocobit.training.schedule import rate_factor, short_run_warning, weight_decay_factor
from yocobit.training.setup import Run, set_up
from yocobit.training.sharding import evaluation_module, gather_model
from yocobit.training.step import GradientStep, Objective, StepResult
from yocobit.training.time_budget import TimeBudget
from yocobit.training.validation import bits_per_byte, weight_counts

_SAMPLE_TEMPERATURE = 0.6
_TIMED_SAMPLE = 4  # tokens


def train(
    config: TrainConfig,
    run_dir: Path,
    *,
    resume: bool,
    console: Console,
    init: Path | None = None,
) -> Path:
    """Train as configured into `run_dir`; return the checkpoint of the last step.

    With `resume`, continue from the last checkpoint there; start a run in an empty directory or if
    there is no checkpoint yet. A new run starts from the weights of the run or checkpoint `init`,
    if given. Ctrl-C and SIGTERM stop the run after the current step, with a checkpoint. A run whose
    newest checkpoint is damaged resumes from an earlier one, and raises DamagedCheckpoint at its
    end. All processes of one torchrun call this.
    """
    started = time.monotonic()
    with process_group(simultaneous=(ConfigError, TrainingError, WriteError)) as processes:
        console.quiet = console.quiet or not processes.is_main
        with _locked_run(run_dir, resume, console, processes):
            run = set_up(
                config, run_dir, resume=resume, init=init, console=console, processes=processes
            )
            loop = Loop(run, console, started)
            with (
                matmul_precision(run.state.precision),
                out_of_memory_as(lambda: step_too_large(run.config, run_dir)),
            ):
                saved = loop.run()
            if run.damaged and processes.is_main:
                raise DamagedCheckpoint(
                    f"{saved}: is saved, but the run was resumed without its newest checkpoint: "
                    f"{run.damaged[0]}; check the disk"
                )
            return saved


@contextmanager
def _locked_run(
    run_dir: Path, resume: bool, console: Console, processes: Processes
) -> Iterator[None]:
    """Check that a run may be written to a directory; the main process locks it."""
    processes.on_all(lambda: claim_run(run_dir, resume))
    with ExitStack() as stack:
        warning = processes.on_main(lambda: stack.enter_context(locked(run_dir)))
        if warning is not None:
            print_line(console, warning)
        yield


class Loop:
    """Runs steps, and the evaluations, samples and checkpoints that are due after them."""

    def __init__(self, run: Run, console: Console, started: float) -> None:
        self.config, self.run_dir, self.corpus = run.config, run.directory, run.corpus
        self.model, self.objective, self.optimizers = run.model, run.objective, run.optimizers
        self.state, self.processes = run.state, run.processes
        self.console, self.started = console, started
        self.seconds_before = run.state.seconds
        optim = run.config.optim
        self.windows_per_step = optim.batch_size * optim.accumulation
        self.tokens_per_step = self.windows_per_step * run.config.data.context
        self.gradient_step = GradientStep(
            run.objective,
            run.optimizers,
            run.state.guard,
            optim.grad_clip,
            optim.spike_factor,
            run.processes,
        )
        self.budget = TimeBudget(
            run.config, run.state, run.processes, len(run.corpus.valid), run.model.n_parameters()
        )
        self.diverged: str | None = None  # why the weights must not be saved

    def run(self) -> Path:
        """Train until the run is done or interrupted; return its last checkpoint."""
        log = self.processes.on_all(self._open_log)
        try:
            if log.warning is not None:
                self._print(log.warning)
            self.processes.on_main(self._write_manifest)
            self._measure_overheads()
            self.budget.convert_resumed(log.durations, self.seconds_before)
            self._warn_of_short_run()
            with Interrupt() as interrupt, Progress(self.console, self.tokens_per_step) as progress:
                while not self._is_done() and not self._is_interrupted(interrupt):
                    self._step(log, progress)
                if self.diverged is not None and self._is_done():
                    raise divergence_error(self.run_dir, self.state.step, self.diverged)
                self._check_weights()
                saved = self._save(log)
        finally:
            log.close()
        self._print_end(saved, interrupt)
        return saved

    def _open_log(self) -> StepLog:
        if not self.processes.is_main:
            return NullRunLog()
        return RunLog(self.run_dir, self.state.step, tensorboard=self.config.run.tensorboard)

    def _write_manifest(self) -> None:
        state, model, corpus = self.state, self.model, self.corpus
        splits = {"train": corpus.train, "valid": (corpus.valid,)}
        sections = {
            "config": self.config.to_dict(),
            "corpus": {
                "sha256": corpus.sha256,
                **{
                    split: {
                        "bytes": sum(tokens.n_bytes for tokens in parts),
                        "tokens": sum(len(tokens) for tokens in parts),
                    }
                    for split, parts in splits.items()
                },
                "vocab_size": model.config.vocab_size,
            },
            "model": {
                "parameters": model.n_parameters(),
                "parameters_in_blocks": model.n_parameters(embedding=False),
            },
        }
        settings = {
            "threads": state.threads,
            "processes": state.processes,
            "precision": state.precision,
        }
        if (warning := write_manifest(self.run_dir, sections, state.step, settings)) is not None:
            self._print(warning)

    def _is_done(self) -> bool:
        return self.state.total_steps is not None and self.state.step >= self.state.total_steps

    def _is_interrupted(self, interrupt: Interrupt) -> bool:
        """Whether any process got a signal: all of them stop after the same step."""
        interrupt.number = self.processes.max(interrupt.number)
        return interrupt.number != 0

    def _print_end(self, saved: Path, interrupt: Interrupt) -> None:
        if not self._is_done():
            return self._print(
                f"{interrupt.name}: stopped after step {self.state.step}, saved {saved}\n"
                f"resume with: {command_to_resume()}"
            )
        bits = self.state.valid_bits_per_byte
        result = "" if bits is None else f", {bits:.4f} bits/byte on the validation text"
        self._print(f"done: {saved}{result}")
        if self.state.best_step not in (None, self.state.step):
            best = f"step {self.state.best_step}, {saved.parent / checkpoints.BEST}"
            self._print(f"best checkpoint, by the bits/byte of evaluations: {best}")

    def _check_weights(self) -> None:
        """Raise TrainingError if the weights must not be saved."""
        if (reason := unusable_weight(self.model, self.processes)) is not None:
            raise divergence_error(self.run_dir, self.state.step, reason)

    # ---- one step ----

    def _step(self, log: StepLog, progress: Progress) -> None:
        state, run = self.state, self.config.run
        start = time.monotonic()
        factor = rate_factor(self.config.schedule, state.step, state.total_steps)
        result = self._update(factor)
        state.step += 1
        state.n_tokens += self.tokens_per_step
        self.budget.durations.append(time.monotonic() - start)
        is_converted = self.budget.convert(self._seconds())
        if is_converted:
            self._warn_of_short_run()
        record = self._record(result, factor)
        is_finite = math.isfinite(result.loss + result.divergence + result.grad_norm)
        self.diverged = None if is_finite else result.skipped
        if state.step % run.eval_every == 0 or self._is_done():
            record["valid_bits_per_byte"] = self._validate(progress)
            record[WEIGHT_COUNTS] = weight_counts(self.model)
        state.seconds = self._seconds()
        log.write({**record, "seconds": round(state.seconds, 3)})
        self._show(record, progress)
        is_sampled = run.sample_every and self.diverged is None
        if is_sampled and (state.step % run.sample_every == 0 or self._is_done()):
            self._sample(log, progress)
        if result.skipped and state.guard.n_in_a_row >= self.config.optim.max_skips:
            raise skips_error(self.run_dir, state.step, state.guard.n_in_a_row, result.skipped)
        # A converted budget is saved immediately: a run resumed before the next checkpoint must
        # keep its number of steps. No checkpoint is written while steps are skipped: the weights
        # may be unusable.
        is_due = state.step % run.checkpoint_every == 0 or state.best_step == state.step
        is_due = is_due and state.guard.n_in_a_row == 0
        if (is_due or is_converted) and not self._is_done() and self.diverged is None:
            self._check_weights()
            self._save(log)

    def _update(self, factor: float) -> StepResult:
        """Update the weights by the gradient of the next global batch."""
        optim, state = self.config.optim, self.state
        first = state.step * self.windows_per_step
        windows = self.processes.shard(range(first, first + self.windows_per_step))
        seed, context = self.config.run.seed, self.config.data.context
        batches = []
        for i in range(0, len(windows), optim.batch_size):
            part = windows[i : i + optim.batch_size]
            batches.append(Batch.read(self.corpus, seed, part.start, len(part), context))
        decay = weight_decay_factor(self.config.schedule, state.step, state.total_steps)
        with compile_errors_in_one_line() if state.is_compiled else nullcontext():
            return self.gradient_step(batches, factor, decay)

    def _record(self, result: StepResult, factor: float) -> dict[str, Any]:
        record: dict[str, Any] = {
            "step": self.state.step,
            "loss": result.loss,
            "lr": factor * self.config.optim.learning_rate,
            "grad_norm": result.grad_norm,
            "tokens": self.state.n_tokens,
        }
        if self.config.distill is not None:
            record["divergence"] = result.divergence
        if self.model.config.n_experts:
            record["load_balancing_loss"] = result.balance
        if result.skipped is not None:
            record["skipped"] = result.skipped
        return record

    def _show(self, record: dict[str, Any], progress: Progress) -> None:
        state, skipped = self.state, record.get("skipped")
        if skipped is not None:
            progress.print(f"step {state.step}: skipped, {skipped}")
        progress.update(
            state.step,
            state.total_steps,
            None if skipped else record["loss"],
            self.budget.durations[-1],
            state.valid_bits_per_byte,
        )
        if "valid_bits_per_byte" in record:
            progress.print(f"step {state.step}: {record['valid_bits_per_byte']:.4f} bits/byte")

    def _sample(self, log: StepLog, progress: Progress) -> None:
        """Generate a sample; the main process prints and stores it."""
        text = self._generate(self.config.run.sample_tokens)
        if text is not None:
            prompt = self.config.run.prompt
            progress.print(f"step {self.state.step}: {printable_sample(prompt, text)}")
            log.write_sample(self.state.step, prompt + text)

    def _generate(self, n_tokens: int) -> str | None:
        """Return a sample after the prompt in the main process, None in the others."""
        run, tokenizer = self.config.run, self.corpus.tokenizer
        model = gather_model(self.model, self.processes.is_main)
        if model is None:
            return None
        return sample(model, tokenizer, run.prompt, n_tokens, _SAMPLE_TEMPERATURE, run.seed)

    def _validate(self, progress: Progress) -> float:
        """Return bits per byte; the last evaluation of a run reads as much text as its time allows.

        The best step is chosen on the same text each time, the part that eval_tokens selects.
        """
        state = self.state
        each, last = self.budget.evaluation_tokens()
        bits = self._bits_per_byte(each, progress)
        if bits < (state.best_bits_per_byte or math.inf):
            state.best_bits_per_byte, state.best_step = bits, state.step
        if self._is_done() and last != each:
            bits = self._bits_per_byte(last, progress)
        if math.isfinite(bits):
            state.valid_bits_per_byte = bits
        else:
            self.diverged = self.diverged or f"bits/byte on the validation text are {bits}"
            state.valid_bits_per_byte = None
        return bits

    def _bits_per_byte(self, max_tokens: int | None, progress: Progress | None = None) -> float:
        report = None if progress is None else progress.evaluating
        end, valid = end_token(self.corpus.tokenizer), self.corpus.valid
        context = self.config.data.context
        with evaluation_module(self.objective, Objective(self.model, 0.0)) as objective:
            return bits_per_byte(objective, valid, end, context, max_tokens, self.processes, report)

    def _save(self, log: StepLog) -> Path:
        log.sync()
        return checkpoint.save(
            self.run_dir,
            self.state,
            self.model,
            self.optimizers.state(),
            self.config.to_dict(),
            self.corpus.tokenizer,
            # While steps are skipped, earlier checkpoints may be the better ones.
            self.config.run.keep if self.state.guard.n_in_a_row == 0 else None,
            self.corpus.chat_template,
            self.processes,
        )

    # ---- time ----

    def _seconds(self) -> float:
        """Return the duration of the run, including that before it was resumed."""
        return self.seconds_before + time.monotonic() - self.started

    def _measure_overheads(self) -> None:
        """Time an evaluation and a sample at the start of a run with a time budget."""
        run, state = self.config.run, self.state
        if run.minutes is None or state.step > 0:
            return
        context = self.config.data.context
        n_tokens = min(self.config.optim.batch_size, 8) * -(-context // 2)
        n_tokens = min(n_tokens, len(self.corpus.valid))
        self._bits_per_byte(n_tokens)  # warms up
        start = time.monotonic()
        self._bits_per_byte(n_tokens)
        evaluation_s = (time.monotonic() - start) / n_tokens
        sample_s = 0.0
        if run.sample_every:
            start = time.monotonic()
            self._generate(min(run.sample_tokens, _TIMED_SAMPLE))
            sample_s = (time.monotonic() - start) * max(1.0, run.sample_tokens / _TIMED_SAMPLE)
        state.evaluation_s, state.sample_s = self.processes.broadcast((evaluation_s, sample_s))
        each, last = self.budget.evaluation_tokens()
        if last is not None:
            self._print(
                f"to fit in run.minutes, evaluations read {each:,} of "
                f"{len(self.corpus.valid):,} validation tokens, the last one {last:,}"
            )

    def _warn_of_short_run(self) -> None:
        warning = short_run_warning(self.config.schedule, self.state.total_steps)
        if warning is not None:
            self._print(warning)

    def _print(self, line: str) -> None:
        print_line(self.console, line)
