"""yocobit compared with llama.cpp, PyTorch and itself: same shapes, random weights, interleaved.

    python benchmarks/peers.py [--rounds 3] [--only speed attention ...] [--threads 2]
        [--work DIR] [--out benchmarks/results/peers.json]

Needs the extra `peers` (llama-cpp-python, gguf). Every round executes every run once, each in a
separate process. A ratio is the median over rounds of yocobit / the best peer of that round.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import measures
from measures import DEPTH, LONG_PREFILL, PYTORCH, SESSIONS, YOCOBIT, YOCOBIT_EXACT

from yocobit.benchmark.random_model import write_random_model
from yocobit.benchmark.shapes import SHAPES, transformer, yoco
from yocobit.config import ModelConfig
from yocobit.extras import needs_extra
from yocobit.hardware.host import provenance
from yocobit.importers import import_model
from yocobit.packing import read_model

Run = dict[str, Any]

RESULTS = Path(__file__).parent / "results" / "peers.json"
THEIRS = {"ternary": ("TQ2_0", "TQ1_0"), "sign": ("Q1_0",)}
THEIR_HEAD, OUR_HEAD = "Q6_K", "int4"  # llama.cpp's default for these types, and ours

# Models whose activations are not quantised in training: shape, type of the file, our head (None:
# as in the file). llama.cpp takes minutes for a prefill of all 36 layers of Bonsai-8B in Q2_0.
WEIGHTS_ONLY = (
    ("bonsai-8b:8", "Q1_0", None),
    ("bonsai-8b:8", "Q2_0", None),
    ("maple", "TQ2_0", OUR_HEAD),
)
BONSAI = (("bonsai-8b", "Q1_0", None), ("bonsai-8b", "Q2_0", None))
# Of published ternary models next to 2b4t.
PUBLISHED = ("falcon3-3b", "llama3-8b")
_100M = transformer(768, 12, 12, 12, 2048, 16384)
ALL_SHAPES: dict[str, ModelConfig] = {
    "2b4t": SHAPES["2b4t"],
    **{name: SHAPES[name] for name in PUBLISHED},
    "150m": SHAPES["150m"],
    "150m-yoco": yoco(SHAPES["150m"]),
    # The weights fit in a last-level cache of 32 MB.
    "85m": transformer(768, 12, 12, 12, 2048, 8192),
    # on_chip.py
    "100m": _100M,
    "100m-yoco": yoco(_100M),
    # One attention layer of 2b4t with a small feed-forward and vocabulary.
    "attention": transformer(2560, 1, 20, 5, 256, 1024),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=_PLANS, default=list(_PLANS))
    parser.add_argument("--threads", type=int, help="only the runs with this many threads")
    parser.add_argument("--work", type=Path, help="keep models here between runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run = json.loads(arguments.one)
        print(json.dumps(getattr(measures, run["measure"])(run)))
        return
    need_llama_cpp()
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = [run for name in arguments.only for run in _PLANS[name](work)
                if arguments.threads in (None, run["threads"])]  # fmt: skip
        report: Run = {
            **provenance(),
            "versions": versions(),
            "runs": list(measured(runs, arguments.rounds)),
        }
    report["ratios"] = ratios(report["runs"])
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, ratio in report["ratios"].items():
        print(f"{name:36} {ratio:8.2f}")
    print(f"wrote {arguments.out}")


def speed_runs(work: Path) -> Iterator[Run]:
    """Yield prefill and decode runs: our weight formats, llama.cpp's types and PyTorch."""
    for shape in ("2b4t", "150m"):
        config = ALL_SHAPES[shape]
        for kind, types in THEIRS.items():
            paths = {YOCOBIT: ours(work, shape, kind)}
            for name in types:
                paths |= dict.fromkeys(llama_cpp(name), theirs(work, shape, name))
            for threads in (2, 1):
                for engine, path in paths.items():
                    yield {"measure": "speed", "shape": shape, "kind": kind, "engine": engine,
                           "threads": threads, "path": path,
                           "vocab_size": config.vocab_size}  # fmt: skip
    for threads in (2, 1):
        yield {"measure": "speed", "shape": "150m", "kind": "float32",
               "engine": PYTORCH, "threads": threads,
               "config": config.to_dict(), "vocab_size": config.vocab_size}  # fmt: skip


def published_runs(work: Path) -> Iterator[Run]:
    """Yield prefill and decode runs of the shapes of larger published models."""
    for shape in PUBLISHED:
        config = ALL_SHAPES[shape]
        paths = {YOCOBIT: ours(work, shape, "ternary")}
        paths |= dict.fromkeys(llama_cpp("TQ2_0"), theirs(work, shape, "TQ2_0"))
        for threads in (2, 1):
            for engine, path in paths.items():
                yield {"measure": "speed", "shape": shape, "kind": "ternary", "engine": engine,
                       "threads": threads, "path": path,
                       "vocab_size": config.vocab_size}  # fmt: skip


