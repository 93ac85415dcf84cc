"""How pictures look: without a background, in colours that can be read on white pages and on dark ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

BLUE = "tab:blue"
GREY = "#757d85"  # its contrast to white is as high as to black
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(
        ["text.color", "axes.edgecolor", "axes.labelcolor", "grid.color", "xtick.color", "ytick.color"], GREY
    ),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "figure.titlesize": "large",
    "figure.titleweight": "bold",
    "font.size": 11,
    "grid.alpha": 0.3,
    **dict.fromkeys(["xtick.labelsize", "ytick.labelsize"], "small"),
    "svg.hashsalt": "benchmarks",  # so that equal results are equal files
}


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of this size, in inches, and write it once it is drawn."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, transparent=True, metadata=metadata)
