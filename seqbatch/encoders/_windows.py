"""Windows over steps: how many there are, and how sequences lie end to end so that no window of one reads another."""

from typing import Self, TypeVar

import attrs
import torch
from torch import Tensor

from seqbatch._lengths import Lengths, to_device
from seqbatch._plans import Plan, undo
from seqbatch.encoders._borders import Border, repeated, runs

_Count = TypeVar("_Count", int, Tensor)


@attrs.frozen
class Windows:
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
    border: Border = attrs.field(factory=Border)
    ceil: bool = False
    divides_by: str | None = None

    @property
    def span(self) -> int:
        """Steps from the first that a window reads to behind the last."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def least(self) -> int:
        """The fewest steps of a sequence that fill a window."""
        return max(self.span - self.border.left - self.border.right - self._spare, 1)

    @property
    def _spare(self) -> int:
        return self.stride - 1 if self.ceil else 0

    def may_read_nothing(self, length: int) -> bool:
        """Tell whether all that a window of so many steps reads may be padding, where PyTorch writes out of bounds."""
        return self.border.mode == "maximum" and self.border.left > 0 and length < self.dilation

    def are_dense(self, numbers: tuple[int, ...]) -> bool:
        """Tell whether so many windows of each sequence surely read all that is between the first and the last."""
        if self.dilation == 1:
            return self.stride <= self.kernel
        return self.stride == 1 and min(numbers, default=self.dilation) >= self.dilation

    def numbers(self, lengths: Tensor) -> Tensor:
        """Give how many windows a sequence has, which are the steps of its output, as PyTorch counts them.

        That is `(length + left + right - span) / stride + 1`, rounded down, or with `ceil` up, but then no window
        starts behind the last step; and none in a sequence of no steps.
        """
        return torch.where(lengths > 0, self._number(lengths), 0)

    def _number(self, length: _Count) -> _Count:
        left, right = self.border.left, self.border.right
        number = (length + (left + right - self.span + self._spare)) // self.stride + 1
        return number - 1 * ((number - 1) * self.stride >= length + left) if self.ceil else number

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


@attrs.frozen(eq=False)
class Layout:
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
    numbers = Lengths(tuple(windows.numbers(lengths.tensor).tolist()))
    changed = None if numbers.counts == lengths.counts else numbers
    if len({*lengths.counts} - {0}) == 1 and not windows.may_read_nothing(lengths.longest):
        return Layout(None, None, changed)
    first, reach, end = _spread(lengths.tensor, numbers.tensor, windows)
    long = _rounded(end - windows.border.left)
    number = windows._number(long)
    take = runs(first, numbers.tensor, numbers.total)
    pick = Plan(take, undo(take, number), give_fills=True)
    lay = _lay(lengths, windows, first * windows.stride, reach, long)
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


def _spread(lengths: Tensor, numbers: Tensor, windows: Windows) -> tuple[Tensor, Tensor, int]:
    """Set the sequences one behind another.

    Args:
        lengths: `(batch,)`, int64, in steps.
        numbers: `(batch,)`, int64: the windows of each sequence.
        windows: the windows.

    Returns:
        the first window of each sequence, counted in the long one; the steps from where its first window starts to
        where its last one ends; and the steps of the long one with the layer's own padding before it.
    """
    stride, left = windows.stride, windows.border.left
    reach = torch.where(numbers > 0, (numbers - 1) * stride + windows.span, 0)
    taken = reach
    if windows.border.mode == "constant":
        # The next sequence may start where the last window still reads, as long as it finds nothing but padding there.
        taken = torch.maximum(reach - left, reach.minimum(lengths + left))
    advance = torch.maximum((taken + stride - 1) // stride, numbers)
    start = -(-left // stride)
    end = (start + int(advance.sum())) * stride + max(windows.span, left + 1)
    return start + advance.cumsum(0) - advance, reach, end


def _rounded(steps: int) -> int:
    """Round up by 3 % at most: kernels are made for each number of steps anew, which takes longer than these few."""
    unit = 1 << max(steps.bit_length() - 6, 0)
    return -(-steps // unit) * unit


def _lay(lengths: Lengths, windows: Windows, starts: Tensor, reach: Tensor, long: int) -> Plan:
    """Plan the long sequence of `long` steps, in which the first windows start at `starts`, counted as in `_spread`."""
    border = windows.border
    if border.mode != "constant":
        wide = (lengths.tensor + (border.left + border.right)).minimum(reach)
        take = torch.full((long,), lengths.total, device="cpu")
        rows = border.rows(lengths, wide, windows.dilation)
        take[runs(starts - border.left, wide, len(rows))] = rows
        return Plan(take, None, take_fills=True)
    wide = lengths.tensor.minimum(reach - border.left).clamp(min=0)
    taken = int(wide.sum())
    give = runs(starts, wide, taken)
    if taken < lengths.total:
        kept = runs(lengths.offsets[:-1], wide, taken)
        give = torch.full((lengths.total,), long, device="cpu").scatter_(0, kept, give)
    return Plan(undo(give, long + 1)[:long], give, take_fills=True, give_fills=True)
