"""A plan as tables. docs/explanation/cost-model.md explains the columns."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from yocobit.benchmark.report import kernels_line, new_table, print_lines, print_table
from yocobit.hardware.load import load_warning
from yocobit.planning.plan import Plan, PlannedStack
from yocobit.planning.prediction import Prediction
from yocobit.planning.roofline import Bound

_GB = 1e9
_DATA_SHEET = "computed from its data sheet; nothing was run on it"


def print_plan(plan: Plan, console: Console) -> None:
    """Print a plan, the results first."""
    print_lines(console, _heading(plan))
    print_lines(console, _conclusion(plan))
    for new in (_stacks_table, _traffic_table, _parts_table, _levels_table):
        print_table(console, new(plan))
    if sources := _sources(plan):
        console.print()
        print_lines(console, sources)


def size(n_bytes: float) -> str:
    """Format a number of bytes with three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 999.5 or unit == "TB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} B" if unit == "B" else f"{number(n_bytes)} {unit}"


def number(value: float) -> str:
    """Format a number with at least three digits."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def seconds(value: float) -> str:
    """Format a time with three digits and its unit."""
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if value * factor < 999.5:
            return f"{number(value * factor)} {unit}"
    return f"{number(value)} s"


def _heading(plan: Plan) -> list[str]:
    work, config = plan.own.work, plan.own.work.config
    sessions = f", {work.batch} sessions" if work.batch > 1 else ""
    attention = f", attention {config.attention}" if config.attention else ""
    lines = [
        f"model       {plan.name}; {len(config.layers)} layers, d_model {config.d_model}, "
        f"d_ff {config.d_ff}, vocabulary {config.vocab_size:,}",
        f"context     {work.context:,} tokens{sessions}, cache {work.cache}{attention}",
        f"machine     {plan.machine.title}"
        + ("" if plan.machine.is_measured else f"; {_DATA_SHEET}"),
    ]
    if plan.kernels:
        lines.append(kernels_line(plan.kernels))
    if warning := load_warning(plan.others_share):
        lines.append(warning)
    return lines


def _levels_table(plan: Plan) -> Table:
    machine, chips = plan.machine, plan.own.bound.chips
    read = plan.own.bound.traffic_by_level()
    of_all = [f"of {chips:,} chips"] if chips > 1 else []
    table = new_table("memory", "size", *of_all, "GB/s", "traffic/step")
    for level in machine.levels:
        rate = "" if level.bytes_per_s is None else number(level.bytes_per_s / _GB)
        total = [size(chips * level.n_bytes)] if chips > 1 else []
        n_bytes = size(read[level.name]) if level.name in read else ""
        table.add_row(level.name, size(level.n_bytes), *total, rate, n_bytes)
    return table


def _parts_table(plan: Plan) -> Table:
    prediction = plan.prediction
    columns = ["predicted"] if prediction else []
    table = new_table(
        "part", "size", "traffic/step", "reuse distance", "level", "roofline", *columns
    )
    for place in plan.own.bound.places:
        rate = place.read_from.bytes_per_s
        assert rate is not None
        time = prediction and prediction.decode.get(place.part.name)
        table.add_row(
            place.part.name,
            size(place.part.n_bytes),
            size(place.part.traffic_bytes),
            size(place.reuse_distance) if place.part.multiply_adds else "",
            place.level.name,
            seconds(place.part.traffic_bytes / rate) if place.part.multiply_adds else "",
            *([seconds(time) if time else ""] if prediction else []),
        )
    if prediction:
        known = {place.part.name for place in plan.own.bound.places}
        for name, time in prediction.decode.items():
            if name not in known:
                table.add_row(name, "", "", "", "", "", seconds(time))
    return table


def _stacks_table(plan: Plan) -> Table:
    is_measured = plan.machine.is_measured
    has_chips = not is_measured and any(row.bound.chips > 1 for row in plan.rows)
    chips = ["chips"] if has_chips else []
    table = new_table(
        "roofline", "cache", "weights", "per token", "caches", "total", *chips,
        "decode/s", "prefill/s",
    )  # fmt: skip
    for row in plan.rows:
        work, limit = row.work, row.bound
        table.add_row(
            _name(row, plan),
            work.cache,
            size(work.weight_bytes),
            size(work.cache_bytes_per_token),
            size(work.cache_bytes + work.state_bytes),
            size(work.n_bytes),
            *([f"{limit.chips:,}"] if has_chips else []),
            *_rates(limit, is_measured),
        )
    return table


def _traffic_table(plan: Plan) -> Table:
    """Return the memory traffic per token by level; weights are shared by the batch."""
    read = [(row, row.bound.traffic_by_level()) for row in plan.rows if _fits(row, plan)]
    names = [level.name for level in plan.machine.levels]
    names = [name for name in names if any(name in by_level for _, by_level in read)]
    table = new_table("traffic per token", *(f"from {name}" for name in names))
    for row, by_level in read:
        sizes = [by_level[name] / row.work.batch if name in by_level else None for name in names]
        table.add_row(_name(row, plan), *("" if n is None else size(n) for n in sizes))
    return table


def _name(row: PlannedStack, plan: Plan) -> str:
    return "this model" if row is plan.own else row.name


def _fits(row: PlannedStack, plan: Plan) -> bool:
    """Return whether the machine can hold a model: any number of chips, but only one host."""
    return row.bound.chips == 1 or not plan.machine.is_measured


def _rates(limit: Bound, is_measured: bool) -> list[str]:
    """Format tokens/s of decode and prefill, unless the model is too large for this host."""
    if is_measured and limit.chips > 1:
        return ["too large", ""]
    return [number(limit.tokens_per_s), number(limit.prefill_tokens_per_s)]


def _conclusion(plan: Plan) -> list[str]:
    limit, home = plan.own.bound, plan.machine.home
    if plan.machine.is_measured and limit.chips > 1:
        needed = size(plan.own.work.n_bytes)
        return [f"too large   needs {needed} but {home.name} has {size(home.n_bytes)}"]
    bottleneck = "memory" if limit.is_memory_bound else "compute"
    lines = [
        f"roofline    decode {number(limit.tokens_per_s)} tokens/s ({bottleneck}-bound), "
        f"prefill of the context {seconds(limit.prefill_s)}"
    ]
    if limit.chips > 1:
        lines.append(
            f"            one chip after the other; all {limit.chips:,} busy: decode "
            f"{number(limit.chips * limit.tokens_per_s)}, prefill "
            f"{seconds(limit.prefill_s / limit.chips)}"
        )
    if plan.prediction:
        lines.append(_predicted(plan.prediction))
    return lines


def _sources(plan: Plan) -> list[str]:
    """Return the sources of a data sheet."""
    if plan.machine.is_measured:
        return []
    sources = dict.fromkeys(level.source for level in plan.machine.levels)
    sources[plan.machine.rates_source] = None
    return [f"{'source' if i == 0 else '':12}{url}" for i, url in enumerate(sources)]


def _predicted(prediction: Prediction) -> str:
    return (
        f"predicted   decode {number(prediction.tokens_per_s)} tokens/s "
        f"({seconds(prediction.step_s)} per step), "
        f"prefill {number(prediction.prefill_tokens_per_s)} tokens/s "
        f"({seconds(prediction.prefill_s)}); {prediction.threads} threads, "
        f"{prediction.kernels} kernels"
    )