def weights_only_runs(work: Path, models: tuple[tuple[str, str, str | None], ...]) -> Iterator[Run]:
    """Yield runs of models like WEIGHTS_ONLY, all engines on the same file."""
    for shape, kind, head in models:
        published = random_gguf(work, shape, kind)
        packed = imported(published, head)
        paths = dict.fromkeys((YOCOBIT, YOCOBIT_EXACT), packed)
        # Attention is a negligible part of Bonsai.
        paths |= dict.fromkeys(llama_cpp(kind)[: 2 if shape == "maple" else 1], str(published))
        run = {"shape": shape, "kind": kind, "threads": 2}
        for engine, path in paths.items():
            yield {"measure": "speed", **run, "engine": engine, "path": path,
                   "vocab_size": read_model(Path(packed)).config.vocab_size}  # fmt: skip
        yield {"measure": "share", **run, "path": packed}


def attention_runs(work: Path) -> Iterator[Run]:
    """Yield runs of one attention layer over a long f16 cache."""
    paths = {YOCOBIT: ours(work, "attention", "ternary")}
    paths |= dict.fromkeys(llama_cpp("TQ2_0"), theirs(work, "attention", "TQ2_0"))
    for engine, path in paths.items():
        yield {"measure": "attention", "shape": "attention", "engine": engine, "threads": 2,
               "path": path}  # fmt: skip


def own_runs(work: Path) -> Iterator[Run]:
    """Yield runs that compare yocobit with itself and with the host's limits."""
    for shape, kind in (("2b4t", "ternary"), ("2b4t", "sign"), ("85m", "ternary")):
        for threads in (2, 1):
            yield {"measure": "share", "shape": shape, "kind": kind, "threads": threads,
                   "path": ours(work, shape, kind)}  # fmt: skip
    for shape in ("2b4t", "150m"):
        yield {"measure": "sessions", "shape": shape, "threads": 2,
               "path": ours(work, shape, "ternary")}  # fmt: skip
    yield {"measure": "early_exit", "shape": "150m", "threads": 2,
           "path": ours(work, "150m", "ternary"),
           "yoco_path": ours(work, "150m-yoco", "ternary")}  # fmt: skip
    yield {"measure": "opening", "shape": "2b4t", "threads": 2,
           "path": ours(work, "2b4t", "ternary")}  # fmt: skip


_PLANS = {
    "speed": speed_runs,
    "published": published_runs,
    "weights-only": partial(weights_only_runs, models=WEIGHTS_ONLY),
    "bonsai": partial(weights_only_runs, models=BONSAI),
    "attention": attention_runs,
    "own": own_runs,
}


def need_llama_cpp() -> None:
    """Exit unless llama-cpp-python and gguf are installed."""
    try:
        import gguf  # noqa: F401
        import llama_cpp  # noqa: F401
    except ModuleNotFoundError as error:
        sys.exit(f"error: {needs_extra('peers', f'{error.name} is not installed')}")


def llama_cpp(kind: str) -> tuple[str, str]:
    """Return the names of llama.cpp with and without flash attention."""
    return f"llama.cpp {kind}", f"llama.cpp {kind}{measures.WITHOUT_FLASH}"


def ours(work: Path, shape: str, kind: str) -> str:
    """Return a packed model of that shape; write it unless it exists."""
    path = work / f"{shape}-{kind}"
    if not path.exists():
        write_random_model(ALL_SHAPES[shape].replace(weights=kind), path, head=OUR_HEAD)
    return str(path)


def theirs(work: Path, shape: str, kind: str, head: str = THEIR_HEAD) -> str:
    """Return a GGUF file of that shape; write it unless it exists."""
    from llama_cpp_model import write_gguf

    path = work / f"{shape}-{kind}.gguf"
    if not path.exists():
        write_gguf(path, ALL_SHAPES[shape], kind, head)
    return str(path)


def random_gguf(work: Path, shape: str, kind: str) -> Path:
    """Return a weights-only GGUF file of that shape; write it unless it exists."""
    from weights_only_model import named_shape, write_random_gguf

    path = work / f"{shape.replace(':', '-')}-{kind}.gguf"
    if not path.exists():
        write_random_gguf(path, named_shape(shape), kind)
    return path


def imported(published: Path, head: str | None) -> str:
    """Return a packed model of a GGUF file; import it unless it exists."""
    path = published.with_suffix("")
    if not path.exists():
        import_model(published, path, head)
    return str(path)


