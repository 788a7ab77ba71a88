"""Plans: a model and its variants on a machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

from yocobit import _native
from yocobit.benchmark.shapes import named_shape
from yocobit.costs.work import Work, shape_only_model, work_of
from yocobit.engine.session import CacheType
from yocobit.errors import UserError
from yocobit.hardware.datasheets import HERE, Level, Machine, named_machine
from yocobit.hardware.host import default_threads, describe_host, usable_cpus
from yocobit.hardware.load import read_cpu_times
from yocobit.packing import PackedModel, read_model
from yocobit.packing.formats import TERNARY, projection_format
from yocobit.planning.calibration import HostCalibration
from yocobit.planning.prediction import Prediction, predict
from yocobit.planning.roofline import Bound, bound
from yocobit.planning.variants import variants

# int8 multiply-adds of an instruction in native/kernels/*/probes.h per float32 multiply-add of an
# FMA instruction of the same throughput; the vpaddw after vpmaddubsw runs on other ports.
# AMX: a tile operation is 16 x 16 x 64 multiply-adds in 16 cycles, 1,024 per cycle; two 512-bit FMA
# instructions are 32 per cycle.
INT8_PER_FLOAT = {
    "AMX tdpbsud": 32,
    "AVX-512 vpdpbusd": 4,
    "AVX-VNNI vpdpbusd": 4,
    "AVX2 vpmaddubsw + vpaddw": 2,
    "NEON sdot": 4,
    "NEON smmla": 8,
    "compiled loop": 1,
}
_MOST_TOKENS, _MOST_SESSIONS, _MOST_THREADS = 1 << 32, 1 << 16, 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The parameters of a plan; validated on construction."""

    context: int  # tokens of each session
    batch: int  # sessions
    cache: CacheType
    machine: str
    threads: int | None = None  # of `here`; one per CPU by default
    kernels: str | None = None  # of `here`; the fastest family by default

    def __post_init__(self) -> None:
        for option, value, most in (
            ("--context", self.context, _MOST_TOKENS),
            ("--batch", self.batch, _MOST_SESSIONS),
            ("--threads", 1 if self.threads is None else self.threads, _MOST_THREADS),
        ):
            if not 1 <= value <= most:
                raise UserError(f"{option} must be between 1 and {most} but is {value}")
        if self.cache not in get_args(CacheType):
            known = ", ".join(get_args(CacheType))
            raise UserError(f"--cache must be one of {known} but is {self.cache!r}")
        if self.machine == HERE:
            supported = _native.supported_kernels()
            if self.kernels is not None and self.kernels not in supported:
                raise UserError(
                    f"--kernels must be one of {', '.join(supported)} but is {self.kernels!r}"
                )
            return
        named_machine(self.machine)
        for option in ("threads", "kernels"):
            if getattr(self, option) is not None:
                raise UserError(
                    f"--{option} requires --machine {HERE}, which is measured, but --machine is "
                    f"{self.machine!r}; leave it out"
                )


@dataclasses.dataclass(frozen=True)
class PlannedStack:
    """A model or variant with its work and roofline on a machine."""

    name: str
    weights: str
    work: Work
    bound: Bound

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        work = self.work
        return {
            "name": self.name,
            "weights": self.weights,
            "cache": work.cache,
            "weight_bytes": work.weight_bytes,
            "cache_bytes_per_token": work.cache_bytes_per_token,
            "cache_bytes": work.cache_bytes,
            "state_bytes": work.state_bytes,
            "total_bytes": work.n_bytes,
            "traffic_bytes_per_step": work.traffic_bytes,
            "prefill_multiply_adds": work.prefill.multiply_adds,
            **self.bound.to_dict(),
        }


