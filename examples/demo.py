"""The whole pipeline: train `tiny` on Python's standard library, pack the model, generate text.

    python examples/demo.py [--minutes 9.5] [--out runs/demo]

Ctrl-C stops the run; the next start resumes it.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from rich.console import Console

from yocobit import Engine
from yocobit.costs import describe
from yocobit.data.baselines import compressed_bits_per_byte, validation_text
from yocobit.engine import SamplingConfig
from yocobit.errors import report_errors
from yocobit.packing import pack
from yocobit.packing.format import is_packed
from yocobit.tracking.plot import plot_runs
from yocobit.training import load, train

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "tiny.toml"
PROMPT = "class PathReader:\n    def read(self, path):"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help="training time; default: as configured")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="directory of the run")
    arguments = parser.parse_args()
    console = Console(highlight=False)

    console.rule("1. train")
    overrides = [] if arguments.minutes is None else [f"run.minutes={arguments.minutes}"]
    config = load(CONFIG, overrides)
    arguments.out.mkdir(parents=True, exist_ok=True)  # resume=True needs the directory
    checkpoint = train(config, arguments.out, resume=True, console=console)

    console.rule("2. pack")
    model = arguments.out / "model"
    if is_packed(model):  # by an earlier start
        shutil.rmtree(model)
    for line in describe(pack(checkpoint, model)):
        console.print(line, soft_wrap=True)

    console.rule("3. compare")
    baselines = compressed_bits_per_byte(validation_text(arguments.out / "data"))
    plot = arguments.out / "curves.png"
    plot_runs([arguments.out], plot, baselines=baselines)
    for name, bits in baselines.items():
        console.print(f"{name:8} {bits:.3f} bits/byte on the same validation text")
    console.print(f"curves   {plot}")

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
    console.print(f"try it: .venv/bin/yocobit generate 'import os' --model {model}")


if __name__ == "__main__":
    report_errors(main)
