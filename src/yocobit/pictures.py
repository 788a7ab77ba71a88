"""The style of all plots; matplotlib is imported on first use."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yocobit.disk import claim_file, replacing
from yocobit.errors import UserError
from yocobit.extras import needs_extra

# Okabe and Ito's colour-blind-safe blue, vermillion and green, and a sky blue that is visible on
# white.
BLUE, SKY, ORANGE, GREEN = "#0072B2", "#4AA5DC", "#D55E00", "#009E73"
TEXT = "#444444"
_FORMATS = (".png", ".svg", ".pdf")
_DRAWN_BY = b"matplotlib.org"  # in the metadata of every format
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.edgecolor": "#9A9A9A",
    "axes.labelcolor": TEXT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": "#222222",
    "figure.facecolor": "white",
    "grid.color": "#EAEAEA",
    "grid.linewidth": 0.7,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


def style(changes: Mapping[str, Any] | None = None) -> Any:
    """Return a context manager that sets this matplotlib style, with some changes.

    UserError if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise needs_extra("plot", "a picture needs matplotlib, which is not installed") from None
    settings: Any = STYLE | dict(changes or {})
    return matplotlib.rc_context(settings)


def save(figure: Any, out: Path, dpi: float | None = None) -> None:
    """Write a figure atomically; ValueError for a format that matplotlib does not support.

    Renders in memory first: on a full disk, matplotlib's own error hides the system's.
    """
    claim_picture(out)
    image = io.BytesIO()
    figure.savefig(image, dpi=dpi or figure.dpi, format=out.suffix.removeprefix("."))
    with replacing(out) as partial:
        partial.write_bytes(image.getvalue())


def claim_picture(out: Path) -> None:
    """Raise ConfigError if `out` is a file of another program; a plot is replaced."""
    claim_file(out, lambda content: _DRAWN_BY in content, "a plot drawn by matplotlib")


def check_picture(out: Path) -> None:
    """UserError if `out` cannot be written or its suffix is not a supported format."""
    if out.suffix not in _FORMATS:
        raise UserError(f"--picture must end in {', '.join(_FORMATS)} but is {out}")
    if not out.parent.is_dir():
        raise UserError(f"--picture: {out}: cannot be written: {out.parent} is not a directory")
    if out.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        raise UserError(f"--picture: {out}: cannot be written; choose another file")
    claim_picture(out)
    with style():
        pass  # matplotlib is installed
