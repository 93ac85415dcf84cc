"""Plans: the index of each row when sequences are rearranged, whatever its features."""

from functools import partial
from itertools import accumulate
from typing import NamedTuple, Self

import torch
from torch import Tensor

from seqbatch._structure.lengths import Lengths, ints, to_device

# On the host, because `torch.set_default_device` must not move them.
_arange, _full, _tensor = (partial(make, device="cpu") for make in (torch.arange, torch.full, torch.tensor))


class Plan(NamedTuple):  # not an attrs class, because torch.compile cannot trace the __init__ of one
    """How the rows of one tensor become the rows of another: a gather, and the gather that undoes it.

    Args:
        take: `(rows_out,)`, int64: the source row of each output row. An index equal to the number of source rows
            means "no row": there the output is filled.
        give: `(rows_in,)`, int64: the output row that each source row went to, with the same meaning of "no row". None
            if a source row may be taken more than once, because no single gather undoes that.
        take_fills: whether `take` says "no row" anywhere.
        give_fills: whether `give` says "no row" anywhere.
    """

    take: Tensor
    give: Tensor | None
    take_fills: bool = False
    give_fills: bool = False

    @property
    def inverse(self) -> "Plan":
        """The plan that undoes this one."""
        assert self.give is not None, "rows that are taken more than once have no inverse"
        return Plan(self.give, self.take, self.give_fills, self.take_fills)

    def to(self, device: torch.device) -> Self:
        """Copy the plan to a device."""
        give = None if self.give is None else to_device(self.give, device)
        return type(self)(to_device(self.take, device), give, self.take_fills, self.give_fills)


def reverse_plan(lengths: Lengths) -> Plan:
    """Compute the plan that reverses every sequence."""
    ends = lengths.offsets[:-1] + lengths.offsets[1:] - 1
    back = ends.index_select(0, lengths.segment_ids) - _arange(lengths.total)
    return Plan(back, back)


def packed_plan(lengths: Lengths) -> Plan:
    """Compute the plan from flat values to the data of a PackedSequence: by step, the longest sequence first."""
    sizes, starts = lengths.step_sizes, list(accumulate(lengths.counts, initial=0))
    # In Python, because for so few integers that is faster than calling torch.
    parts = [list(accumulate(sizes, initial=0))[:-1], sizes, [starts[i] for i in lengths.sequence_order]]
    firsts, repeats, starts_in_order = ints(*parts).split([len(sizes), len(sizes), len(lengths)])
    steps = torch.repeat_interleave(repeats, output_size=lengths.total)
    places = _arange(lengths.total) - firsts.index_select(0, steps)
    take = starts_in_order.index_select(0, places) + steps
    return Plan(take, undo(take, lengths.total))


def padded_plan(lengths: Lengths, batch_first: bool, side: str, time: int) -> Plan:
    """Compute the plan from flat values to the rows of a padded tensor of `time` steps, its two axes as one."""
    stride, apart = (1, max(time, 1)) if batch_first else (len(lengths), 1)
    firsts = _arange(0, len(lengths) * apart, apart)
    if side == "left":
        firsts += (time - lengths.tensor) * stride
    shifts = torch.sub(firsts, lengths.offsets[:-1], alpha=stride)
    give = torch.repeat_interleave(shifts, lengths.tensor, output_size=lengths.total)
    give.add_(_arange(lengths.total), alpha=stride)
    cells = len(lengths) * time
    return Plan(undo(give, cells), give, take_fills=cells > lengths.total)


def masked_plan(mask: Tensor, batch_first: bool) -> Plan:
    """Compute the plan from the rows of a padded tensor, its two axes as one, to those where the mask is True."""
    if batch_first:
        take = mask.flatten().nonzero().flatten()
    else:
        rows, steps = mask.T.nonzero(as_tuple=True)
        take = steps * mask.shape[1] + rows
    return Plan(take, undo(take, mask.numel()), give_fills=mask.numel() > len(take))


def window_plan(starts: Tensor, lengths: Lengths, rows: int) -> Plan:
    """Compute the plan from a tensor of `rows` rows to flat values, by the row where each sequence starts.

    No two sequences may overlap.
    """
    take = _runs(starts, lengths.tensor)
    return Plan(take, undo(take, rows), give_fills=rows > lengths.total)


def edge_plan(lengths: Lengths, last: bool) -> Plan:
    """Compute the plan from flat values to the first or last step of each sequence; an empty one takes no row."""
    full = lengths.not_empty
    edges = lengths.offsets[1:][full] - 1 if last else lengths.offsets[:-1][full]
    take = _full((len(lengths),), lengths.total)
    take[full] = edges
    give = _full((lengths.total,), len(lengths))
    give[edges] = full
    return Plan(take, give, take_fills=len(full) < len(lengths), give_fills=lengths.total > len(full))


def select_plan(lengths: Lengths, chosen: list[int]) -> Plan:
    """Compute the plan from flat values to those of the chosen sequences, in the order chosen."""
    rows = _tensor(chosen, dtype=torch.int64)
    take = _runs(lengths.offsets[rows], lengths.tensor[rows])
    if len(set(chosen)) < len(chosen):
        return Plan(take, None)
    return Plan(take, undo(take, lengths.total), give_fills=len(take) < lengths.total)


def real_steps(lengths: Lengths, batch_first: bool, side: str, time: int) -> Tensor:
    """Compute the mask of real steps, `(batch, time)` or `(time, batch)`, bool, on the host."""
    steps = _arange(time)
    if side == "left":
        steps = steps.flip(0)
    counts = lengths.tensor
    return steps < counts[:, None] if batch_first else steps[:, None] < counts


def _runs(starts: Tensor, counts: Tensor) -> Tensor:
    """Compute the indices `start, start + 1, ...` of each sequence, `count` of them, end to end."""
    ends = counts.cumsum(0)
    return _arange(int(counts.sum())) + torch.repeat_interleave(starts - (ends - counts), counts)


def undo(index: Tensor, rows: int) -> Tensor:
    """Compute the gather that undoes a gather from `rows` rows; of a row that is taken twice it uses either copy."""
    return _full((rows,), len(index)).scatter_(0, index, _arange(len(index)))


def turn_plan(lengths: Lengths) -> Plan:
    """Compute the plan from packed rows to every sequence back to front, packed too; it is its own inverse."""
    packed = packed_plan(lengths)
    turn = packed.inverse.take[reverse_plan(lengths).take[packed.take]]
    return Plan(turn, turn)
