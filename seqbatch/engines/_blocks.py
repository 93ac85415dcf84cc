"""Blocks of padded steps: where to cut time, and which row of a block is which step."""

from bisect import bisect_right
from collections import Counter
from itertools import accumulate, pairwise
from typing import NamedTuple, Self

import torch
from torch import Tensor

from seqbatch._lengths import Lengths, ints, to_device
from seqbatch._plans import Plan, reverse_plan, undo

# Places to cut that are weighed against each other; more would take longer to weigh than they save.
PLACES = 32


class Blocks(NamedTuple):
    """The blocks of a batch: their rows one after another, each block step by step, the longest sequence first.

    Args:
        shapes: steps and sequences of each block.
        enter: flat values, and after them one row that stands for padding if there is any, to rows.
        leave: rows to flat values.
        ends: `(batch,)`, int64: the row of the last step of each sequence, in the caller's order.
        rank: `(batch,)`, int64: the place of each sequence of the caller's.
        padded: whether there is padding.
    """

    shapes: list[tuple[int, int]]
    enter: Plan
    leave: Plan
    ends: Tensor
    rank: Tensor
    padded: bool

    def to(self, device: torch.device) -> Self:
        """Copy the indices to a device."""
        plans = self.enter.to(device), self.leave.to(device)
        return type(self)(self.shapes, *plans, to_device(self.ends, device), to_device(self.rank, device), self.padded)


def blocks_of(lengths: Lengths, overhead: int) -> Blocks:
    """Cut a batch into blocks; no length may be 0.

    Args:
        lengths: the lengths.
        overhead: how many rows take as long as one block more.
    """
    cuts = cut(lengths.counts, overhead)
    firsts, counts, ends = ints(*_of_sequences(lengths, cuts)).view(3, len(lengths)).unbind()
    shapes = [(end - begin, count) for begin, end, count in cuts]
    steps = torch.arange(lengths.longest, device="cpu")[:, None].split([steps for steps, _ in shapes])
    takes = []
    for part, (_, count) in zip(steps, shapes, strict=True):
        take = part + firsts[:count]
        # Of padding the row after the last step of all.
        takes.append(take.masked_fill_(part >= counts[:count], lengths.total).flatten())
    take = takes[0] if len(takes) == 1 else torch.cat(takes)
    padded = len(take) > lengths.total
    give = undo(take, lengths.total + padded)
    leave = Plan(give[: lengths.total], take, give_fills=padded)
    return Blocks(shapes, Plan(take, give), leave, ends, lengths.rank, padded)


def _of_sequences(lengths: Lengths, cuts: list[tuple[int, int, int]]) -> tuple[list[int], ...]:
    """Give numbers of each sequence: its first flat step and its steps, the longest first, and its last row.

    By Python, which for the numbers of a batch takes less time than calls of torch do.
    """
    order, counts, batch = lengths.sequence_order, lengths.counts, len(lengths)
    firsts = list(accumulate(counts, initial=0))
    ends = [0] * batch
    row, place = 0, batch
    for begin, end, count in cuts:
        # The sequences that end in this block are the last of those that run.
        while place and counts[order[place - 1]] <= end:
            place -= 1
            i = order[place]
            ends[i] = row + (counts[i] - 1 - begin) * count + place
        row += (end - begin) * count
    return [firsts[i] for i in order], [counts[i] for i in order], ends


def turn_plan(lengths: Lengths, overhead: int) -> Plan:
    """Rows of `blocks_of` to those of every sequence back to front; padding stays where it is."""
    blocks = lengths.plan(blocks_of, overhead, device=torch.device("cpu"))
    turn = torch.arange(len(blocks.enter.take), device="cpu")
    turn[blocks.leave.take] = blocks.leave.take[reverse_plan(lengths).take]
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
    places = _places(ascending)
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


def _places(ascending: list[int]) -> list[int]:
    """Give 0 and the lengths where a cut is worth weighing: few of them, and little is padded from one to the next.

    Between two places lie lengths whose padding up to the second is at most so many rows. With `1 / PLACES**2` of all
    steps lengths that are spread evenly give just PLACES places, and what all of them pad is `1 / PLACES` of the steps.
    """
    distinct = sorted(Counter(ascending).items())
    most = sum(ascending) / PLACES**2
    while True:
        places, padded, passed = [0], 0, 0
        for (length, number), (after, _) in pairwise(distinct):
            passed += number
            padded += passed * (after - length)
            if padded > most:
                places.append(length)
                padded = passed = 0
        if len(places) <= PLACES:
            return [*places, ascending[-1]]
        most *= 2
