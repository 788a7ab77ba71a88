"""Fuzzing: mutated files and requests end in a result or one line, in time and in little memory.

    python tests/fuzz --seconds 600 --seed 1        # all kinds, an equal share of the time each
    python tests/fuzz --kind tokenizer --case 17    # one case again; keeps its files

A failing case is printed with the command that runs it again. Exit code 1 if any failed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
FUZZ = Path(__file__).resolve().parent
ROOT = FUZZ.parents[1]
sys.path[:0] = [str(FUZZ), str(FUZZ.parent)]

import files  # noqa: E402
import native_build  # noqa: E402, F401
import sandbox  # noqa: E402

CASE_SECONDS = 60 if sandbox.IS_SANITIZED else 30
# Modules with run(seconds, seed), which returns the number of failures; each in a process.
MODULES = ("models", "low_bits", "texts", "endpoints")
_RUN = "import sys, native_build, {0}; sys.exit({0}.run({1}, {2}) != 0)"


def main() -> int:
    """Run the cases; return the exit code."""
    parser = argparse.ArgumentParser(prog="tests/fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0, help="the first case of each kind")
    parser.add_argument("--kind", choices=(*files.KINDS, *MODULES), action="append")
    parser.add_argument("--case", type=int, help="run only this case")
    parser.add_argument("--out", type=Path, default=ROOT / "build/fuzz")
    arguments = parser.parse_args()
    kinds = arguments.kind or [*files.KINDS, *(name for name in MODULES if _exists(name))]
    with tempfile.TemporaryDirectory(prefix="yocobit-fuzz-") as scratch:
        samples = Path(scratch) / "samples"
        command = [sys.executable, str(FUZZ / "samples.py"), str(samples)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        _import()
        if arguments.case is not None:
            place = arguments.out / f"{kinds[0]}-{arguments.case}"
            problem = _case(kinds[0], arguments.case, samples, place)
            print(problem or "ok", f"(files in {place})", sep="\n")
            return problem is not None
        share = arguments.seconds / len(kinds)
        n_failures = sum(_kind(kind, share, arguments, samples, Path(scratch)) for kind in kinds)
    print(f"{n_failures} failures")
    return n_failures > 0


def _kind(
    kind: str, seconds: float, arguments: argparse.Namespace, samples: Path, scratch: Path
) -> int:
    """Run the cases of a kind for some time; return the number of failures."""
    if kind in MODULES:
        code = _RUN.format(kind, seconds, arguments.seed)
        environment = {**os.environ, "PYTHONPATH": f"{FUZZ}:{FUZZ.parent}:{FUZZ.parent}/importers"}
        return subprocess.run([sys.executable, "-c", code], env=environment).returncode != 0
    end, number = time.monotonic() + seconds, arguments.seed
    problems: Counter[str] = Counter()
    while time.monotonic() < end:
        place = scratch / "case"
        problem = _case(kind, number, samples, place)
        if problem is not None:
            problems[problem] += 1
            if problems[problem] == 1:
                kept = arguments.out / f"{kind}-{number}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(place, kept, symlinks=True)
                print(f"FAILED {kind}: {problem}")
                print(f"    python tests/fuzz --kind {kind} --case {number}", flush=True)
        number += 1
    n_cases = number - arguments.seed
    print(f"{kind}: {n_cases} cases, {sum(problems.values())} failures", flush=True)
    return sum(problems.values())


def _case(kind: str, number: int, samples: Path, place: Path) -> str | None:
    """Run a case; return what is wrong, or None. Its files and streams are left in `place`."""
    shutil.rmtree(place, ignore_errors=True)
    directory = place / "files"
    directory.mkdir(parents=True)
    rng = random.Random(f"{kind} {number}")
    return sandbox.judge(files.KINDS[kind](rng, samples, directory), directory, CASE_SECONDS)


def _import() -> None:
    """Import what the cases need, once for all children; nothing here starts threads."""
    import yocobit.cli
    import yocobit.evaluation
    import yocobit.serving
    import yocobit.text.chat_template
    import yocobit.training  # noqa: F401


def _exists(module: str) -> bool:
    return (FUZZ / f"{module}.py").exists()


if __name__ == "__main__":
    sys.exit(main())
