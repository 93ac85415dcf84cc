"""What is told of the results: a table of ratios with geometric means, and a picture of it."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

OTHERS = ["packed by hand", "padded by hand", "one by one", "torchrua", "products"]


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """How many times as long as seqbatch each other takes."""
    taken = result["ms"]
    return {name: taken[name] / taken["seqbatch"] for name in OTHERS if name in taken}


def table(results: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """A table in Markdown: for each task how many times as long as seqbatch the others take."""
    header = ["layer", "mode", "workload", "seqbatch, ms", *OTHERS, "peak memory, of packed"]
    lines = [", ".join(f"{name} {value}" for name, value in about.items()), ""]
    lines += [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for kind, training in dict.fromkeys((result["kind"], result["training"]) for result in results):
        group = [result for result in results if (result["kind"], result["training"]) == (kind, training)]
        mode = "train" if training else "infer"
        for result in group:
            found, peaks = ratios(result), result["peaks"]
            memory = f"{peaks['seqbatch'] / peaks['packed by hand']:.2f}" if peaks else ""
            cells = [f"{found[name]:.2f}" if name in found else "" for name in OTHERS]
            lines.append(_row(kind, mode, result["workload"], f"{result['ms']['seqbatch']:.2f}", *cells, memory))
        means = [_mean([ratios(result)[name] for result in group if name in result["ms"]]) for name in OTHERS]
        lines.append(_row(kind, mode, "**geometric mean**", "", *means, ""))
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the ratios to packed by hand as bars, a group for each layer and mode."""
    groups = list(dict.fromkeys((result["kind"], result["training"]) for result in results))
    figure = Figure(figsize=(13, 3.6 * len(groups)), layout="constrained")
    for axes, (kind, training) in zip(figure.subplots(len(groups), 1, squeeze=False)[:, 0], groups, strict=True):
        group = [result for result in results if (result["kind"], result["training"]) == (kind, training)]
        values = [ratios(result)["packed by hand"] for result in group]
        bars = axes.bar([result["workload"] for result in group], values, color="tab:blue")
        axes.bar_label(bars, fmt="%.1f")
        axes.axhline(1, color="black", linewidth=0.8)
        axes.tick_params(axis="x", labelrotation=20)
        axes.margins(y=0.15)
        axes.set(title=f"{kind}, {'training' if training else 'inference'}", ylabel="times faster than packed by hand")
    figure.savefig(path, dpi=100)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(values: list[float]) -> str:
    return f"{statistics.geometric_mean(values):.2f}" if values else ""
