"""Draw the layouts of a batch, a list, flat values, padded and packed, from the Tensors that seqbatch returns.

`python docs/pictures/layouts.py` writes `layouts.svg` beside this file, and with a path it writes there.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from seqbatch import SequenceBatch

# A step is a number: ten times its sequence, plus its position. Padding is -1.
LENGTHS = {"x": 4, "y": 2, "z": 3}
SEQUENCES = [10 * i + torch.arange(length) for i, length in enumerate(LENGTHS.values())]
COLORS = ["#8ab6ec", "#f2b56f", "#8fd0a3"]
# Text outside of the cells has a grey that can be read on white and on black.
GREY, INK = "#757d85", "#14171a"


def draw_step(axes: Axes, column: float, row: float, step: int) -> None:
    """Draw one step as a cell with its name, or padding as an empty cell."""
    is_padding = step < 0
    cell = FancyBboxPatch(
        (column + 0.06, row + 0.06),
        0.88,
        0.88,
        boxstyle="round,pad=0,rounding_size=0.12",
        facecolor="none" if is_padding else COLORS[step // 10],
        edgecolor=GREY if is_padding else "none",
        linestyle=":" if is_padding else "-",
        linewidth=1.2,
    )
    axes.add_patch(cell)
    name = "0" if is_padding else f"{[*LENGTHS][step // 10]}{step % 10}"
    axes.text(
        column + 0.5,
        row + 0.5,
        name,
        color=GREY if is_padding else INK,
        ha="center",
        va="center_baseline",
        fontsize=13,
    )


def write(axes: Axes, row: float, title: str, code: str, column: float = 0) -> None:
    """Write the name of a layout and the code that builds it, above its cells."""
    axes.text(column + 0.06, row, title, color=GREY, fontsize=14, weight="bold", va="bottom")
    axes.text(column + 0.06, row + 0.12, code, color=GREY, fontsize=11, va="top", family="monospace")


def draw_counts(axes: Axes, row: float, counts: list[int], label: str) -> None:
    """Draw a line under each group of cells, with the number of cells."""
    column = 0.0
    for count in counts:
        axes.plot([column + 0.12, column + count - 0.12], [row, row], color=GREY, linewidth=1.5)
        axes.text(column + count / 2, row + 0.12, str(count), color=GREY, fontsize=13, ha="center", va="top")
        column += count
    axes.text(column + 0.12, row, label, color=GREY, fontsize=11, va="center", family="monospace")


def draw() -> Figure:
    """Draw all layouts, one below the other."""
    figure = Figure(figsize=(6.4, 6.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 11.2)
    axes.set_ylim(10.85, 0)

    write(axes, 0.5, "A list", "[x, y, z]")
    for row, sequence in enumerate(SEQUENCES):
        for column, step in enumerate(sequence.tolist()):
            draw_step(axes, column, 1 + row, step)

    batch = SequenceBatch.from_sequences(SEQUENCES)
    write(axes, 0.5, "Padded", "batch.to_padded(batch_first=True)", column=5.6)
    for row, steps in enumerate(batch.to_padded(batch_first=True, padding_value=-1).tolist()):
        for column, step in enumerate(steps):
            draw_step(axes, 5.6 + column, 1 + row, step)

    write(axes, 4.9, "SequenceBatch: flat values and lengths", "batch = SequenceBatch.from_sequences([x, y, z])")
    for column, step in enumerate(batch.values.tolist()):
        draw_step(axes, column, 5.4, step)
    draw_counts(axes, 6.6, [*batch.lengths], "lengths")

    write(axes, 8.3, "Packed: by step, longest first", "batch.to_packed()")
    packed = batch.to_packed()
    for column, step in enumerate(packed.data.tolist()):
        draw_step(axes, column, 8.8, step)
    draw_counts(axes, 10.0, packed.batch_sizes.tolist(), "batch_sizes")
    return figure


def main() -> None:
    """Write the picture, whose bytes depend on nothing but the version of matplotlib."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")
    with mpl.rc_context({"svg.hashsalt": "layouts"}):
        draw().savefig(path, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
