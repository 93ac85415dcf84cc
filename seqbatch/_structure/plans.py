"""Plans: the index of each row when sequences are rearranged, whatever its features."""

from collections.abc import Iterable
from functools import partial
from itertools import accumulate
from typing import NamedTuple, Self

import torch
from torch import Tensor

from seqbatch._structure.sequence_lengths import Lengths, int64_tensor, to_device

# On the host, because `torch.set_default_device` must not move them.
_arange, _full = (partial(make, device="cpu") for make in (torch.arange, torch.full))


class Plan(NamedTuple):  # not an attrs class, because torch.compile cannot trace the __init__ of one
    """How the rows of one tensor become the rows of another: a gather, and the gather that undoes it.

    Build one by the class methods, which derive the flags from sizes.

    Args:
        take: `(rows_out,)`, int64: the source row of each output row. An index equal to the number of source rows
            means "no row": there the output is filled.
        give: `(rows_in,)`, int64: the output row that each source row went to, with the same meaning of "no row". None
            if a source row may be taken more than once, because no single gather undoes that.
        take_fills: False if `take` says "no row" nowhere.
        give_fills: False if `give` says "no row" nowhere.
    """

    take: Tensor
    give: Tensor | None
    take_fills: bool
    give_fills: bool

    @classmethod
    def gather(cls, take: Tensor, rows_in: int) -> "Plan":
        """Build the plan that takes each source row at most once.

        Args:
            take: as above. It may say "no row" only if it takes every source row.
            rows_in: the number of source rows.
        """
        return cls(take, invert(take, rows_in), len(take) > rows_in, rows_in > len(take))

    @classmethod
    def scatter(cls, give: Tensor, rows_out: int) -> "Plan":
        """Build the plan that moves source row i to output row `give[i]`: the inverse of `gather`."""
        return cls.gather(give, rows_out).inverse

    @classmethod
    def involution(cls, take: Tensor) -> "Plan":
        """Build the plan of a permutation that is its own inverse."""
        return cls(take, take, take_fills=False, give_fills=False)

    @classmethod
    def match(cls, sources: Tensor, outputs: Tensor, rows_in: int, rows_out: int) -> "Plan":
        """Build the plan that moves source row `sources[i]` to output row `outputs[i]`, and fills all other outputs.

        Args:
            sources: `(rows,)`, int64, each row at most once.
            outputs: the same of output rows.
            rows_in: the number of source rows.
            rows_out: the number of output rows.
        """
        take = _full((rows_out,), rows_in).scatter_(0, outputs, sources)
        give = _full((rows_in,), rows_out).scatter_(0, sources, outputs)
        return cls(take, give, rows_out > len(sources), rows_in > len(sources))

    @classmethod
    def copy(cls, take: Tensor, *, may_fill: bool = False) -> "Plan":
        """Build a plan that may take a source row more than once, and so has no inverse."""
        return cls(take, None, may_fill, give_fills=False)

    @property
    def inverse(self) -> "Plan":
        """The plan that undoes this one."""
        assert self.give is not None, "rows that are taken more than once have no inverse"
        return Plan(self.give, self.take, self.give_fills, self.take_fills)

    def to(self, device: torch.device) -> Self:
        """Copy the plan to a device."""
        give = None if self.give is None else to_device(self.give, device)
        return type(self)(to_device(self.take, device), give, self.take_fills, self.give_fills)


class PlanWithLengths(NamedTuple):
    """A plan that changes lengths.

    Args:
        plan: from flat values to those of the new sequences.
        lengths: the lengths of the new sequences; None if they are those before.
    """

    plan: Plan
    lengths: Lengths | None

    @classmethod
    def change(cls, plan: Plan, before: Lengths, counts: tuple[int, ...]) -> "PlanWithLengths":
        """Pair a plan with new lengths, by their counts."""
        # None for those before, because they keep the plan, and a reference cycle is freed by the garbage collector.
        return cls(plan, None if counts == before.counts else Lengths(counts))

    def to(self, device: torch.device) -> Self:
        """Copy the plan to a device."""
        return type(self)(self.plan.to(device), self.lengths)


def reverse_plan(lengths: Lengths) -> Plan:
    """Compute the plan that reverses every sequence."""
    ends = lengths.offsets[:-1] + lengths.offsets[1:] - 1
    back = ends.index_select(0, lengths.segment_ids) - _arange(lengths.total)
    return Plan.involution(back)


def packed_plan(lengths: Lengths) -> Plan:
    """Compute the plan from flat values to the data of a PackedSequence: by step, the longest sequence first."""
    return _plan_by_step(lengths, accumulate(lengths.counts, initial=0), 1)


