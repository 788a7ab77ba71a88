"""Predictions of `yocobit plan` for this host, compared with `yocobit bench` in the same run.

    python benchmarks/plan.py [--shapes tiny,150m-yoco] [--contexts 512,4096] [--caches f16,int8]
        [--index 2048] [--threads 2] [--rounds 3] [--prefill 512]
        [--out benchmarks/results/plan.json]

Each round predicts and then measures every case once, so that noise of a shared machine affects
both. The ratio of a case is the median over rounds of measured / predicted time. `fastest` is the
ratio for the fastest step or prompt of all rounds: on a shared machine, the medians depend on the
load. Shapes that exceed the available memory are skipped with a message.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from yocobit import benchmark, planning
from yocobit.benchmark.measure import CaseResult
from yocobit.costs.work import work_of
from yocobit.errors import UserError
from yocobit.hardware.host import default_threads, provenance
from yocobit.packing import PackedModel
from yocobit.planning.plan import calibrate
from yocobit.planning.prediction import predict

ROOT = Path(__file__).parent.parent
AGREES = 1.25  # largest ratio, or its inverse, that counts as agreement


@dataclasses.dataclass
class Case:
    """Predicted and measured seconds of a decode step or of a prompt, by round."""

    shape: str
    kind: str
    context: int
    cache: str
    threads: int
    attention: str | None = None
    predicted: list[float] = dataclasses.field(default_factory=list)
    measured: list[float] = dataclasses.field(default_factory=list)
    fastest: list[float] = dataclasses.field(default_factory=list)

    @property
    def ratio(self) -> float:
        return statistics.median(m / p for m, p in zip(self.measured, self.predicted, strict=True))

    @property
    def fastest_ratio(self) -> float:
        return min(self.fastest) / min(self.predicted)

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self), "ratio": self.ratio, "fastest_ratio": self.fastest_ratio
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="tiny,small,150m,150m-yoco,2b4t,2b4t-yoco")
    parser.add_argument("--contexts", default="512,4096,32768")
    parser.add_argument("--caches", default="f16,int8")
    parser.add_argument("--index", type=int, default=2048, help="attended positions; 0: no index")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32, help="decode steps per case")
    parser.add_argument("--prefill", type=int, default=512, help="prompt tokens; 0: no prefill")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/plan.json")
    arguments = parser.parse_args()

    cases: list[Case] = []
    for shape in arguments.shapes.split(","):
        try:
            with benchmark.open_model(None, shape, None, None) as (_, model):
                found = cases_of(shape, model, arguments)
                for _ in range(arguments.rounds):
                    for case in found:
                        run(case, model, arguments.tokens)
        except UserError as error:
            print(f"{shape}: skipped: {error}")
            continue
        for case in found:
            show(case)
        cases += found
    agree = [1 / AGREES <= case.ratio <= AGREES for case in cases]
    print(f"{sum(agree)} of {len(agree)} within 25% of the prediction")
    report = {
        **provenance(),
        "rounds": arguments.rounds,
        "cases": [case.to_dict() for case in cases],
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def cases_of(shape: str, model: PackedModel, arguments: argparse.Namespace) -> list[Case]:
    """Return the decode cases of a shape, then its prefill case."""
    contexts = [int(context) for context in arguments.contexts.split(",")]
    caches = arguments.caches.split(",")
    decode = [
        Case(shape, "decode", context, cache, arguments.threads)
        for cache in caches
        for context in contexts
    ]
    if arguments.index and model.config.has_cross_decoder:
        decode += [
            Case(
                shape, "decode", context, caches[-1], arguments.threads, f"index:{arguments.index}"
            )
            for context in contexts
            if context > arguments.index
        ]
    prompt = [Case(shape, "prefill", arguments.prefill, caches[0], arguments.threads)]
    return decode + (prompt if arguments.prefill else [])


def run(case: Case, model: PackedModel, n_tokens: int) -> None:
    """Add one round: calibrate and predict, then measure the engine."""
    model = model.attending(case.attention)
    request = planning.PlanRequest(
        context=case.context, batch=1, cache=case.cache, machine="here", threads=case.threads
    )
    calibration = calibrate(request)
    work = work_of(model, case.cache, case.context, 1)
    prediction = predict(model, work, calibration, calibration.kernels)
    is_decode = case.kind == "decode"
    case.predicted.append(prediction.step_s if is_decode else prediction.prefill_s)
    row = measure(case, model, n_tokens)
    times = row.step_seconds if is_decode else row.seconds
    case.measured.append(statistics.median(times))
    case.fastest.append(min(times))


def measure(case: Case, model: PackedModel, n_tokens: int) -> CaseResult:
    """Return one repetition of the case by `yocobit bench`."""
    is_decode = case.kind == "decode"
    grid = benchmark.Grid.parse(
        prompts="0" if is_decode else str(case.context),
        generations=str(n_tokens) if is_decode else "0",
        depths=str(max(case.context - n_tokens // 2, 0)) if is_decode else "0",
        batches="1",
        threads=str(case.threads),
        caches=case.cache,
        kernels=None,
        repetitions=1,
        with_limits=False,
    )
    return benchmark.run(model, grid, case.shape).rows[0]


def show(case: Case) -> None:
    print(
        f"{case.shape:10} {case.kind:7} {case.context:7,} {case.cache:5} {case.attention or '':10} "
        f"{case.threads} threads: "
        f"predicted {statistics.median(case.predicted) * 1e3:9.3f} ms, "
        f"measured {statistics.median(case.measured) * 1e3:9.3f} ms: {case.ratio:5.2f}; "
        f"fastest {case.fastest_ratio:5.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
