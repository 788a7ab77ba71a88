"""The whole pipeline: train `tiny` on Python's standard library, pack the model, generate text.

    python examples/demo.py [--minutes 9.0] [--out runs/demo]

Ctrl-C stops the run, and the next start resumes it. More minutes continue a finished run.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table

from yocobit import Engine
from yocobit.costs import describe
from yocobit.data.baselines import compressed_bits_per_byte, validation_text
from yocobit.engine import SamplingConfig
from yocobit.errors import report_errors
from yocobit.packing import is_packed, pack
from yocobit.tracking.plot import plot_runs
from yocobit.training import load, train
from yocobit.training.checkpoint import load_state

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "tiny.toml"
MINUTES = 9.0  # of configs/tiny.toml
PROMPT = "class PathReader:\n    def read(self, path):"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="training time")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="directory of the run")
    arguments = parser.parse_args()
    console = Console(highlight=False)

    console.rule("1. train")
    checkpoint = run_training(arguments.minutes, arguments.out, console)

    console.rule("2. pack")
    model = arguments.out / "model"
    if is_packed(model):  # by an earlier start
        shutil.rmtree(model)
    for line in describe(pack(checkpoint, model)):
        console.print(line, soft_wrap=True)

    console.rule("3. compare")
    with console.status("compressing the validation text by gzip and xz"):
        baselines = compressed_bits_per_byte(validation_text(arguments.out / "data"))
    compare(load_state(checkpoint).valid_bits_per_byte, baselines, console)
    plot = arguments.out / "curves.png"
    plot_runs([arguments.out], plot, baselines=baselines)
    console.print(f"curves: {plot}")

    console.rule("4. generate")
    engine = Engine.load(model)
    generation = engine.stream(
        PROMPT, max_tokens=200, sampling=SamplingConfig(temperature=0.6, top_p=0.9)
    )
    console.print(PROMPT, end="", style="bold", markup=False)
    for piece in generation:
        console.print(piece, end="", markup=False, soft_wrap=True)
    console.print(
        f"\n\n{len(generation.tokens)} tokens at {generation.decode_tokens_per_s:,.0f} tokens/s "
        f"on {engine.threads} threads, {engine.kernels} kernels"
    )

    console.rule("5. continue")
    program = ".venv/bin/yocobit"
    where = shlex.quote(str(model))
    longer = f"--minutes {2 * arguments.minutes:g} --out {shlex.quote(str(arguments.out))}"
    for what, command in (
        ("generate", f"{program} generate 'import os' --model {where}"),
        ("serve", f"{program} serve {where}"),
        ("train longer", f".venv/bin/python examples/demo.py {longer}"),
        ("on your text", f"{program} train my.txt --out runs/mine --minutes 10"),
    ):
        console.print(f"{what:13} {command}", markup=False, soft_wrap=True)


def run_training(minutes: float, out: Path, console: Console) -> Path:
    """Train for some minutes, with evaluations spread over the run; return the checkpoint."""
    overrides = [f"run.minutes={minutes}"]
    configured = load(CONFIG, overrides)
    every = max(5, round(configured.run.eval_every * minutes / MINUTES))
    overrides += [f"run.{name}={every}" for name in ("eval_every", "sample_every")]
    out.mkdir(parents=True, exist_ok=True)  # resume=True needs the directory
    return train(load(CONFIG, overrides), out, resume=True, console=console)


def compare(bits: float | None, baselines: dict[str, float], console: Console) -> None:
    """Print bits per byte of the model and of compressors on the same text, and a verdict."""
    assert bits is not None  # the last step of a run is evaluated
    table = Table("on the validation text", "bits/byte", box=None, pad_edge=False)
    rows = {"yocobit, this run": bits, **dict(sorted(baselines.items(), key=lambda row: row[1]))}
    for name, value in rows.items():
        table.add_row(name, f"{value:.3f}", style="bold" if value is bits else "")
    console.print(table)
    best, value = min(baselines.items(), key=lambda row: row[1])
    change = f"{abs(1 - bits / value):.0%} {'fewer' if bits < value else 'more'} bits than {best}"
    advice = "" if bits < value else "; train longer"
    console.print(f"verdict: the model predicts the text with {change}{advice}", soft_wrap=True)


if __name__ == "__main__":
    report_errors(main)
