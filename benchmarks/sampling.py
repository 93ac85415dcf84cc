"""What bucketed batches cost and gain, at a million sequences: seconds of planning, fill, balance between processes."""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import attrs
import torch
from matplotlib.ticker import FixedLocator, NullLocator
from pictures import picture
from torch import Tensor

from seqbatch.data._bucket_sampler import BucketBatchSampler
from seqbatch.data._epoch_batches import EpochBatches

SEQUENCES, BATCH = 1_000_000, 32
WORLD_SIZES = (8, 64, 512)
KINDS = ("bucketed", "random")
LIMITS = {"batch_size": f"batch_size: {BATCH}", "max_steps": f"max_steps: those of {BATCH} sequences"}
# What the processes of a round differ in: a limit makes equal either sequences or steps.
COSTS = {"batch_size": "steps", "max_steps": "longest"}
COLOURS = {"uniform": "tab:blue", "log-normal": "tab:red", "heavy tail": "tab:green", "two humps": "tab:purple"}


@attrs.frozen
class Point:
    """Lengths of a distribution, the limit of a batch, and how many processes share the batches."""

    distribution: str
    limit: str
    world_size: int

    @property
    def name(self) -> str:
        return f"{self.distribution}, {self.limit}, {self.world_size} processes"


def points() -> list[Point]:
    """All points."""
    return [Point(name, limit, size) for name in DISTRIBUTIONS for limit in LIMITS for size in WORLD_SIZES]


def measure(point: Point, rounds: int, sequences: int = SEQUENCES) -> dict[str, Any]:
    """Measure a point.

    Returns:
        seconds to make a sampler and to plan an epoch, microseconds to draw a batch; and for its batches and random
        ones fill, and the mean over rounds of the mean cost of a batch over the largest, by steps and by the longest.
    """
    lengths = DISTRIBUTIONS[point.distribution](sequences, torch.Generator().manual_seed(0)).round().clamp(1).long()
    budget = max(int(lengths.max()), round(BATCH * float(lengths.double().mean())))
    options: dict[str, Any] = {point.limit: {"batch_size": BATCH, "max_steps": budget}[point.limit], "rank": 0}

    def make() -> BucketBatchSampler:
        return BucketBatchSampler(lengths, world_size=point.world_size, **options)

    sampler, epochs = make(), count(1)
    plan = sampler._state.epoch_batches(0)
    random = BucketBatchSampler(lengths, world_size=point.world_size, pool=1, **options)._state.epoch_batches(0)
    return {
        "distribution": point.distribution,
        "limit": point.limit,
        "world_size": point.world_size,
        "batches": len(plan.rounds),
        "seconds": {
            "make": _median(make, rounds),
            "plan": _median(lambda: sampler._state.epoch_batches(next(epochs)), rounds),
        },
        "microseconds": 1e6 * _median(partial(_draw_all, sampler), rounds) / len(plan.rounds),
        "fill": {"bucketed": plan.share_of_real_steps(), "random": random.share_of_real_steps()},
        "balance": {"bucketed": _balance(plan, plan.rounds), "random": _balance(random, _shuffled(random.rounds))},
    }


def table(results: list[dict[str, Any]]) -> str:
    """A table in Markdown: fill, and balance for each number of processes; in brackets those of random batches."""
    sizes = list(dict.fromkeys(result["world_size"] for result in results))
    balances = [f"{name}, {size}" for name in COSTS.values() for size in sizes]
    header = ["lengths", "limit", "fill", *balances]
    lines = [_row(header), f"|{' --- |' * len(header)}"]
    for distribution, limit in dict.fromkeys((result["distribution"], result["limit"]) for result in results):
        own = [one for one in results if (one["distribution"], one["limit"]) == (distribution, limit)]
        costs = [{kind: one["balance"][kind][name] for kind in KINDS} for name in COSTS.values() for one in own]
        lines.append(_row([distribution, limit, *(_cell(found) for found in (own[0]["fill"], *costs))]))
    return "\n".join(lines)


