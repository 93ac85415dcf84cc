"""Reports of the results: tables of ratios with geometric means, the cases where seqbatch is slower, and a picture."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from pictures import BLUE, GREY, picture

# The others in the order of the columns, by the section of the results.
OTHERS = {
    "layers": ["packed by hand", "padded by hand", "one by one", "torchrua", "opacus", "ONNX Runtime", "products"],
    "conversions": ["PyTorch", "by hand", "torch.nested", "torchrua"],
    "growth": ["packed by hand", "padded by hand", "one by one", "torchrua"],
    "families": ["padded by hand", "one by one"],
    "steps": ["itself"],
}
# What the results of a section are of besides workload and mode.
TASKS = {"layers": "layer", "conversions": "task", "growth": "layer", "families": "layer", "steps": "layer"}

Results = list[dict[str, Any]]


def ratios(result: dict[str, Any], others: list[str]) -> dict[str, float]:
    """How many times as long as seqbatch each other takes."""
    taken = result["ms"]
    return {name: taken[name] / taken["seqbatch"] for name in others if name in taken}


def table(section: str, results: Results) -> str:
    """A table in Markdown: for each task how many times as long as seqbatch the others take; blank for who does not."""
    task, others = TASKS[section], OTHERS[section]
    memory = ["peak memory, of packed"] if section == "layers" else []
    header = [task, "mode", "workload", "seqbatch, ms", *others, *memory]
    lines = [_row(*header), f"|{' --- |' * len(header)}"]
    for name, training in _groups(results, task):
        group = _group(results, task, name, training)
        mode = _mode(training)
        for result in group:
            found = ratios(result, others)
            cells = [f"{found[other]:.2f}" if other in found else "" for other in others]
            of_packed = [_of_packed(result["peaks"])] if memory else []
            lines.append(_row(name, mode, result["workload"], f"{result['ms']['seqbatch']:.3g}", *cells, *of_packed))
        lines.append(_row(name, mode, "**geometric mean**", "", *_means(group, others), *([""] * len(memory))))
    return "\n".join(lines)


def summary(section: str, results: Results) -> str:
    """Return a table in Markdown of geometric means over all workloads, a row for each task and mode."""
    task, others = TASKS[section], OTHERS[section]
    lines = [_row(task, "mode", *others), f"|{' --- |' * (len(others) + 2)}"]
    for name, training in _groups(results, task):
        group = _group(results, task, name, training)
        lines.append(_row(name, _mode(training), *_means(group, others)))
    return "\n".join(lines)


def faster(section: str, results: Results) -> str:
    """A list in Markdown of every case in which another takes less time than seqbatch, and what part of it."""
    others = [name for name in OTHERS[section] if name != "products"]
    lines = []
    for result in results:
        beaten = {name: ratio for name, ratio in ratios(result, others).items() if ratio < 1}
        told = ", ".join(f"{name} {beaten[name]:.2f}" for name in sorted(beaten, key=beaten.__getitem__))
        if told:
            lines.append(f"- {result[TASKS[section]]}, {_mode(result['training'])}, {result['workload']}: {told}")
    if not lines:
        return "No other method is faster in any of these cases."
    return "\n".join(
        ["In these cases another method is faster. The number is its time divided by that of seqbatch:", "", *lines]
    )


def draw(results: Results, path: Path) -> None:
    """Draw how many times as fast as packing by hand seqbatch is, a panel for each layer and mode."""
    kinds = list(dict.fromkeys(result["layer"] for result in results))
    workloads = list(dict.fromkeys(result["workload"] for result in results))
    with picture(path, 9.5, 1.2 + len(kinds) * (0.9 + 0.21 * len(workloads))) as figure:
        panels = figure.subplots(len(kinds), 2, squeeze=False, sharex=True, sharey=True)
        for row, kind in zip(panels, kinds, strict=True):
            for axes, training in zip(row, (False, True), strict=True):
                _draw_ratios(axes, _group(results, "layer", kind, training))
        panels[0, 0].invert_yaxis()
        figure.suptitle("Times as fast as packing by hand: longer bars are better", x=0, ha="left")


def _draw_ratios(axes: Axes, group: Results) -> None:
    """Draw a bar for each workload, from 1, where both take the same time."""
    values = [ratios(result, ["packed by hand"])["packed by hand"] for result in group]
    bars = axes.barh([result["workload"] for result in group], [value - 1 for value in values], left=1, color=BLUE)
    axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=3, fontsize="small")
    axes.axvline(1, color=GREY)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.15)
    mode = "training" if group[0]["training"] else "inference"
    axes.set_title(f"{group[0]['layer'].upper()}, {mode}: {statistics.geometric_mean(values):.2f} times as fast")


def _groups(results: Results, task: str) -> list[tuple[str, bool]]:
    return list(dict.fromkeys((result[task], result["training"]) for result in results))


def _group(results: Results, task: str, name: str, training: bool) -> Results:
    return [result for result in results if (result[task], result["training"]) == (name, training)]


def _mode(training: bool) -> str:
    return "train" if training else "infer"


def _of_packed(peaks: dict[str, int]) -> str:
    return f"{peaks['seqbatch'] / peaks['packed by hand']:.2f}" if peaks else ""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _means(group: Results, others: list[str]) -> list[str]:
    return [_mean([ratio for one in group for ratio in ratios(one, [other]).values()]) for other in others]


def _mean(values: list[float]) -> str:
    return f"{statistics.geometric_mean(values):.2f}" if values else ""
