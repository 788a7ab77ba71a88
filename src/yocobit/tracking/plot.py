"""`yocobit plot`: the curves of runs, as a page or a picture by the name of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from yocobit.config import ConfigError
from yocobit.tracking.curves import Axis, read_runs
from yocobit.tracking.page import write_page
from yocobit.tracking.picture import write_picture

_PICTURES = (".png", ".svg", ".pdf")


def plot_runs(
    run_dirs: Sequence[Path],
    out: Path,
    axis: Axis = "step",
    baselines: Mapping[str, float] | None = None,
) -> None:
    """Draw RUN/metrics.jsonl of each run into `out`.

    `baselines` are named bits per byte that other programs reach on the validation text; a page
    does not show them.
    """
    if out.suffix not in (".html", *_PICTURES):
        kinds = ", ".join((".html", *_PICTURES))
        raise ConfigError(f"{out}: a plot must end in one of {kinds}; choose another --out")
    runs = read_runs(run_dirs)
    if out.suffix == ".html":
        write_page(runs, out, axis)
    else:
        write_picture(runs, out, axis, baselines or {})
