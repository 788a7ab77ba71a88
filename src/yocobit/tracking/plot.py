"""`yocobit plot`: the curves of runs on common axes, as PNG, SVG or PDF, or their values as CSV.

Runs that differ in their seed only are one curve, the mean, with a band from minimum to maximum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yocobit import pictures
from yocobit.config import ConfigError
from yocobit.disk import claim_file, replacing
from yocobit.tracking.curves import (
    CSV_START,
    Axis,
    Group,
    RunCurves,
    Values,
    ceiling,
    grouped,
    mean_and_range,
    read_runs,
    to_csv,
    unit,
)

RUN_COLORS = (pictures.BLUE, pictures.ORANGE, pictures.GREEN, "#B05A8F", "#C98A00", pictures.SKY,
              "#5A5A5A")  # fmt: skip
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # one for each cycle of colours
_LAYER_RAMP = ("#5A6FD6", "#2A9D8F", "#C68A12")  # first to last layer
_WIDTH, _TOP_HEIGHT, _ROW_HEIGHT = 9.0, 5.0, 1.9  # inches
_FORMATS = (".png", ".svg", ".pdf", ".csv")
_Label = tuple[float, str, str]  # value, text, colour
_LABEL_HEIGHT = 0.165  # inches


def plot_runs(
    run_dirs: Sequence[Path],
    out: Path,
    axis: Axis = "step",
    baselines: Mapping[str, float] | None = None,
) -> None:
    """Plot RUN/metrics.jsonl of each run to `out`, in the format of its suffix.

    A .csv file has the values of all steps instead, and needs no matplotlib. `baselines` are named
    bits per byte of other programs on the validation text.
    """
    if out.suffix not in _FORMATS:
        raise ConfigError(
            f"{out}: a plot must end in {', '.join(_FORMATS)}; write a PNG by --out runs.png, or "
            "explore the curves in TensorBoard (yocobit train --tensorboard)"
        )
    if out.suffix == ".csv":
        return _write_csv(read_runs(run_dirs), out)
    pictures.claim_picture(out)
    groups = grouped(read_runs(run_dirs))
    firsts = [group.runs[0] for group in groups]
    counted = {i: run for i, run in enumerate(firsts) if run.layer_shares(axis)[1]}
    heights = [_TOP_HEIGHT, *[_ROW_HEIGHT] * len(counted)]
    with pictures.style():
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.08)
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout=layout)
        parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
        top, *rows = parts.flat
        labels = _draw_curves(top, groups, axis, baselines or {})
        for row, (i, run) in zip(rows, counted.items(), strict=True):
            color = RUN_COLORS[i % len(RUN_COLORS)]
            labels |= _draw_shares(row, run, axis, _unit(groups, axis), color)
        figure.draw_without_rendering()  # computes the heights of axes
        for axes, ends in labels.items():
            _label_ends(axes, ends)
        pictures.save(figure, out, dpi=150)


def _write_csv(runs: Sequence[RunCurves], out: Path) -> None:
    claim_file(out, lambda content: content.startswith(CSV_START), "a CSV file of curves")
    with replacing(out) as partial:
        partial.write_text(to_csv(runs), encoding="utf-8")


def _unit(groups: Sequence[Group], axis: Axis) -> tuple[float, str]:
    return unit([run for group in groups for run in group.runs], axis)


def _layer_colors(n_layers: int) -> list[str]:
    """Return one colour per layer, first to last."""
    ramp = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in _LAYER_RAMP])
    at = np.linspace(0, len(ramp) - 1, max(n_layers, 2))[:n_layers]
    channels = [np.interp(at, range(len(ramp)), ramp[:, i]).round().astype(int) for i in range(3)]
    return ["#" + "".join(f"{c:02X}" for c in color) for color in zip(*channels, strict=True)]


def _draw_curves(
    figure: Any, groups: Sequence[Group], axis: Axis, baselines: Mapping[str, float]
) -> dict[Any, list[_Label]]:
    """Draw loss, bits per byte, learning rate and gradient norm; return the labels of lines."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    (loss, bits), (rate, norm) = figure.subplots(2, 2, sharex=True)
    divisor, label = _unit(groups, axis)
    labels: dict[Any, list[_Label]] = {loss: [], bits: []}
    ceilings: dict[Any, list[float]] = {loss: [], bits: list(baselines.values())}
    for i, group in enumerate(groups):
        color = RUN_COLORS[i % len(RUN_COLORS)]
        style = {"color": color, "linestyle": _DASHES[i // len(RUN_COLORS) % len(_DASHES)]}
        faint = {"color": color, "alpha": 0.25, "linewidth": 0.5}
        for axes, key in ((loss, "loss"), (norm, "grad_norm")):
            smoothed = [(run.values(axis) / divisor, run.smoothed(key)) for run in group.runs]
            for run, (x, _) in zip(group.runs, smoothed, strict=True):
                axes.plot(x, run.values(key), **faint)
            _draw_mean(axes, smoothed, style)
            if axes is loss:
                ceilings[loss] += [ceiling(x, values) for x, values in smoothed]
        run = group.runs[0]
        _draw_mean(rate, [(run.values(axis) / divisor, run.values("lr"))], style)
        measured = [run.measured("valid_bits_per_byte", axis) for run in group.runs]
        ends = _draw_mean(bits, [(at / divisor, y) for at, y in measured], style | {"marker": "o"})
        if len(ends):
            ceilings[bits] += [float(values.max()) for _, values in measured]
            labels[bits].append((ends[-1], f"{group.name} {ends[-1]:.3f}", color))
        else:
            labels[loss].append((run.smoothed("loss")[-1], group.name, color))
    for name, value in baselines.items():
        bits.axhline(value, color="#8A8A8A", linestyle=(0, (4, 3)), linewidth=0.8)
        labels[bits].append((value, f"{name} {value:.3f}", "#6A6A6A"))
    norm.set_yscale("log")
    norm.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    norm.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    norm.yaxis.set_minor_locator(NullLocator())
    rate.set_ylim(bottom=0)
    for axes in (loss, bits):
        _limit_to(axes, ceilings[axes])
    for axes, title in (
        (loss, "Training loss, nats per token"),
        (bits, "Validation text, bits per byte"),
        (rate, "Learning rate"),
        (norm, "Gradient norm"),
    ):
        axes.set_title(title)
    for axes in (rate, norm):
        axes.set_xlabel(label)
    return labels


def _draw_mean(
    axes: Any, curves: Sequence[tuple[Values, Values]], style: Mapping[str, Any]
) -> Values:
    """Draw one curve, gaps included, or the mean and the range of several; return the values."""
    is_point = max(len(x) for x, _ in curves) == 1  # a line would not be visible
    style = {"markersize": 6 if is_point else 3, **style, **({"marker": "o"} if is_point else {})}
    if len(curves) == 1:
        axes.plot(*curves[0], **style)
        return curves[0][1]
    for curve in curves:
        axes.plot(*curve, color=style["color"], alpha=0.25, linewidth=0.5)
    x, mean, low, high = mean_and_range(curves)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
    axes.plot(x, mean, **style)
    return mean


def _draw_shares(
    figure: Any, run: RunCurves, axis: Axis, scale: tuple[float, str], color: str
) -> dict[Any, list[_Label]]:
    """Draw the shares of -1, 0 and +1 in each layer's weights, one panel per value."""
    x, layers = run.layer_shares(axis)
    panels = figure.subplots(1, 3, sharey=True)
    colors = _layer_colors(len(layers))
    for i, (axes, value) in enumerate(zip(panels, ("\u22121", "0", "+1"), strict=True)):
        for values, layer_color in zip(layers.values(), colors, strict=True):
            axes.plot(x / scale[0], 100 * values[:, i], color=layer_color, linewidth=1.2,
                      marker="o" if len(x) == 1 else None, markersize=3)  # fmt: skip
        axes.set_title(f"% of weights at {value}")
        axes.set_xlabel(scale[1])
    figure.suptitle(run.name, x=0.008, ha="left", fontsize=9.5, weight="bold", color=color)
    ends = zip(layers, layers.values(), colors, strict=True)
    return {panels[-1]: [(100 * values[-1, 2], name, color) for name, values, color in ends]}


def _label_ends(axes: Any, labels: list[_Label]) -> None:
    """Write labels to the right of their values, moved apart to avoid overlap."""
    low, high = axes.get_ylim()
    labels = sorted(label for label in labels if np.isfinite(label[0]))
    at = [float(np.clip((value - low) / (high - low), 0, 1)) for value, _, _ in labels]
    gap = _LABEL_HEIGHT / (axes.get_window_extent().height / axes.figure.dpi)
    for y, (_, text, color) in zip(_spread(at, gap), labels, strict=True):
        axes.annotate(text, (1, y), (5, 0), xycoords="axes fraction", color=color, fontsize=8,
                      textcoords="offset points", va="center", annotation_clip=False)  # fmt: skip


def _spread(at: Sequence[float], gap: float) -> list[float]:
    """Move sorted positions as little as possible to have `gap` between neighbours."""
    clusters: list[tuple[float, int]] = []  # position of the first member, number of members
    for position in at:
        first, n = position, 1
        while clusters and clusters[-1][0] + gap * clusters[-1][1] > first:
            before, n_before = clusters.pop()
            first = (before * n_before + (first - gap * n_before) * n) / (n_before + n)
            n += n_before
        clusters.append((first, n))
    return [first + gap * i for first, n in clusters for i in range(n)]


def _limit_to(axes: Any, ceilings: Sequence[float]) -> None:
    """Limit the vertical axis to the smallest value and the largest of `ceilings`."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    low = np.min(values, initial=np.inf, where=np.isfinite(values))
    high = max((value for value in ceilings if np.isfinite(value)), default=-np.inf)
    if high > low:
        margin = 0.05 * (high - low)
        axes.set_ylim(low - margin, high + margin)
