"""A benchmark report as JSON values and as tables. docs/how-to/speed.md explains the columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from yocobit import _native
from yocobit.benchmark.measure import CaseResult, Report
from yocobit.costs import folded
from yocobit.hardware.limits import Limits, best
from yocobit.hardware.load import load_warning
from yocobit.packing.formats import is_quantized

_GB, _MB = 1e9, 1e6


def to_dict(report: Report) -> dict[str, Any]:
    """Return a report as JSON values."""
    return {
        "machine": report.machine.to_dict(),
        "kernels": report.kernels,
        "supported_kernels": _native.supported_kernels(),
        "other_programs_share": report.others_share,
        "model": {
            "name": report.name,
            "config": report.config.to_dict(),
            "attention": report.config.attention,
            "parameters": report.parameters,
            "weight_bytes_per_step": report.weight_bytes,
        },
        "repetitions": report.repetitions,
        "limits": [
            {**best(rounds).to_dict(), "rounds": [limits.to_dict() for limits in rounds]}
            for rounds in report.limits.values()
        ],
        "tests": [_row_dict(row, report) for row in report.rows],
    }


def print_report(report: Report, console: Console) -> None:
    """Print a report, the results first."""
    print_lines(console, _subject(report))
    n_varying = sum(len(values) > 1 for _, values in _settings(report))
    print_table(console, _rows_table(report), n_keys=1 + n_varying)
    if report.limits:
        print_table(console, _limits_table(report))
    console.print()
    print_lines(console, _machine(report))


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines with labels, wrapped at words on a terminal."""
    text = folded(lines, console.width if console.is_terminal else None)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def kernels_line(kernels: str) -> str:
    """Return a line with the kernel family used and those that this CPU could use."""
    return f"kernels     {kernels}; this CPU can use {', '.join(_native.supported_kernels())}"


def new_table(*headings: str) -> Table:
    """Return an empty table without borders; all columns but the first are right-aligned."""
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    return table


def print_table(console: Console, table: Table, n_keys: int = 1) -> None:
    """Print a table after a blank line; no line is cut.

    On a narrow terminal, the columns are printed in several parts, each with the first `n_keys`
    columns. Other outputs may have lines that are wider than the console.
    """
    parts = _fitting(table, n_keys, console) if console.is_terminal else [table]
    for part in parts:
        console.width = max(console.width, _width(part, console))
        console.print()
        console.print(part, highlight=False)


def _fitting(table: Table, n_keys: int, console: Console) -> list[Table]:
    """Split a table by columns into tables that fit the console, unless one column does not."""
    keys = range(n_keys)
    parts: list[list[int]] = []
    for i in range(n_keys, len(table.columns)):
        if parts and _width(_select(table, [*keys, *parts[-1], i]), console) <= console.width:
            parts[-1].append(i)
        else:
            parts.append([i])
    return [_select(table, [*keys, *part]) for part in parts]


def _select(table: Table, indices: Sequence[int]) -> Table:
    """Return a table of some columns."""
    columns = [table.columns[i] for i in indices]
    selected = new_table(*(str(column.header) for column in columns))
    for row in zip(*(column.cells for column in columns), strict=True):
        selected.add_row(*row)
    return selected


def _width(table: Table, console: Console) -> int:
    unbounded = console.options.update(max_width=1000)
    return Measurement.get(console, unbounded, table).maximum


def _row_dict(row: CaseResult, report: Report) -> dict[str, Any]:
    case = row.case
    rounds = report.limits.get(row.threads)
    limits = best(rounds) if rounds else None
    bytes_per_s = None if row.n_bytes is None else row.n_bytes / row.median_s
    multiply_adds_per_s = row.multiply_adds / row.median_s
    return {
        "test": case.name,
        "kind": case.kind,
        "n_tokens": case.n_tokens,
        "depth": case.depth,
        "batch": case.batch,
        "threads": row.threads,
        "cache": case.cache,
        "tokens_per_s": row.tokens_per_s,
        "seconds": row.seconds,
        "ms_per_token": row.ms_per_token,
        "bytes_per_token": None if row.n_bytes is None else row.n_bytes / row.n_tokens,
        "bytes_per_s": bytes_per_s,
        "roof": None if row.n_bytes is None else _roof_name(row),
        "roof_share": _share(bytes_per_s, _roof(limits, row)),
        "multiply_adds_per_token": row.multiply_adds / row.n_tokens,
        "mixer_multiply_adds_per_token": row.mixer_multiply_adds / row.n_tokens,
        "multiply_adds_per_s": multiply_adds_per_s,
        "int8_share": _share(multiply_adds_per_s, _int8_roof(limits, report)),
        "session_bytes": row.session_bytes,
        "peak_bytes": row.peak_bytes,
    }


