"""Curves of runs as one HTML page that needs nothing but itself: page.html, page.js and numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yocobit.disk import replacing
from yocobit.tracking.curves import AXES, Axis, Run, Values, ceiling, unit
from yocobit.tracking.picture import RUN_COLORS, layer_colors

# RUN_COLORS, lighter where they are to stand on black.
_DARK = ("#4DA3E0", "#F0803C", "#2DBE93", "#DE8FC4", "#F0B429", "#9AD3F5", "#B8B8B8")
_PARTS = ("page.html", "page.js")
_BUCKETS = 500  # parts of a run that keep their extremes; more could not be seen


def write_page(runs: Sequence[Run], out: Path, axis: Axis) -> None:
    """Write the curves of runs into `out`, drawn over `axis` until the reader chooses another."""
    units = {name: unit(runs, name) for name in AXES}
    data = {
        "runs": [_run(run) for run in runs],
        "axes": {name: {"divisor": d, "label": label} for name, (d, label) in units.items()},
        "start": axis,
        "colors": {"light": RUN_COLORS, "dark": _DARK},
    }
    page, script = (Path(__file__).with_name(name).read_text("utf-8") for name in _PARTS)
    # A name such as </script> must not end the element that holds it.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    head, rest = page.split("DATA")
    middle, end = rest.split("SCRIPT")
    with replacing(out) as partial:
        partial.write_text(head + text + middle + script + end, encoding="utf-8")


def _run(run: Run) -> dict[str, Any]:
    loss, norm = run.values("loss"), run.values("grad_norm")
    smoothed = run.smoothed("loss")
    kept = _extremes(loss, norm)
    _, layers = run.layer_shares("step")
    bits_at, bits = run.measured("valid_bits_per_byte", "step")
    steps = run.values("step")
    return {
        "name": run.name,
        "last": {axis: _plain(run.values(axis)[-1:])[0] or 0 for axis in AXES},
        "loss": _plain(smoothed[-1:])[0],
        "bits": _plain(bits[-1:])[0] if len(bits) else None,
        "loss_ceiling": _plain(np.array([ceiling(steps, smoothed)]))[0],
        "bits_ceiling": _plain(np.array([ceiling(bits_at, bits)]))[0] if len(bits) else None,
        "steps": {
            **{axis: _plain(run.values(axis)[kept]) for axis in AXES},
            "loss": _plain(loss[kept]),
            "smoothed_loss": _plain(smoothed[kept]),
            "lr": _plain(run.values("lr")[kept]),
            "grad_norm": _plain(norm[kept]),
            "smoothed_norm": _plain(run.smoothed("grad_norm")[kept]),
        },
        "evaluations": {
            **{axis: _plain(run.measured("valid_bits_per_byte", axis)[0]) for axis in AXES},
            "bits": _plain(bits),
        },
        "counted": {axis: _plain(run.layer_shares(axis)[0]) for axis in AXES},
        "layers": [
            {"name": name, "color": color, "shares": [_plain(row) for row in values]}
            for (name, values), color in zip(layers.items(), layer_colors(len(layers)), strict=True)
        ],
    }


def _extremes(*curves: Values) -> list[int]:
    """Return the indices of a run's first and last value and of each bucket's extremes."""
    n = len(curves[0])
    if n <= 4 * _BUCKETS:
        return list(range(n))
    kept = {0, n - 1}
    for bucket in np.array_split(np.arange(n), _BUCKETS):
        for curve in curves:
            values = curve[bucket]
            if not np.isnan(values).all():
                kept |= {int(bucket[np.nanargmin(values)]), int(bucket[np.nanargmax(values)])}
    return sorted(kept)


def _plain(values: Values) -> list[float | None]:
    """Return numbers with the digits that can be seen; null for what is absent."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
