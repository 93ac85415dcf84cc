"""Rows in packed order, step by step: cutting them into steps, and finding the rows of the step before."""

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple, Self

import torch
from torch import Tensor

from seqbatch._lengths import Lengths, ints, to_device
from seqbatch._plans import Plan, packed_plan, reverse_plan

# Steps that are cut at a time: one by one would take longer, and all at once memory for the views of a long sequence.
CUT = 256


class Steps(NamedTuple):
    """The steps of packed order; here every tensor is `(directions, rows, ...)`, and sequences stand longest first.

    Args:
        sizes: how many sequences have each step, never rising.
        before: `(total_steps,)`, int64: of each row the row a step before, where the rows begin with the starts.
        ends: `(batch,)`, int64: the last row of each sequence, in the caller's order.
        rank: `(batch,)`, int64: the place of each sequence of the caller's.
    """

    sizes: list[int]
    before: Tensor
    ends: Tensor
    rank: Tensor

    def to(self, device: torch.device) -> Self:
        """Copy the indices to a device."""
        return type(self)(self.sizes, *(to_device(part, device) for part in (self.before, self.ends, self.rank)))

    def split(self, rows: Tensor) -> Iterator[Tensor]:
        """Give the rows of each step, as views."""
        chunks = [self.sizes[i : i + CUT] for i in range(0, len(self.sizes), CUT)]
        for part, sizes in zip(rows.split([sum(sizes) for sizes in chunks], 1), chunks, strict=True):
            yield from part.split(sizes, 1)

    def split_back(self, rows: Tensor) -> Iterator[Tensor]:
        """Give the rows of each step, from the last to the first."""
        chunks = [self.sizes[i : i + CUT] for i in range(0, len(self.sizes), CUT)]
        parts = rows.split([sum(sizes) for sizes in chunks], 1)
        for part, sizes in zip(reversed(parts), reversed(chunks), strict=True):
            yield from reversed(part.split(sizes, 1))

    def make_room(self, start: Tensor) -> Tensor:
        """Make a tensor of rows that begin with the start of each sequence, and are yet to be filled for each step."""
        directions, batch, size = start.shape
        room = start.new_empty(directions, batch + len(self.before), size)
        room[:, :batch] = start
        return room

    def pairs(self, room: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Give, step by step, the rows a step before of the sequences that have this step, and those of this step."""
        before = room[:, : self.sizes[0]]
        for after in self.split(room[:, self.sizes[0] :]):
            count = after.shape[1]
            yield before if before.shape[1] == count else before[:, :count], after
            before = after


def steps_of(lengths: Lengths) -> Steps:
    """Work out the steps; no length may be 0."""
    sizes, batch = lengths.step_sizes, len(lengths)
    firsts = list(accumulate(sizes, initial=0))
    ends = [0] * batch
    for place, i in enumerate(lengths.sequence_order):
        ends[i] = firsts[lengths.counts[i] - 1] + place
    # All steps have the sequences in one order, so that those that have this step were the first ones a step before.
    shifts = [0, *(batch - size for size in sizes[:-1])]
    shift, repeats, ends_of = ints(shifts, sizes, ends).split([len(sizes), len(sizes), batch])
    before = torch.repeat_interleave(shift, repeats, output_size=lengths.total)
    return Steps(sizes, before.add_(torch.arange(lengths.total, device="cpu")), ends_of, lengths.rank)


def turn_plan(lengths: Lengths) -> Plan:
    """Rows in packed order to those of every sequence back to front, in packed order too; its own inverse."""
    packed = packed_plan(lengths)
    turn = packed.inverse.take[reverse_plan(lengths).take[packed.take]]
    return Plan(turn, turn)
