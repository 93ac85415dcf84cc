"""Windows over steps: how many there are, and how sequences lie end to end so that no window of one reads another."""

from itertools import accumulate
from typing import NamedTuple, Self

import torch
from torch import Tensor

from seqbatch._lengths import Lengths, to_device
from seqbatch._plans import Plan, undo
from seqbatch.encoders._borders import Border, repeated, runs


class Windows(NamedTuple):
    """The windows of a layer: where they start, what they read and how many a sequence has.

    Args:
        kernel: how many steps one reads.
        stride: steps from the start of one window to that of the next.
        dilation: steps from one that a window reads to the next.
        border: the padding, of no negative number of steps.
        ceil: whether the last window may end behind the padding, as with `ceil_mode`.
        divides_by: for a mean, what PyTorch divides by: the steps that are "real" or those "padded" too; else None.
    """

    kernel: int
    stride: int
    dilation: int = 1
    border: Border = Border()
    ceil: bool = False
    divides_by: str | None = None

    @property
    def span(self) -> int:
        """Steps from the first that a window reads to behind the last."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def least(self) -> int:
        """The fewest steps of a sequence that fill a window."""
        spare = self.stride - 1 if self.ceil else 0
        return max(self.span - self.border.left - self.border.right - spare, 1)

    def may_read_nothing(self, length: int) -> bool:
        """Tell whether all that a window of so many steps reads may be padding, where PyTorch writes out of bounds."""
        return self.border.mode == "maximum" and self.border.left > 0 and length < self.dilation

    def are_dense(self, numbers: tuple[int, ...]) -> bool:
        """Tell whether so many windows of each sequence surely read all that is between the first and the last."""
        if self.dilation == 1:
            return self.stride <= self.kernel
        return self.stride == 1 and min(numbers, default=self.dilation) >= self.dilation

    def number(self, length: int) -> int:
        """Give how many windows a sequence has, which are the steps of its output, as PyTorch counts them.

        That is `(length + left + right - span) / stride + 1`, rounded down, or with `ceil` up, but then no window
        starts behind the last step; and none in a sequence of no steps.
        """
        if not length:
            return 0
        room = self.border.left + length + self.border.right - self.span
        if not self.ceil:
            return room // self.stride + 1
        that_start_before_its_end = -(-(self.border.left + length) // self.stride)
        return min(-(-room // self.stride) + 1, that_start_before_its_end)

    def reach(self, number: int) -> int:
        """Give the steps from where the first of so many windows starts to where the last ends."""
        return (number - 1) * self.stride + self.span if number else 0

    def corrections(self, lengths: Lengths, numbers: Lengths) -> Tensor:
        """Give what the mean of each window is to be multiplied by if it was divided by the kernel: `(windows,)`."""
        number = numbers.total
        counts = repeated(lengths.tensor, numbers.tensor, number)
        start = runs(numbers.tensor * 0, numbers.tensor, number) * self.stride - self.border.left
        if self.divides_by == "padded":
            divisor = (counts + self.border.right).minimum(start + self.kernel) - start
        else:
            divisor = counts.minimum(start + self.kernel) - start.clamp(min=0)
        return self.kernel / divisor.double()


class Layout(NamedTuple):
    """How the steps of all sequences lie in one long sequence, and which of its windows are theirs.

    Args:
        lay: flat values to the long sequence; None where sequences of equal length need none, but are a batch.
        pick: the windows of the long sequence to the flat values of the outputs; None as before.
        lengths: those of the outputs; None if they are those of the sequences.
        corrections: `(windows,)`, float64: what the windows of the long sequence are to be multiplied by; None for 1.
    """

    lay: Plan | None
    pick: Plan | None
    lengths: Lengths | None
    corrections: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """Copy the layout to a device."""
        lay, pick = (None if plan is None else plan.to(device) for plan in (self.lay, self.pick))
        corrections = None if self.corrections is None else to_device(self.corrections, device)
        return type(self)(lay, pick, self.lengths, corrections)


def border_layout(lengths: Lengths, border: Border) -> Layout:
    """Each sequence with its border; a layout of which nothing need be picked."""
    wide = torch.where(lengths.tensor > 0, lengths.tensor + (border.left + border.right), 0)
    take = border.rows(lengths, wide)
    give = undo(take, lengths.total + 1)[: lengths.total] if border.mode == "constant" else None
    padded = tuple(wide.tolist())
    return Layout(Plan(take, give, True, True), None, None if padded == lengths.counts else Lengths(padded))


def window_layout(lengths: Lengths, windows: Windows) -> Layout:
    """All sequences in one long one, which the layer pads once more, at the two ends, where no window of theirs is.

    They stand so far apart that no window of one reads a step of another, each where a stride puts its first window.
    Windows in between are computed and not picked. What no window of theirs reads is left out, for the gradient of a
    weight is a sum over all windows, where even 0 times NaN counts.
    """
    # Of each length once, for a tensor of a few numbers takes longer to work with than the numbers do.
    numbers_of = {length: windows.number(length) for length in {*lengths.counts}}
    numbers = Lengths(tuple(numbers_of[length] for length in lengths.counts))
    changed = None if numbers.counts == lengths.counts else numbers
    if len(numbers_of.keys() - {0}) == 1 and not windows.may_read_nothing(lengths.longest):
        return Layout(None, None, changed)
    first, end = _spread(lengths, numbers_of, windows)
    long = _rounded(end - windows.border.left)
    number = windows.number(long)
    take = runs(first, numbers.tensor, numbers.total)
    pick = Plan(take, undo(take, number), give_fills=True)
    lay = _lay(lengths, numbers_of, windows, first * windows.stride, long)
    if not windows.are_dense(numbers.counts):
        read = torch.zeros(windows.border.left + long, dtype=torch.bool, device="cpu")
        for tap in range(0, windows.span, windows.dilation):
            read[pick.take * windows.stride + tap] = True
        unread = ~read[windows.border.left :]
        lay.take[unread] = lengths.total
        if lay.give is not None:
            lay.give[torch.cat([unread, unread.new_ones(1)])[lay.give]] = long
    corrections = None
    if windows.divides_by is not None:
        corrections = torch.ones(number, dtype=torch.float64, device="cpu")
        corrections[pick.take] = windows.corrections(lengths, numbers)
    return Layout(lay, pick, changed, corrections)


def _spread(lengths: Lengths, numbers_of: dict[int, int], windows: Windows) -> tuple[Tensor, int]:
    """Set the sequences one behind another.

    Args:
        lengths: the lengths.
        numbers_of: how many windows a sequence of each length has.
        windows: the windows.

    Returns:
        `(batch,)`, int64: the first window of each sequence, counted in the long one; and the steps of the long one
        with the layer's own padding before it.
    """
    stride, left = windows.stride, windows.border.left
    advance = {}
    for length, number in numbers_of.items():
        taken = windows.reach(number)
        if windows.border.mode == "constant":
            # The next sequence may start where the last window still reads, as long as it finds nothing but padding.
            taken = max(taken - left, min(taken, length + left))
        advance[length] = max(-(-taken // stride), number)
    *firsts, end = accumulate((advance[length] for length in lengths.counts), initial=-(-left // stride))
    return torch.tensor(firsts, dtype=torch.int64, device="cpu"), end * stride + max(windows.span, left + 1)


def _rounded(steps: int) -> int:
    """Round up by 3 % at most: kernels are made for each number of steps anew, which takes longer than these few."""
    unit = 1 << max(steps.bit_length() - 6, 0)
    return -(-steps // unit) * unit


def _lay(lengths: Lengths, numbers_of: dict[int, int], windows: Windows, starts: Tensor, long: int) -> Plan:
    """Plan the long sequence of `long` steps, in which the first windows start at `starts`, counted as in `_spread`."""
    border = windows.border
    if border.mode != "constant":
        both = border.left + border.right
        wide = _each(lengths, {length: min(length + both, windows.reach(n)) for length, n in numbers_of.items()})
        take = torch.full((long,), lengths.total, device="cpu")
        rows = border.rows(lengths, wide, windows.dilation)
        take[runs(starts - border.left, wide, len(rows))] = rows
        return Plan(take, None, take_fills=True)
    read = {length: min(length, max(windows.reach(number) - border.left, 0)) for length, number in numbers_of.items()}
    if all(read[length] == length for length in read):
        give = runs(starts, lengths.tensor, lengths.total)
    else:
        wide = _each(lengths, read)
        taken = int(wide.sum())
        kept = runs(lengths.offsets[:-1], wide, taken)
        give = torch.full((lengths.total,), long, device="cpu").scatter_(0, kept, runs(starts, wide, taken))
    return Plan(undo(give, long + 1)[:long], give, take_fills=True, give_fills=True)


def _each(lengths: Lengths, values: dict[int, int]) -> Tensor:
    """Give the value of each sequence by its length: `(batch,)`, int64."""
    return torch.tensor([values[length] for length in lengths.counts], dtype=torch.int64, device="cpu")
