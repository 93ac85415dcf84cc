"""Blocks of padded steps: where to cut time, and which row of a block is which step."""

from bisect import bisect_right
from typing import Self

import attrs
import torch
from torch import Tensor

from seqbatch._lengths import Lengths, to_device
from seqbatch._plans import Plan, reverse_plan, undo

# Places to cut that are weighed against each other; more would take longer to weigh than they save.
PLACES = 32


@attrs.frozen(eq=False)
class Blocks:
    """The blocks of a batch: their rows one after another, each block step by step, the longest sequence first.

    Args:
        shapes: steps and sequences of each block.
        enter: flat values to rows.
        ends: `(batch,)`, int64: the row of the last step of each sequence, in the caller's order.
        padding: `(rows, 1)`, 1 on padding; None if there is none.
    """

    shapes: list[tuple[int, int]]
    enter: Plan
    ends: Tensor
    padding: Tensor | None

    def to(self, device: torch.device) -> Self:
        """Copy the indices to a device."""
        padding = None if self.padding is None else to_device(self.padding, device)
        return type(self)(self.shapes, self.enter.to(device), to_device(self.ends, device), padding)


def blocks_of(lengths: Lengths, overhead: int) -> Blocks:
    """Cut a batch into blocks; no length may be 0.

    Args:
        lengths: the lengths.
        overhead: how many rows take as long as one block more.
    """
    cuts = cut(lengths.counts, overhead)
    shapes = [(end - begin, count) for begin, end, count in cuts]
    firsts = lengths.offsets[:-1].index_select(0, lengths.order)
    counts = lengths.tensor.index_select(0, lengths.order)
    steps = torch.arange(lengths.longest, device="cpu")[:, None]
    # Of padding the row of a step after the last of all, which there is none of.
    takes = [
        torch.where(part < counts[:count], part + firsts[:count], lengths.total).flatten()
        for part, (_, count) in zip(steps.split([steps for steps, _ in shapes]), shapes, strict=True)
    ]
    take = takes[0] if len(takes) == 1 else torch.cat(takes)
    give = undo(take, lengths.total + 1)[: lengths.total]
    enter = Plan(take, give, take_fills=len(take) > lengths.total)
    padding = (take == lengths.total).float()[:, None] if enter.take_fills else None
    return Blocks(shapes, enter, give.index_select(0, lengths.offsets[1:] - 1), padding)


def turn_plan(lengths: Lengths, overhead: int) -> Plan:
    """Rows of `blocks_of` to those of every sequence back to front; padding stays where it is."""
    enter = lengths.plan(blocks_of, overhead, device=torch.device("cpu")).enter
    turn = torch.arange(len(enter.take), device="cpu")
    turn[enter.inverse.take] = enter.inverse.take[reverse_plan(lengths).take]
    return Plan(turn, turn)


def cut(counts: tuple[int, ...], overhead: int) -> list[tuple[int, int, int]]:
    """Cut time so that the rows of all blocks, and an overhead for each block, are as few as can be.

    Args:
        counts: the steps of each sequence.
        overhead: what a block costs beside its rows, in rows.

    Returns:
        for each block its first step, the step after its last, and the sequences that have its first step.
    """
    ascending = sorted(counts)
    distinct = sorted(set(counts))
    stride = -(-len(distinct) // PLACES)
    places = [0, *distinct[:-1][::stride], distinct[-1]]
    running = [len(counts) - bisect_right(ascending, place) for place in places]
    # From the back: what the best cuts of all that comes after a place cost, and where the first of them is.
    last = len(places) - 1
    costs, following = [0] * len(places), [last] * len(places)
    for i in range(last - 1, -1, -1):
        count, here = running[i], places[i]
        costs[i] = overhead + (places[last] - here) * count
        for j in range(i + 1, last):
            total = overhead + (places[j] - here) * count + costs[j]
            if total < costs[i]:
                costs[i], following[i] = total, j
    cuts, i = [], 0
    while i < last:
        cuts.append((places[i], places[following[i]], running[i]))
        i = following[i]
    return cuts