def packed_backward_plan(lengths: Lengths) -> Plan:
    """Compute the plan from flat values to the data of a PackedSequence of the reversed sequences."""
    return _plan_by_step(lengths, (end - 1 for end in accumulate(lengths.counts)), -1)


def _plan_by_step(lengths: Lengths, firsts: Iterable[int], direction: int) -> Plan:
    """Compute the plan from flat values to their rows by step, from the row of the first step of each sequence."""
    sizes, starts = lengths.batch_size_list, list(firsts)
    # In Python, because for so few integers that is faster than calling torch.
    parts = [list(accumulate(sizes, initial=0))[:-1], sizes, [starts[i] for i in lengths.order_list]]
    begins, repeats, starts_in_order = int64_tensor(*parts).split([len(sizes), len(sizes), len(lengths)])
    steps = torch.repeat_interleave(repeats, output_size=lengths.total)
    places = _arange(lengths.total) - begins.index_select(0, steps)
    take = starts_in_order.index_select(0, places).add(steps, alpha=direction)
    return Plan.gather(take, lengths.total)


def padded_plan(lengths: Lengths, batch_first: bool, side: str, time: int) -> Plan:
    """Compute the plan from flat values to the rows of a padded tensor of `time` steps, its two axes as one."""
    stride, apart = (1, max(time, 1)) if batch_first else (len(lengths), 1)
    firsts = _arange(0, len(lengths) * apart, apart)
    if side == "left":
        firsts += (time - lengths.tensor) * stride
    shifts = torch.sub(firsts, lengths.offsets[:-1], alpha=stride)
    give = torch.repeat_interleave(shifts, lengths.tensor, output_size=lengths.total)
    give.add_(_arange(lengths.total), alpha=stride)
    return Plan.scatter(give, len(lengths) * time)


def masked_plan(mask: Tensor, batch_first: bool) -> Plan:
    """Compute the plan from the rows of a padded tensor, its two axes as one, to those where the mask is True."""
    if batch_first:
        take = mask.flatten().nonzero().flatten()
    else:
        rows, steps = mask.T.nonzero(as_tuple=True)
        take = steps * mask.shape[1] + rows
    return Plan.gather(take, mask.numel())


def edge_plan(lengths: Lengths, last: bool) -> Plan:
    """Compute the plan from flat values to the first or last step of each sequence; an empty one takes no row."""
    full = lengths.not_empty
    edges = lengths.offsets[1:][full] - 1 if last else lengths.offsets[:-1][full]
    return Plan.match(edges, full, lengths.total, len(lengths))


def select_plan(lengths: Lengths, chosen: list[int]) -> Plan:
    """Compute the plan from flat values to those of the chosen sequences, in the order chosen."""
    rows = int64_tensor(chosen)
    counts = lengths.tensor[rows]
    take = ranges(lengths.offsets[rows], counts, int(counts.sum()))
    return Plan.copy(take) if len(set(chosen)) < len(chosen) else Plan.gather(take, lengths.total)


def joined_plan(parts: list[Lengths]) -> Plan:
    """Compute the plan from the flat values of batches, one after another, to their sequences end to end."""
    befores = accumulate((part.total for part in parts), initial=0)
    starts = torch.stack([part.offsets[:-1] + before for part, before in zip(parts, befores, strict=False)], 1)
    counts, total = torch.stack([part.tensor for part in parts], 1), sum(part.total for part in parts)
    return Plan.gather(ranges(starts.flatten(), counts.flatten(), total), total)


# -------------------------------------------------------------------------------------------------------------- indices


def invert(index: Tensor, rows: int) -> Tensor:
    """Compute the gather that undoes a gather from `rows` rows, where an index of `rows` means "no row".

    For a row that is taken twice it uses either copy.
    """
    return _full((rows + 1,), len(index)).scatter_(0, index, _arange(len(index)))[:rows]


def repeat(values: Tensor, counts: Tensor, total: int) -> Tensor:
    """Repeat each value by its count, `total` in all; values and counts are `(batch,)`, int64.

    This is `torch.repeat_interleave` without threads, which take longer to wake than a few steps do.
    """
    jumps = values.diff(prepend=values.new_zeros(1))
    return values.new_zeros(total + 1).index_add_(0, counts.cumsum(0) - counts, jumps)[:total].cumsum(0)


def ranges(starts: Tensor, counts: Tensor, total: int, *, step: int = 1) -> Tensor:
    """Compute the indices `start, start + step, ...` of each sequence, `count` of them, end to end; `total` in all."""
    ends = torch.add(starts, counts, alpha=step)
    jumps = starts - torch.cat([starts.new_full((1,), step), ends[:-1]])  # from the end of the sequence before
    steps = _full((total + 1,), step).index_add_(0, counts.cumsum(0) - counts, jumps)
    return steps[:total].cumsum(0)
