"""Curves of runs, read from RUN/metrics.jsonl and plotted by yocobit.tracking.plot.

Values that are missing, not finite or beyond float32 are NaN: a gap in a curve.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from yocobit.errors import ConfigError
from yocobit.packing.checkpoints import MANIFEST
from yocobit.reading import boundary, read_bytes, read_json
from yocobit.settings import Natural, NotNegative

Axis = Literal["step", "tokens", "seconds"]
Values = np.ndarray[Any, np.dtype[np.float64]]

METRICS = "metrics.jsonl"
# Columns of a CSV file, after the name of the run.
_COLUMNS = ("step", "tokens", "seconds", "loss", "lr", "grad_norm", "valid_bits_per_byte")
CSV_START = f"run,{_COLUMNS[0]},".encode()
WEIGHT_COUNTS = "weight_counts"  # key of a record: per matrix, how many codes are -1, 0 and +1

_SMOOTHED_SHARE = 1 / 50  # the window of the smoothed loss, as a share of the run
# Losses in this first share of a run may exceed the vertical axis, which they would compress.
_INITIAL_DROP = 0.08
_UNITS: dict[Axis, tuple[tuple[float, str], ...]] = {
    "step": ((1, "step"),),
    "tokens": ((1e9, "billion tokens"), (1e6, "million tokens"), (1e3, "thousand tokens"),
               (1, "tokens")),
    "seconds": ((3600, "hours"), (60, "minutes"), (1, "seconds")),
}  # fmt: skip
_LARGEST = 1e38  # about the largest float32; axes of larger values overflow
_MAX_METRICS_BYTES = 1 << 33  # tens of millions of steps
_LAYER = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True)
class RunCurves:
    """The records of one run and its name, unique in the plot."""

    name: str
    records: list[dict[str, Any]]
    settings: str | None = None  # a key of all settings but the seed; None without a manifest

    def values(self, key: str) -> Values:
        """Return one value of each record."""
        return np.array([_number(record.get(key)) for record in self.records])

    def smoothed(self, key: str) -> Values:
        """Return one value of each record, smoothed over the preceding ones."""
        return smooth(self.values(key))

    def measured(self, key: str, axis: Axis) -> tuple[Values, Values]:
        """Return the positions on the axis where `key` was measured, and its values there."""
        x, y = self.values(axis), self.values(key)
        is_present = ~np.isnan(y)
        return x[is_present], y[is_present]

    def layer_shares(self, axis: Axis) -> tuple[Values, dict[str, Values]]:
        """Return the axis positions of weight counts, (N,), and shares (N, 3) by layer.

        The columns of shares are those of the values -1, 0 and +1; a layer that a record lacks is
        NaN there.
        """
        records = [record for record in self.records if record.get(WEIGHT_COUNTS)]
        counts = [_by_layer(record[WEIGHT_COUNTS]) for record in records]
        names = dict.fromkeys(name for each in counts for name in each)
        missing = [math.nan] * 3
        x = np.array([_number(record.get(axis)) for record in records])
        return x, {
            name: np.array([shares(each[name]) if name in each else missing for each in counts])
            for name in names
        }


def read_runs(directories: Sequence[Path]) -> list[RunCurves]:
    """Read runs; ConfigError if one has no records or is given twice."""
    names = _names(directories)
    return [
        RunCurves(name, _read(directory / METRICS), _settings(directory / MANIFEST))
        for name, directory in zip(names, directories, strict=True)
    ]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only, or a single run."""

    runs: list[RunCurves]

    @property
    def name(self) -> str:
        """The common start of the names, and the number of runs."""
        names = [run.name for run in self.runs]
        if len(names) == 1:
            return names[0]
        characters = takewhile(lambda each: len(set(each)) == 1, zip(*names, strict=False))
        common = "".join(each[0] for each in characters).rstrip("-_./ ")
        return f"{common or names[0]} ({len(names)} seeds)"


def grouped(runs: Sequence[RunCurves]) -> list[Group]:
    """Group runs with equal settings and corpora, in the order of their first runs."""
    groups: dict[object, list[RunCurves]] = {}
    for i, run in enumerate(runs):
        groups.setdefault(i if run.settings is None else run.settings, []).append(run)
    return [Group(members) for members in groups.values()]


def mean_and_range(
    curves: Sequence[tuple[Values, Values]],
) -> tuple[Values, Values, Values, Values]:
    """Return positions, mean, minimum and maximum of curves (x, y) where all of them have values.

    Positions are those of the first curve; the others are interpolated. Gaps are omitted.
    """
    curves = [(x[~np.isnan(y)], y[~np.isnan(y)]) for x, y in curves]
    if any(len(x) == 0 for x, _ in curves):
        return (np.empty(0),) * 4
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    x = curves[0][0]
    x = x[(x >= first) & (x <= last)]
    y = np.stack([np.interp(x, *curve) for curve in curves])
    return x, y.mean(axis=0), y.min(axis=0), y.max(axis=0)


