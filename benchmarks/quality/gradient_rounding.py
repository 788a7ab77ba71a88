"""Does rounding output gradients to int16 cost anything? The same training twice: by native
kernels, which round them for the gradients of weights, and by plain PyTorch that does not.

    python benchmarks/quality/gradient_rounding.py --data runs/quality/data [--steps 200]

Bits per byte on held-out prose for each seed; writes benchmarks/results/gradient_rounding.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from unittest import mock

import results_file
from rich.console import Console

from yocobit import training
from yocobit.model.ops import reference
from yocobit.model.ops.dispatch import PYTORCH, kernels, use_kernels

RECIPE = Path(__file__).parent / "prose.toml"
RESULTS = Path(__file__).parent.parent / "results" / "gradient_rounding.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    for seed in range(arguments.seeds):
        for name in (kernels(), PYTORCH):
            bits = train(arguments, name, seed)
            found.setdefault(name, {})[str(seed)] = bits
            print(f"seed {seed} {name:8} {bits:.4f} bits/byte", flush=True)
    made = {"preset": arguments.preset, "steps": arguments.steps}
    results_file.write(RESULTS, {**made, "bits_per_byte": found})


def train(arguments: argparse.Namespace, name: str, seed: int) -> float:
    """Train one run from nothing; return its last bits per byte."""
    changes = [f'data.{split}=["{arguments.data.resolve() / split}.jsonl"]'
               for split in ("train", "valid")]  # fmt: skip
    changes += [f'model.preset="{arguments.preset}"', f"run.steps={arguments.steps}"]
    changes += [f"run.seed={seed}", f"run.eval_every={arguments.steps}"]
    config = training.load(RECIPE, changes)
    exact = mock.patch.object(reference, "quantize_gradients", lambda grads: grads)
    with tempfile.TemporaryDirectory() as directory, use_kernels(name), exact:
        training.train(config, Path(directory) / "run", resume=False, console=Console(quiet=True))
        metrics = (Path(directory) / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    return float(json.loads(metrics.splitlines()[-1])["valid_bits_per_byte"])


if __name__ == "__main__":
    main()