@dataclasses.dataclass(frozen=True)
class Plan:
    """A model and its variants on a machine, with a prediction if the machine is this host."""

    name: str
    machine: Machine
    own: PlannedStack
    others: tuple[PlannedStack, ...]
    prediction: Prediction | None
    kernels: str | None = None  # kernel family of the calibration; None for a data sheet
    others_share: float | None = None  # of the CPUs, used by other programs; None if unknown

    @property
    def rows(self) -> tuple[PlannedStack, ...]:
        """The variants, then the model."""
        return (*self.others, self.own)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        work = self.own.work
        places = [
            {
                **dataclasses.asdict(place.part),
                "reuse_distance": place.reuse_distance,
                "level": place.level.name,
                "read_from": place.read_from.name,
            }
            for place in self.own.bound.places
        ]
        return {
            "model": {
                "name": self.name,
                "config": work.config.to_dict(),
                "attention": work.config.attention,
            },
            "context": work.context,
            "batch": work.batch,
            "machine": self.machine.to_dict(),
            "kernels": self.kernels,
            "supported_kernels": _native.supported_kernels() if self.kernels else None,
            "other_programs_share": self.others_share,
            "parts": places,
            "stacks": [row.to_dict() for row in self.rows],
            "prediction": self.prediction and self.prediction.to_dict(),
        }


def open_shape(
    path: Path | None,
    shape: str | None,
    weights: str | None,
    head: str | None,
    attention: str | None = None,
) -> tuple[str, PackedModel]:
    """Return a name and the packed model in `path`, or the shape-only model of a named shape.

    `weights` and `head` are the formats of the shape-only model, as in `yocobit pack`, by default
    "ternary" and "int8". `attention` is as in Engine.load.
    """
    if path is not None:
        return str(path), read_model(path).attending(attention)
    weights = weights or TERNARY.name
    config = named_shape(shape or "").replace(weights=projection_format(weights).weights)
    model = shape_only_model(config, weights, head)
    return f"{shape} with {weights} weights", model.attending(attention)


def make_plan(name: str, model: PackedModel, request: PlanRequest) -> Plan:
    """Compute a plan; on this host, calibrate and predict too."""
    is_here = request.machine == HERE
    cpus = usable_cpus()
    started = read_cpu_times(cpus) if is_here else None
    calibration = calibrate(request) if is_here else None
    machine = measured_machine(calibration) if calibration else named_machine(request.machine)
    head = model.head_format.name if model.head_format.is_integer else None
    others = tuple(
        _row(each.name, each.model, each.cache, request, machine)
        for each in variants(model.config, head)
    )
    own = _row(name, model, request.cache, request, machine)
    prediction = None
    if calibration and own.bound.chips == 1:
        prediction = predict(model, own.work, calibration, calibration.kernels)
    return Plan(
        name,
        machine,
        own,
        others,
        prediction,
        calibration.kernels if calibration else None,
        started and started.others_share(read_cpu_times(cpus)),
    )


def calibrate(request: PlanRequest) -> HostCalibration:
    """Return a calibration of this host with the threads and kernels of the request."""
    cpus = usable_cpus()
    kernels = request.kernels or _native.supported_kernels()[-1]
    return HostCalibration(request.threads or default_threads(), kernels, cpus, describe_host())


def measured_machine(calibration: HostCalibration) -> Machine:
    """Measure the memory levels and arithmetic rates of this host."""
    limits, here = calibration.limits(), calibration.here
    caches, source = here.caches, "measured"
    last = f"L{caches.last_level}"
    levels = [
        Level("L2", calibration.threads * caches.l2_bytes, calibration.l2_bytes_per_s(), source),
        Level(last, caches.last_bytes, limits.last_level_bytes_per_s, source),
        Level("DRAM", here.memory_bytes or 1 << 62, limits.dram_bytes_per_s, source),
    ]
    return Machine(
        name=HERE,
        title=f"{here.cpu}, {calibration.threads} thread{'s' * (calibration.threads > 1)}",
        levels=tuple(levels if caches.last_level > 2 else levels[1:]),
        int8_per_s=limits.int8_per_s,
        float_per_s=max(
            rate / INT8_PER_FLOAT[name] for name, rate in limits.multiply_adds_per_s.items()
        ),
        rates_source=f"measured: {limits.instruction}; floats by the ratio of their lanes to int8",
    )


def _row(
    name: str, model: PackedModel, cache: str, request: PlanRequest, machine: Machine
) -> PlannedStack:
    work = work_of(model, cache, request.context, request.batch)
    return PlannedStack(name, model.projection_format.name, work, bound(work, machine))