def measured(runs: list[Run], rounds: int) -> Iterator[Run]:
    """Execute every run once per round, each in a separate process; yield its results."""
    for number in range(rounds):
        for run in runs:
            command = [sys.executable, __file__, "--one", json.dumps(run)]
            output = subprocess.run(command, capture_output=True, text=True)
            known = {key: value for key, value in run.items() if key in _SHOWN}
            name = f"{number} " + " ".join(map(str, known.values()))
            if output.returncode != 0:
                print(f"{name}: {output.stderr.strip()[-300:]}", flush=True)
                continue
            found = json.loads(output.stdout.splitlines()[-1])
            shown = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
            print(f"{name}: {shown}", flush=True)
            yield {**known, "round": number, **found}


def ratios(runs: list[Run]) -> dict[str, float]:
    """Return all ratios that the runs contain, by name; a name includes the shape unless 2b4t."""
    found: dict[str, float | None] = {}
    for match in _speed_contests(runs):
        shape, kind = match["shape"], match["kind"]
        for what in ("prefill", "decode"):
            name = "_".join([what, *_unless_2b4t(shape), kind, f"{match['threads']}t"])
            found[name] = _ratio(runs, match, what)
            found[f"{name}_exact"] = _ratio(runs, match, what, ours=YOCOBIT_EXACT)
            if shape == "150m" and kind == "ternary":
                of_any = {key: value for key, value in match.items() if key != "kind"}
                found[f"{name}_over_pytorch"] = _ratio(
                    runs, of_any, what, ours_kind=kind, peer=PYTORCH
                )
    # Time: theirs / ours.
    slower = _ratio(runs, {"measure": "attention"}, "ms", best=min)
    found[f"attention_{DEPTH}_f16_2t"] = None if slower is None else 1 / slower
    for run in _first_of_each(runs, "share"):
        match = {key: run[key] for key in ("measure", "shape", "kind", "threads")}
        name = "_".join([*_unless_2b4t(run["shape"]), run["kind"], f"{run['threads']}t"])
        found[f"share_of_read_limit_{name}"] = _median(runs, match, lambda r: r["share"])
        found[f"p99_over_median_{name}"] = _median(runs, match, lambda r: r["p99_over_median"])
    for run in _first_of_each(runs, "sessions"):
        name = "_".join(["sessions", str(SESSIONS), *_unless_2b4t(run["shape"]), "2t"])
        match = {"measure": "sessions", "shape": run["shape"]}
        found[name] = _median(runs, match, lambda r: r["together"] / r["alone"])
    found[f"early_exit_prefill_{LONG_PREFILL}_2t"] = _median(
        runs, {"measure": "early_exit"}, lambda r: r["yoco"] / r["transformer"]
    )
    found["opening_ms"] = _median(runs, {"measure": "opening"}, lambda r: r["ms"])
    return {name: round(value, 3) for name, value in found.items() if value is not None}


def _ratio(
    runs: list[Run],
    match: Run,
    what: str,
    ours: str = YOCOBIT,
    ours_kind: str | None = None,
    peer: str = "llama.cpp",
    best: Callable[[list[float]], float] = max,
) -> float | None:
    """Return the median over rounds of our figure / the best of the peer's types."""
    rounds: dict[int, dict[str, float]] = {}
    for run in _matching(runs, match):
        is_ours = run["engine"] == ours
        if is_ours and ours_kind is not None and run["kind"] != ours_kind:
            continue
        if is_ours or run["engine"].startswith(peer):
            rounds.setdefault(run["round"], {})[run["engine"]] = run[what]
    each = [
        speeds[ours] / best(others)
        for speeds in rounds.values()
        if ours in speeds and (others := [v for n, v in speeds.items() if n != ours])
    ]
    return statistics.median(each) if each else None


def _median(runs: list[Run], match: Run, value: Callable[[Run], float]) -> float | None:
    values = [value(run) for run in _matching(runs, match)]
    return statistics.median(values) if values else None


def _matching(runs: list[Run], match: Run) -> list[Run]:
    return [run for run in runs if match.items() <= run.items()]


def _first_of_each(runs: list[Run], measure: str) -> list[Run]:
    return [run for run in runs if run["measure"] == measure and run["round"] == 0]


def _speed_contests(runs: list[Run]) -> list[Run]:
    """Return shape, weights and threads of each comparison with llama.cpp, once."""
    found: list[Run] = []
    for run in runs:
        if run["measure"] == "speed" and run["engine"] == YOCOBIT:
            match = {key: run[key] for key in ("measure", "shape", "kind", "threads")}
            if match not in found:
                found.append(match)
    return found


def _unless_2b4t(shape: str) -> list[str]:
    return [] if shape == "2b4t" else [shape]


_SHOWN = ("measure", "shape", "kind", "engine", "threads")


def versions() -> dict[str, str]:
    """Return the versions of the compared packages."""
    packages = ("yocobit", "llama-cpp-python", "gguf", "torch", "numpy")
    return {name: importlib.metadata.version(name) for name in packages}


if __name__ == "__main__":
    main()
