"""Two builds of yocobit compared: prefill, decode and a training step, run alternately.

    python benchmarks/versions.py OLD_PYTHON NEW_PYTHON [--rounds 5] [--threads 2]
        [--only tiny small 2b4t train] [--out FILE]

OLD_PYTHON and NEW_PYTHON are the interpreters of the environments in which the builds are
installed. The new build writes the models. Every round runs each measurement with both builds, each
in a separate process, in alternating order. A ratio is the median over rounds of new / old speed;
above 1, the new build is faster.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PREFILL, DECODE = 512, 128  # tokens
SHAPES = ("tiny", "small", "2b4t")
TRAIN = "train"
STEPS = 12  # of a training run; the median speed after the first two counts

# Code for the processes; it uses only names that both builds have.
WRITE = """
import sys
from pathlib import Path
from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import named_shape
write_random_model(named_shape(sys.argv[1]), Path(sys.argv[2]))
"""
SPEED = f"""
import json, statistics, sys, time
import numpy as np
from yocobit import Engine
engine = Engine.load(sys.argv[1], threads=int(sys.argv[2]))
rng = np.random.default_rng(0)
tokens = rng.integers(0, engine.config.vocab_size, {PREFILL + DECODE}).tolist()
prefill, decode = [], []
for _ in range(3):
    session = engine.session({PREFILL + DECODE}, "f16")
    started = time.perf_counter()
    logits = session.feed(tokens[:{PREFILL}])
    prefill.append(time.perf_counter() - started)
    for token in tokens[{PREFILL}:]:
        started = time.perf_counter()
        session.step(token, logits)
        decode.append(time.perf_counter() - started)
print(json.dumps({{"prefill": {PREFILL} / min(prefill), "decode": 1 / statistics.median(decode)}}))
"""
CONFIG = """
[model]
preset = "tiny"
[data]
train = ["text.jsonl"]
valid_every = 4
vocab_size = 1024
context = 256
[optim]
batch_size = 8
[run]
steps = {steps}
threads = {threads}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="interpreter of the old build")
    parser.add_argument("new", help="interpreter of the new build")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", choices=(*SHAPES, TRAIN), default=(*SHAPES, TRAIN))
    parser.add_argument("--out", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    builds = {"old": arguments.old, "new": arguments.new}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        runs = measure(builds, arguments, work)
    found = ratios(runs)
    report = {"command": " ".join(sys.argv), "builds": {n: describe(p) for n, p in builds.items()}}
    report |= {"threads": arguments.threads, "ratios": found, "runs": runs}
    for name, ratio in found.items():
        print(f"{name:16} {ratio:6.3f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(builds: dict[str, str], arguments: argparse.Namespace, work: Path) -> list[Any]:
    """Run every measurement with both builds once per round."""
    shapes = [name for name in arguments.only if name != TRAIN]
    for shape in shapes:
        run(builds["new"], WRITE, shape, str(work / shape))
    (work / "text.jsonl").write_text(text(), encoding="utf-8")
    runs = []
    for number in range(arguments.rounds):
        order = list(builds) if number % 2 == 0 else list(reversed(builds))
        for name in arguments.only:
            for build in order:
                if name == TRAIN:
                    speeds = train(builds[build], arguments.threads, work / f"{build}-{number}")
                else:
                    output = run(builds[build], SPEED, str(work / name), str(arguments.threads))
                    speeds = json.loads(output.splitlines()[-1])
                runs.append({"round": number, "build": build, "model": name, **speeds})
                print(json.dumps(runs[-1]), flush=True)
    return runs


def ratios(runs: list[Any]) -> dict[str, float]:
    """Return the median over rounds of new / old, by model and measure."""
    speeds: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for each in runs:
        for what in ("prefill", "decode", "step"):
            if what in each:
                rounds = speeds.setdefault((each["model"], what), {})
                rounds.setdefault(each["round"], {})[each["build"]] = each[what]
    return {
        f"{model} {what}": statistics.median(r["new"] / r["old"] for r in rounds.values())
        for (model, what), rounds in speeds.items()
    }


def train(python: str, threads: int, out: Path) -> dict[str, float]:
    """Return training steps per second of a short run of `yocobit train`."""
    config = out.with_suffix(".toml")
    config.write_text(CONFIG.format(steps=STEPS, threads=threads), encoding="utf-8")
    command = [python, "-m", "yocobit", "train", str(config), "--out", str(out)]
    subprocess.run(command, check=True, cwd=out.parent, capture_output=True)
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    seconds = [line["seconds"] for line in metrics if "loss" in line]
    steps = [b - a for a, b in itertools.pairwise(seconds[2:])]
    return {"step": 1 / statistics.median(steps)}


def describe(python: str) -> Any:
    """Return machine, version and commit of a build, as reported by that build."""
    code = """
import json
try:
    from yocobit.hardware.host import describe_host as describe
except ImportError:  # before 0.1
    from yocobit.benchmark.machine import describe_machine as describe
print(json.dumps(describe().to_dict()))
"""
    return json.loads(run(python, code))


def run(python: str, code: str, *arguments: str) -> str:
    command = [python, "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def text() -> str:
    """Return JSON lines of random words; the speed of a step does not depend on the text."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(400)]
    documents = (" ".join(rng.choices(words, k=200)) for _ in range(200))
    return "".join(json.dumps({"text": document}) + "\n" for document in documents)


if __name__ == "__main__":
    main()
