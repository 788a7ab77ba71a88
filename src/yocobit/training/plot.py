"""A picture of a run: loss and validation bits per byte over the tokens seen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from yocobit.config import ConfigError
from yocobit.training.progress import METRICS

_SMOOTHING = 0.95


def plot_run(run_dir: Path, out: Path, baselines: Mapping[str, float] | None = None) -> None:
    """Draw RUN/metrics.jsonl into `out` (PNG, SVG or PDF by its name).

    `baselines` are named bits per byte that other programs reach on the validation text.
    """
    from matplotlib.figure import Figure

    records = _read(run_dir / METRICS)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    loss_axes, bits_axes = figure.subplots(1, 2)

    tokens = [record["tokens"] / 1e6 for record in records]
    losses = [math.nan if record["loss"] is None else record["loss"] for record in records]
    loss_axes.plot(tokens, losses, color="0.8", linewidth=0.6, label="each step")
    loss_axes.plot(tokens, _smooth(losses), color="C0", label="smoothed")
    loss_axes.set(xlabel="million tokens seen", ylabel="training loss, nats per token")
    loss_axes.legend(frameon=False)

    measured = [record for record in records if "valid_bits_per_byte" in record]
    bits = [record["valid_bits_per_byte"] for record in measured]
    bits_axes.plot(
        [record["tokens"] / 1e6 for record in measured], bits, "o-", color="C1", markersize=3
    )
    for name, value in (baselines or {}).items():
        bits_axes.axhline(value, color="0.5", linestyle="--", linewidth=0.8)
        bits_axes.annotate(f"{name} {value:.2f}", (1, value), (-4, 3), color="0.3",
                           xycoords=("axes fraction", "data"), textcoords="offset points",
                           ha="right", fontsize=8)  # fmt: skip
    if bits:
        bits_axes.set_title(f"now {bits[-1]:.3f}", fontsize=10)
    bits_axes.set(xlabel="million tokens seen", ylabel="held-out text, bits per byte")
    for axes in (loss_axes, bits_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(out, dpi=150)


def _read(path: Path) -> list[dict[str, float]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; name the directory of a run") from None
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:  # the line that a running or killed run is writing
            break
    if not records:
        raise ConfigError(f"{path}: holds no steps yet")
    return records


def _smooth(values: list[float]) -> list[float]:
    """Exponential moving average without the bias towards the first value."""
    total, smoothed = 0.0, []
    for i, value in enumerate(values, start=1):
        total = _SMOOTHING * total + (1 - _SMOOTHING) * (value if math.isfinite(value) else 0.0)
        smoothed.append(total / (1 - _SMOOTHING**i))
    return smoothed