def _cell(found: dict[str, float]) -> str:
    return "{:.2f} ({:.2f})".format(*(found[kind] for kind in KINDS))


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw a row for each limit: fill, balance by the number of processes, seconds of planning."""
    slowest = max(result["seconds"]["plan"] for result in results)
    with picture(path, 11.5, 7) as figure:
        panels = figure.subplots(len(LIMITS), 3, squeeze=False)
        for limit, (fill, balance, seconds) in zip(LIMITS, panels, strict=True):
            group = [result for result in results if result["limit"] == limit]
            names = list(dict.fromkeys(result["distribution"] for result in group))
            _draw_fill(fill, names, group)
            _draw_balance(balance, names, group, COSTS[limit])
            for name in names:
                own = [one for one in group if one["distribution"] == name]
                taken = [(one["world_size"], one["seconds"]["plan"]) for one in own]
                seconds.plot(*zip(*taken, strict=True), color=COLOURS[name], marker="o", markersize=4)
            seconds.set(title="seconds to plan: lower is better", ylim=(0, 1.1 * slowest))
            for axes in (balance, seconds):
                axes.set(xscale="log", xlabel="processes")
                axes.xaxis.set_major_locator(FixedLocator(WORLD_SIZES))
                axes.xaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_major_formatter("{x:.0f}")
                axes.grid()
            fill.set_ylabel(LIMITS[limit], weight="bold")
        handles, labels = panels[0, 1].get_legend_handles_labels()
        figure.suptitle(
            f"Batches of {SEQUENCES:,} sequences: bucketed (filled, solid), random (hollow, dotted)", x=0, ha="left"
        )
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _draw_fill(axes: Any, names: list[str], results: list[dict[str, Any]]) -> None:
    first = {name: next(one for one in results if one["distribution"] == name) for name in names}
    for i, name in enumerate(names):
        for kind, shift in (("random", -0.2), ("bucketed", 0.2)):
            face = COLOURS[name] if kind == "bucketed" else "none"
            bars = axes.bar(i + shift, first[name]["fill"][kind], 0.38, facecolor=face, edgecolor=COLOURS[name])
            axes.bar_label(bars, fmt="%.2f")
    axes.set_xticks(range(len(names)), names)
    axes.set(title="real steps, share: higher is better", ylim=(0, 1.1))


def _draw_balance(axes: Any, names: list[str], results: list[dict[str, Any]], cost: str) -> None:
    for kind, style in (("bucketed", "-"), ("random", ":")):
        for name in names:
            own = [one for one in results if one["distribution"] == name]
            found = [(one["world_size"], one["balance"][kind][cost]) for one in own]
            label = name if kind == "bucketed" else None
            axes.plot(*zip(*found, strict=True), color=COLOURS[name], ls=style, marker="o", markersize=4, label=label)
    what = {"steps": "steps", "longest": "longest"}[cost]
    axes.set(title=f"balance of {what}: higher is better", ylim=(0, 1.1))


def _balance(plan: EpochBatches, rounds: Tensor) -> dict[str, float]:
    found = {}
    for name, cost in (("steps", plan.steps), ("longest", plan.longest)):
        by_process = cost[rounds].double()
        found[name] = float((by_process.mean(1) / by_process.amax(1)).mean())
    return found


def _shuffled(rounds: Tensor) -> Tensor:
    """The batches of random batching, as they come."""
    order = torch.randperm(rounds.numel(), generator=torch.Generator().manual_seed(2))
    return rounds.flatten()[order].view_as(rounds)


def _draw_all(sampler: BucketBatchSampler) -> None:
    """Draw the batches of a process."""
    sampler.set_epoch(0)
    for _ in sampler.track(sampler):
        pass


def _median(call: Callable[[], Any], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _uniform(number: int, generator: torch.Generator) -> Tensor:
    return torch.randint(1, 1001, (number,), generator=generator).double()


def _sentences(number: int, generator: torch.Generator) -> Tensor:
    """As the words of sentences: 20 in the middle."""
    return torch.empty(number).log_normal_(math.log(20), 0.6, generator=generator)


def _heavy_tail(number: int, generator: torch.Generator) -> Tensor:
    """A Pareto distribution from 10 steps on, cut off at 2,000; its mean is 28."""
    return (10 * (1 - torch.rand(number, generator=generator, dtype=torch.float64)) ** (-1 / 1.5)).clamp(max=2000)


def _two_humps(number: int, generator: torch.Generator) -> Tensor:
    """Four of five around 30 steps, the others around 800."""
    is_short = torch.rand(number, generator=generator) < 0.8
    short = torch.empty(number).normal_(30, 5, generator=generator)
    return torch.where(is_short, short, torch.empty(number).normal_(800, 100, generator=generator))


DISTRIBUTIONS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "uniform": _uniform,
    "log-normal": _sentences,
    "heavy tail": _heavy_tail,
    "two humps": _two_humps,
}