def to_csv(runs: Sequence[RunCurves]) -> str:
    """Return the records of runs as CSV, one line per step; missing values are empty."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["run", *_COLUMNS])
    for run in runs:
        for record in run.records:
            writer.writerow([run.name, *(record.get(name, "") for name in _COLUMNS)])
    return content.getvalue()


def unit(runs: Sequence[RunCurves], axis: Axis) -> tuple[float, str]:
    """Return the divisor and the label of an axis, chosen for short numbers."""
    largest = max(np.nanmax(run.values(axis), initial=0.0) for run in runs)
    return next((unit for unit in _UNITS[axis] if largest >= 2 * unit[0]), _UNITS[axis][-1])


def smooth(values: Values) -> Values:
    """Return the bias-corrected exponential moving average over a fixed share of all values."""
    weight = 1 - 1 / max(1.0, len(values) * _SMOOTHED_SHARE)
    total = norm = 0.0
    smoothed = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        if math.isfinite(value):
            total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
            smoothed[i] = total / norm
    return smoothed


def ceiling(x: Values, y: Values) -> float:
    """Return the largest value after the initial drop: the upper end of the vertical axis."""
    is_late = x >= x[0] + _INITIAL_DROP * (x[-1] - x[0])
    late = y[is_late & ~np.isnan(y)]
    return float(late.max()) if len(late) else math.nan


def shares(counts: list[int]) -> list[float]:
    """Return counts as fractions of their sum."""
    total = max(1, sum(counts))
    return [count / total for count in counts]


def _by_layer(counts: dict[str, list[int]]) -> dict[str, list[int]]:
    """Sum the counts of matrices by layer, from input to output."""
    summed: dict[str, list[int]] = {}
    for name, matrix in counts.items():
        match = _LAYER.match(name)
        layer = f"layer {int(match[1]) + 1}" if match else "shared K/V"
        summed[layer] = [a + b for a, b in zip(summed.get(layer, [0, 0, 0]), matrix, strict=True)]
    return summed


def _settings(manifest: Path) -> str | None:
    """Return a key of all settings of a run except its seed; None without a manifest."""
    try:
        content = read_json(manifest)
    except FileNotFoundError:
        return None
    config, corpus = content.get("config"), content.get("corpus")
    if not isinstance(config, dict) or not isinstance(corpus, dict):
        raise ConfigError(f"{manifest}: must have objects 'config' and 'corpus'; delete the file")
    run = config.get("run")
    length = {name: run.get(name) for name in ("steps", "minutes")} if isinstance(run, dict) else {}
    context = config["data"].get("context") if isinstance(config.get("data"), dict) else None
    kept = {name: config.get(name) for name in ("model", "optim", "schedule", "distill")}
    return json.dumps([kept, length, context, corpus.get("sha256")], sort_keys=True)


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and abs(value) <= _LARGEST
    return float(value) if is_number else math.nan


def _names(directories: Sequence[Path]) -> list[str]:
    """Return the shortest suffixes of the paths that are unique."""
    paths = [directory.resolve() for directory in directories]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise ConfigError(f"{directories[i]}: given twice; give each run once")
    n_parts = 1
    while len({path.parts[-n_parts:] for path in paths}) < len(paths):
        n_parts += 1
    return ["/".join(path.parts[-n_parts:]) for path in paths]


class _Fields(msgspec.Struct):
    """The fields of a record that have rules of their own."""

    step: Natural
    seconds: NotNegative | None = None
    weight_counts: dict[str, tuple[Natural, Natural, Natural]] = {}


def read_records(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Read a metrics.jsonl up to its first damaged record; return the records and a line about it.

    An incomplete last line is not damage: a killed run may have written it.
    """
    records = []
    *lines, _ = read_bytes(path, _MAX_METRICS_BYTES).split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            with boundary(f"{path}:{number}", "is not the record of a step"):
                record = json.loads(line)  # not msgspec: earlier versions wrote NaN
                msgspec.convert(record, _Fields)
            records.append(record)
        except ConfigError as error:
            return records, str(error)
    return records, None


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        records, damage = read_records(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no such file; name the directory of a run") from None
    if damage is not None:
        raise ConfigError(f"{damage}; delete the line, or the file up to it")
    if not records:
        raise ConfigError(f"{path}: has no steps yet")
    return records
