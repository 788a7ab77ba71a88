"""Bits per byte on prose: architectures and weight kinds at equal parameters and tokens.

    python benchmarks/quality/corpus.py DATA runs/quality/data
    python benchmarks/quality/prose.py --out runs/quality

Trains each variant, resumes interrupted runs, and adds every finished run to OUT/results.json or
the file given by --results. Runs in that file are not trained again. The committed results are in
benchmarks/results/quality_prose.json. Feed-forward widths vary to keep parameter counts equal.

Letters: C model width   F feed-forward width   L layers
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import results_file

from yocobit.config import ModelConfig, preset
from yocobit.hardware.host import default_threads

HERE = Path(__file__).parent
RECIPE = HERE / "prose.toml"

RETENTION, WINDOW = ["retention"] * 3 + ["cross"] * 3, ["window"] * 3 + ["cross"] * 3
VARIANTS: dict[str, dict[str, Any]] = {
    "transformer-dense": {"layers": ["full"] * 6, "weights": "dense"},
    "transformer-ternary": {"layers": ["full"] * 6},
    "gret-dense": {"layers": RETENTION, "weights": "dense"},
    "gret-ternary": {"layers": RETENTION},
    "gret-sign": {"layers": RETENTION, "weights": "sign"},
    "swa-ternary": {"layers": WINDOW, "window": 128},
    "retention-ternary": {"layers": ["retention"] * 6},
    "gret-ternary-int8": {"layers": RETENTION, "shared_kv": "int8"},
    "gret-ternary-int4": {"layers": RETENTION, "shared_kv": "int4"},
    "gret-ternary-nope": {"layers": RETENTION, "cross_rope": "none"},
    "gret-ternary-index": {
        "layers": RETENTION,
        "cross_attention": "index",
        "cross_positions": 128,
    },
    "gret-ternary-gmu": {"layers": ["retention"] * 3 + ["cross", "gmu", "cross"]},
}
MAIN_PAIR = ("transformer-ternary", "gret-ternary")
MAIN_SEEDS, SEEDS = (0, 1, 2), (0,)


def model_of(variant: str) -> dict[str, Any]:
    """Return a variant's [model] table; d_ff matches the parameter count of "gret-ternary"."""
    fields = dict(VARIANTS[variant])
    base = preset("tiny")
    target = n_matrix_parameters(base)
    config = base.replace(**{k: tuple(v) if k == "layers" else v for k, v in fields.items()})
    spare = target - n_matrix_parameters(config)
    d_ff = base.d_ff + round(spare / (3 * base.d_model * len(config.layers)) / 8) * 8
    return {**fields, "d_ff": d_ff}


def n_matrix_parameters(config: ModelConfig) -> int:
    """Return the number of parameters in block projections and shared K/V."""
    C, F = config.d_model, config.d_ff
    shared = config.n_kv_heads * config.head_dim
    own = config.n_self_kv_heads * config.self_head_dim
    mixer = {
        "retention": 5 * C * C,
        "window": 2 * C * C + 2 * C * own,
        "full": 2 * C * C + 2 * C * shared,
        "cross": 2 * C * C,
        "gmu": 2 * C * C,
    }
    blocks = sum(mixer[kind] + 3 * C * F for kind in config.layers)
    return blocks + (2 * C * shared if config.has_cross_decoder else 0)


def train(out: Path, variant: str, seed: int, settings: list[str]) -> Path:
    """Train one variant, or resume its training; return its run directory."""
    run = out / f"{variant}-seed{seed}"
    if (run / "done").exists():
        return run
    run.mkdir(parents=True, exist_ok=True)
    changes = [f"model.{key}={json.dumps(value)}" for key, value in model_of(variant).items()]
    data = out.resolve() / "data"
    changes += [f'data.{split}=["{data / split}.jsonl"]' for split in ("train", "valid")]
    changes += [f"run.seed={seed}", *settings]
    command = [sys.executable, "-m", "yocobit", "train", str(RECIPE)]
    command += ["--out", str(run), "--resume"]
    for change in changes:
        command += ["--set", change]
    with (out / f"{run.name}.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=_one_thread())
    (run / "done").touch()
    return run


def measured(run: Path) -> dict[str, float]:
    """Return bits per byte on the whole validation text, size and time of a finished run."""
    last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return {
        "bits_per_byte": float(last["valid_bits_per_byte"]),
        "tokens": int(last["tokens"]),
        "parameters": int(manifest["model"]["parameters"]),
        "minutes": round(float(last["seconds"]) / 60, 1),
    }


def recipe(settings: list[str]) -> list[str]:
    """Return the lines of the training configuration, with the settings appended."""
    lines = RECIPE.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")] + settings


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--results", metavar="FILE", type=Path, help="OUT/results.json by default")
    parser.add_argument("--only", help="variants, separated by commas", default=",".join(VARIANTS))
    parser.add_argument("--jobs", type=int, default=default_threads(), help="runs at once")
    parser.add_argument("--set", action="append", default=[], help="as in yocobit train")
    arguments = parser.parse_args()
    path = arguments.results or arguments.out / "results.json"
    results = results_file.read(path, {"recipe": recipe(arguments.set)})
    found = results.setdefault("runs", {})
    jobs = [
        (variant, seed)
        for variant in arguments.only.split(",")
        for seed in (MAIN_SEEDS if variant in MAIN_PAIR else SEEDS)
        if f"{variant}-seed{seed}" not in found
    ]
    jobs.sort(key=lambda job: job[1])
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = [pool.submit(train, arguments.out, *job, arguments.set) for job in jobs]
        for finished in as_completed(runs):
            run = finished.result()
            found[run.name] = measured(run)
            results_file.write(path, results)
            print(f"{run.name}: {found[run.name]['bits_per_byte']:.4f} bits/byte")


if __name__ == "__main__":
    main()
