"""A plan as a picture: the parts of a model and its variants, next to the memory levels.

The axis is logarithmic. A part fits in a level if its bar ends left of the level's line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yocobit import pictures
from yocobit.costs.work import EMBEDDING, HEAD, KV_CACHE, RECURRENT_STATE, WEIGHTS
from yocobit.errors import UserError
from yocobit.planning.plan import Plan, PlannedStack
from yocobit.planning.report import number, size

_COLORS = {
    WEIGHTS: pictures.BLUE,
    HEAD: pictures.SKY,
    EMBEDDING: "#9FCBEA",
    KV_CACHE: pictures.ORANGE,
    RECURRENT_STATE: "#E8A33D",
}
_WEIGHTS, _CACHES = pictures.BLUE, pictures.ORANGE
_LINE, _BANDS = "#6B7280", ("#EEF2F7", "#F7F9FC", "#FFFFFF")
_STYLE = {
    "axes.spines.left": False,
    "axes.grid": False,
    "axes.titlecolor": "black",
    "ytick.color": "#222222",
    "ytick.labelsize": 9,
}


def draw_plan(plan: Plan, out: Path) -> None:
    """Draw a plan to the file `out`, whose suffix is the format; UserError if writing fails."""
    parts = [part for part in plan.own.work.parts if part.n_bytes]
    heights = [len(parts) + 0.6, len(plan.rows) + 0.6]
    with pictures.style(_STYLE):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 1.7 + 0.42 * sum(heights)), dpi=130)
        upper, lower = figure.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": heights, "hspace": 0.28}
        )
        low, high = _draw_levels((upper, lower), plan)
        _draw_parts(upper, plan, low)
        _draw_stacks(lower, plan, low)
        upper.set(xscale="log", xlim=(low, high))
        _label_bytes(lower, low, high)
        figure.subplots_adjust(left=0.19, right=0.97, top=1 - 0.95 / figure.get_figheight())
        figure.subplots_adjust(bottom=0.62 / figure.get_figheight())
        _write_title(figure, plan)
        try:
            pictures.save(figure, out)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"--picture: {out}: cannot be written ({reason}); choose another file"
            ) from None


def _write_title(figure: Any, plan: Plan) -> None:
    work, top = plan.own.work, figure.get_figheight()
    sessions = f" x {work.batch} sessions" if work.batch > 1 else ""
    source = "measured" if plan.machine.is_measured else "from its data sheet"
    title = f"{plan.name}, {work.context:,} tokens{sessions}, cache {work.cache}"
    if work.config.attention not in (None, "full"):
        title += f", attention {work.config.attention}"
    figure.text(0.02, 1 - 0.2 / top, title, va="top", fontsize=11, weight="bold")
    figure.text(
        0.02, 1 - 0.42 / top, f"{plan.machine.title}, {source}", va="top", color=pictures.TEXT
    )


def _draw_levels(panels: tuple[Any, Any], plan: Plan) -> tuple[float, float]:
    """Draw a line at the size of each level; return the limits of the axis in bytes."""
    chips = plan.own.bound.chips
    # Floats, as sizes may exceed matplotlib's integers.
    ends = [(float(level.n_bytes), level.name, level.bytes_per_s) for level in plan.machine.levels]
    if chips > 1 and not plan.machine.is_measured:
        home = plan.machine.home
        ends.append((float(chips * home.n_bytes), f"on {chips:,} chips", None))
    largest = max(max(row.work.n_bytes for row in plan.rows), ends[-1][0])
    smallest = min(part.n_bytes for part in plan.own.work.parts if part.n_bytes)
    low, high = min(smallest, ends[0][0]) / 4, 6.0 * largest
    start = low
    for i, (end, name, rate) in enumerate(ends):
        for panel in panels:
            panel.axvspan(start, end, color=_BANDS[min(i, len(_BANDS) - 1)], zorder=0, lw=0)
            panel.axvline(end, color=_LINE, lw=1, ls=(0, (4, 2)), zorder=1)
        per_s = f"\n{number(rate / 1e9)} GB/s" if rate else ""
        panels[0].annotate(
            f"{name} {size(end)}{per_s}", (end, 1), xycoords=("data", "axes fraction"),
            xytext=(-3, 2), textcoords="offset points", ha="right", va="bottom", fontsize=7.5,
            color=_LINE,
        )  # fmt: skip
        start = end
    return low, high


def _draw_parts(panel: Any, plan: Plan, low: float) -> None:
    parts = [part for part in plan.own.work.parts if part.n_bytes]
    unit = "step" if plan.own.work.batch > 1 else "token"
    for i, part in enumerate(parts):
        panel.barh(
            i, float(part.n_bytes) - low, left=low, height=0.62, color=_COLORS[part.name], zorder=2
        )
        traffic = f", traffic {size(part.traffic_bytes)} per {unit}"
        _annotate(panel, float(part.n_bytes), i, size(part.n_bytes) + traffic)
    panel.set_yticks(range(len(parts)), [part.name for part in parts])
    panel.invert_yaxis()


def _draw_stacks(panel: Any, plan: Plan, low: float) -> None:
    for i, row in enumerate(plan.rows):
        halves = _halves(row)
        for at, (n_bytes, color) in enumerate(zip(halves, (_WEIGHTS, _CACHES), strict=True)):
            y = i + (at - 0.5) * 0.34
            panel.barh(y, max(n_bytes - low, 0), left=low, height=0.3, color=color, zorder=2)
        needs_more = row.bound.chips > 1 and not plan.machine.is_measured
        chips = f", {row.bound.chips:,} chips" if needs_more else ""
        _annotate(panel, max(halves), i, f"{size(row.work.n_bytes)}{chips}")
    names = ["this model" if row is plan.own else row.name for row in plan.rows]
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    for word, color, at in (("weights", _WEIGHTS, 0), ("and caches", _CACHES, 46)):
        panel.annotate(
            word, (0, 1), xycoords="axes fraction", xytext=(at, 4), textcoords="offset points",
            color=color, weight="bold",
        )  # fmt: skip


def _halves(row: PlannedStack) -> tuple[float, float]:
    """Return the bytes of the weights, and of caches and states."""
    return float(row.work.weight_bytes), float(row.work.cache_bytes + row.work.state_bytes)


def _annotate(panel: Any, x: float, y: float, text: str) -> None:
    panel.annotate(
        text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8,
        color="#222222", zorder=3,
        bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
    )  # fmt: skip


def _label_bytes(panel: Any, low: float, high: float) -> None:
    ticks = [10.0**n for n in range(3, 25) if low <= 10.0**n <= high]
    panel.set_xticks(ticks, [size(tick) for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel("bytes, logarithmic", fontsize=8)
