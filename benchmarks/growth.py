"""How the time of one layer grows as one quantity grows and all others stay as they are: numbers, and a picture."""

from pathlib import Path
from typing import Any

import attrs
import torch
from contenders import contenders
from matplotlib.ticker import FixedLocator, NullLocator
from measure import bearable, calls_of, check, medians
from pictures import picture
from workloads import Workload

# What stays as it is while another changes: with the mean length this is 512 steps, of 128 features.
BATCH, LENGTH, SIZE = 16, 32, 128
# Seconds that one call may take.
PATIENCE = {"one by one": 0.5}
# Seconds that a point may take, of which there are some fifty: fewer rounds where calls are long, but at least these.
SECONDS, LEAST = 5.0, 3
# Opacus would be far above them all.
COLOURS = {
    "seqbatch": "tab:red",
    "packed by hand": "tab:blue",
    "padded by hand": "tab:green",
    "torchrua": "tab:purple",
    "one by one": "tab:gray",
}
LABELS = {
    "batch": "sequences",
    "length": "mean steps",
    "size": "hidden size",
    "skew": "longest sequence, % of steps",
}


@attrs.frozen
class Point:
    """A workload, and the quantity that it is a point of."""

    quantity: str
    value: float
    workload: Workload


def points() -> list[Point]:
    """All points, for each quantity from the smallest to the largest."""
    found = [Point("batch", 2**i, _workload(f"batch {2**i}", batch=2**i)) for i in range(2, 9)]
    found += [Point("length", 2**i, _workload(f"length {2**i}", length=2**i)) for i in range(3, 10)]
    found += [Point("size", 2**i, _workload(f"size {2**i}", size=2**i)) for i in range(4, 11)]
    # From equal lengths to single steps beside one sequence that has all the others.
    skewed = [LENGTH, 64, 128, 256, 384, BATCH * LENGTH - BATCH + 1]
    return found + [Point("skew", 100 * longest / (BATCH * LENGTH), _skewed(longest)) for longest in skewed]


def measure(point: Point, kind: str, training: bool, rounds: int, device: str) -> dict[str, Any]:
    """Measure a point; give the milliseconds of each contender."""
    torch.manual_seed(0)
    layer = point.workload.layer(kind, device)
    sequences = point.workload.sequences(training, device)
    ways = {name: way for name, way in contenders(point.workload, layer, training).items() if name in COLOURS}
    taken = check(layer, sequences, ways, training)
    ways = bearable(ways, taken, PATIENCE)
    # Every round calls each of them twice.
    rounds = min(rounds, max(LEAST, int(SECONDS / sum(2 * taken[name] for name in ways)) - 2))
    ms = medians(calls_of(ways, layer, sequences, training), rounds)
    return {
        "quantity": point.quantity,
        "value": point.value,
        "workload": point.workload.name,
        "layer": kind,
        "training": training,
        "ms": ms,
    }


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw a panel for each quantity, of inference above and of training below."""
    quantities = list(dict.fromkeys(result["quantity"] for result in results))
    with picture(path, 11, 6.5) as figure:
        panels = figure.subplots(2, len(quantities), squeeze=False, sharex="col", sharey="row")
        for training in (False, True):
            for quantity, axes in zip(quantities, panels[int(training)], strict=True):
                group = [one for one in results if (one["quantity"], one["training"]) == (quantity, training)]
                _draw_panel(axes, group)
                if training:
                    axes.set_xlabel(LABELS[quantity])
            panels[int(training), 0].set_ylabel(f"{'training' if training else 'inference'}, ms")
        drawn = {line.get_label(): line for axes in panels.flat for line in axes.lines}
        figure.suptitle(
            f"Time of {results[0]['layer'].upper()} layers as one quantity grows: lower is better", x=0, ha="left"
        )
        figure.legend(handles=[*drawn.values()], loc="outside lower center", ncols=len(drawn), frameon=False)


def _draw_panel(axes: Any, results: list[dict[str, Any]]) -> None:
    for name, colour in COLOURS.items():
        taken = [(result["value"], result["ms"][name]) for result in results if name in result["ms"]]
        if taken:
            width = 2.4 if name == "seqbatch" else 1.4
            axes.loglog(*zip(*taken, strict=True), label=name, color=colour, lw=width, marker="o", markersize=3.5)
    axes.xaxis.set_major_locator(FixedLocator([result["value"] for result in results]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid()


def _workload(name: str, batch: int = BATCH, length: int = LENGTH, size: int = SIZE) -> Workload:
    return Workload(name, batch, SIZE, size, shortest=length // 2, longest=length + length // 2)


def _skewed(longest: int) -> Workload:
    """As many steps as ever, of which all but those of the longest sequence are shared out evenly."""
    each, more = divmod(BATCH * LENGTH - longest, BATCH - 1)
    lengths = [longest] + [each + 1] * more + [each] * (BATCH - 1 - more)
    return Workload(f"skew {longest}", BATCH, SIZE, SIZE, given=tuple(lengths))