def _subject(report: Report) -> list[str]:
    """Return lines about the model and the tests."""
    weights = f"a decode step reads {report.weight_bytes / _MB:,.1f} MB of weights"
    rounds = f"{report.repetitions} round{'s' * (report.repetitions > 1)}"
    constant = [f", {name} {values[0]}" for name, values in _settings(report) if not values[1:]]
    if report.config.attention is not None:
        constant.append(f", attention {report.config.attention}")
    return [
        *report.description,
        f"            {report.name}; {weights}",
        f"tests       {rounds}{''.join(constant)}",
    ]


def _machine(report: Report) -> list[str]:
    """Return lines about the machine and the build."""
    machine, caches = report.machine, report.machine.caches
    commit = f", commit {machine.commit}" if machine.commit else ""
    memory = f", {machine.memory_bytes / _GB:.1f} GB" if machine.memory_bytes else ""
    guess = "" if caches.is_known else " (assumed)"
    lines = [
        f"yocobit     {machine.version}{commit}, {machine.system}",
        f"cpu         {machine.cpu}, {machine.n_cpus} CPUs, L2 {caches.l2_bytes >> 10:,} KiB, "
        f"L{caches.last_level} {caches.last_bytes >> 20:,} MiB{guess}{memory}",
        f"features    {' '.join(machine.features) or 'unknown'}",
        kernels_line(report.kernels),
    ]
    if warning := load_warning(report.others_share):
        lines.append(warning)
    return lines


def _settings(report: Report) -> list[tuple[str, list[str]]]:
    """Return the values of the settings that have a column only if they differ."""
    return [
        ("threads", list(dict.fromkeys(str(row.threads) for row in report.rows))),
        ("cache", list(dict.fromkeys(row.case.cache for row in report.rows))),
    ]


def _limits_table(report: Report) -> Table:
    level = f"L{report.machine.caches.last_level}"
    instructions = list(next(iter(report.limits.values()))[0].multiply_adds_per_s)
    rates = (f"{name} GMAC/s" for name in instructions)
    table = new_table("limits", "DRAM GB/s", "min-max", f"{level} GB/s", "min-max", *rates)
    for threads, rounds in report.limits.items():
        limits = best(rounds)
        table.add_row(
            f"{threads} thread{'s' * (threads > 1)}",
            *_with_range([each.dram_bytes_per_s / _GB for each in rounds]),
            *_with_range([each.last_level_bytes_per_s / _GB for each in rounds]),
            *(_number(limits.multiply_adds_per_s[name] / _GB) for name in instructions),
        )
    return table


def _rows_table(report: Report) -> Table:
    varying = [name for name, values in _settings(report) if values[1:]]
    headings = ["test", *varying, "tokens/s", "min-max", "p50 ms", "p90", "p99", "max"]
    table = new_table(*headings, "GB/s", "of roof", "GMAC/s", "of int8", "peak MB")
    for row in report.rows:
        settings = {"threads": str(row.threads), "cache": row.case.cache}
        table.add_row(
            row.case.name,
            *(settings[name] for name in varying),
            *_figures(row, report),
        )
    return table


def _figures(row: CaseResult, report: Report) -> Iterator[str]:
    fields = _row_dict(row, report)
    rate, latency, share = fields["tokens_per_s"], fields["ms_per_token"], fields["roof_share"]
    roof = f"L{report.machine.caches.last_level}" if row.fits_last_level else "DRAM"
    yield _number(rate["median"])
    yield f"{_number(rate['min'])}-{_number(rate['max'])}"
    yield from map(_number, latency.values()) if latency else [""] * 4
    yield "" if row.n_bytes is None else f"{fields['bytes_per_s'] / _GB:.1f}"
    yield "" if share is None else f"{share:.0%} {roof}"
    yield f"{fields['multiply_adds_per_s'] / _GB:.1f}"
    yield "" if fields["int8_share"] is None else f"{fields['int8_share']:.0%}"
    yield f"{row.peak_bytes / _MB:,.0f}"


def _with_range(values: list[float]) -> tuple[str, str]:
    """Format the maximum and the range."""
    return _number(max(values)), f"{_number(min(values))}-{_number(max(values))}"


def _number(value: float) -> str:
    """Format a number with at least three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _roof_name(row: CaseResult) -> str:
    return "last_level" if row.fits_last_level else "dram"


def _roof(limits: Limits | None, row: CaseResult) -> float | None:
    if limits is None:
        return None
    return limits.last_level_bytes_per_s if row.fits_last_level else limits.dram_bytes_per_s


def _int8_roof(limits: Limits | None, report: Report) -> float | None:
    """Return the int8 limit; None for a dense model, which uses no int8 arithmetic."""
    if limits is None or not is_quantized(report.config.weights):
        return None
    return limits.int8_per_s


def _share(rate: float | None, limit: float | None) -> float | None:
    return None if rate is None or limit is None else rate / limit
