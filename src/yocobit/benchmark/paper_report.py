"""The paper's figure as a table and as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from yocobit import pictures
from yocobit.benchmark.paper import Curve, PaperReport

_COLORS = ("#8A8A8A", pictures.BLUE, pictures.ORANGE)
_PAPER_MEMORY, _PAPER_PREFILL = (1 << 20, 9.4), (1 << 19, 30.3)  # lengths and ratios, on a GPU


def print_paper(report: PaperReport, console: Console) -> None:
    """Print a line for each length; what did not fit into memory has no times."""
    machine = report.machine
    first, yoco, index = report.curves
    lines = [
        f"shape       {report.shape}, {len(yoco.config.layers)} layers, cache {report.cache}",
        f"cpu         {machine.cpu}, {_threads(report)}, kernels {report.kernels}",
        f"tests       {report.repetitions} round{'s; medians' * (report.repetitions > 1)}",
    ]
    console.print(Text("\n".join(lines)), highlight=False)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    headings = ["tokens", "memory", "YOCO", "less", "prefill", "YOCO", "faster"]
    headings += ["tokens/s", "YOCO", "faster", "index"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for length in report.lengths:
        memory = first.memory_bytes(length), yoco.memory_bytes(length)
        prefill = first.prefill_s(length), yoco.prefill_s(length)
        rates = first.tokens_per_s(length), yoco.tokens_per_s(length)
        table.add_row(
            size(length),
            *map(gigabytes, memory),
            _ratio(*memory),
            *map(duration, prefill),
            _ratio(*prefill),
            *map(rate, rates),
            _ratio(*reversed(rates)),
            rate(index.tokens_per_s(length)),
        )
    console.width = max(console.width, 110)
    console.print()
    console.print(table, highlight=False)
    console.print()
    console.print(Text("\n".join(_against_paper(report))), highlight=False)


def write_paper_picture(report: PaperReport, out: Path) -> None:
    """Draw the three figures side by side; UserError if there is no matplotlib."""
    panels: list[tuple[str, Callable[[Curve, int], float | None]]] = [
        ("memory, GB", lambda curve, n: curve.memory_bytes(n) / 1e9),
        ("prefill, seconds", lambda curve, n: curve.prefill_s(n)),
        ("decoding, tokens/s", lambda curve, n: curve.tokens_per_s(n)),
    ]
    with pictures.style({"axes.grid.axis": "both"}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.4), layout="constrained")
        for axes, (title, value) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for curve, color in zip(report.curves, _COLORS, strict=True):
                points = [(n, value(curve, n)) for n in report.lengths]
                known = [(n, y) for n, y in points if y is not None]
                style = {"color": color, "marker": "o", "ms": 3, "label": curve.name}
                axes.plot(*zip(*known, strict=True), **style)
            # Where nothing fits into memory there is nothing that a logarithm could be taken of.
            scale = "log" if axes.lines else "linear"
            axes.set(title=title, xscale=scale, yscale=scale)
            axes.set_xticks(report.lengths, [size(n) for n in report.lengths])
            axes.minorticks_off()
            axes.tick_params(axis="x", rotation=45)
        figure.axes[0].legend(frameon=False, fontsize=8)
        where = f"{_threads(report)} of {report.machine.cpu}"
        title = f"{report.shape}, {report.cache} cache, {where}"
        figure.suptitle(title, fontsize=9, x=0.01, ha="left")
        pictures.save(figure, out, dpi=150)


def _threads(report: PaperReport) -> str:
    return f"{report.threads} thread{'s' * (report.threads > 1)}"


def _against_paper(report: PaperReport) -> list[str]:
    """Say how the ratios compare with the paper's, where there are both."""
    first, yoco, _ = report.curves
    lines = []
    length, ratio = _PAPER_MEMORY
    if length in report.lengths:
        less = first.memory_bytes(length) / yoco.memory_bytes(length)
        lines.append(f"memory at {size(length)}: {less:.1f} times less; the paper has {ratio}")
    length, ratio = _PAPER_PREFILL
    slow, fast = first.prefill_s(length), yoco.prefill_s(length)
    if slow and fast:
        faster = f"{slow / fast:.0f} times faster"
        lines.append(f"prefill at {size(length)}: {faster}; the paper has {ratio}")
    return lines


def _ratio(a: float | None, b: float | None) -> str:
    return "" if a is None or b is None else f"{a / b:.1f}x"


def size(length: int) -> str:
    """Write a number of tokens as 64K or 1M where it is one."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if length % unit == 0:
            return f"{length // unit}{name}"
    return f"{length}"


def gigabytes(n_bytes: float | None) -> str:
    return "" if n_bytes is None else f"{n_bytes / 1e9:.2f} GB"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def rate(tokens_per_s: float | None) -> str:
    return "" if tokens_per_s is None else f"{tokens_per_s:.3g}"
