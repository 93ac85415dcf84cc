"""Windows over steps: their number, and a layout of sequences end to end so that no window of one reads another."""

from itertools import accumulate
from typing import NamedTuple, Self

import torch
from torch import Tensor

from seqbatch._encoders._borders import Border
from seqbatch._structure.plans import Plan, ranges, repeat
from seqbatch._structure.sequence_lengths import Lengths, to_device


class Windows(NamedTuple):
    """The windows of a layer: where they start, what they read and how many a sequence has.

    Args:
        kernel: the number of steps that a window reads.
        stride: the distance between the starts of two windows.
        dilation: the distance of the steps that a window reads.
        border: the padding, which must not be negative.
        ceil: True if the last window may end after the padding, as with `ceil_mode`.
        divides_by: for a mean, what PyTorch divides by: the "real" steps, or the "padded" ones too; else None.
    """

    kernel: int
    stride: int
    dilation: int = 1
    border: Border = Border()
    ceil: bool = False
    divides_by: str | None = None

    @property
    def span(self) -> int:
        """The steps from the first that a window reads to after the last."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def least(self) -> int:
        """The smallest length that fills a window."""
        spare = self.stride - 1 if self.ceil else 0
        return max(self.span - self.border.left - self.border.right - spare, 1)

    def may_read_nothing(self, length: int) -> bool:
        """Return True if a window may read only padding, for this length; PyTorch would write out of bounds."""
        return self.border.mode == "maximum" and self.border.left > 0 and length < self.dilation

    def are_dense(self, numbers: tuple[int, ...]) -> bool:
        """Return True if the windows of each sequence, by their numbers, are known to read every step between them."""
        if self.dilation == 1:
            return self.stride <= self.kernel
        return self.stride == 1 and min(numbers, default=self.dilation) >= self.dilation

    def number(self, length: int) -> int:
        """Return the number of windows of a sequence, which is the length of its output, as in PyTorch.

        That is `(length + left + right - span) / stride + 1`, rounded down. With `ceil` it is rounded up, but no window
        starts after the last step. An empty sequence has none.
        """
        if not length:
            return 0
        room = self.border.left + length + self.border.right - self.span
        if not self.ceil:
            return room // self.stride + 1
        that_start_before_its_end = -(-(self.border.left + length) // self.stride)
        return min(-(-room // self.stride) + 1, that_start_before_its_end)

    def reach(self, number: int) -> int:
        """Return the steps from the start of the first to the end of the last of a number of windows."""
        return (number - 1) * self.stride + self.span if number else 0

    def corrections(self, lengths: Lengths, numbers: Lengths) -> Tensor:
        """Compute the factor of each window's mean that corrects its division by the kernel size: `(windows,)`."""
        number = numbers.total
        counts = repeat(lengths.tensor, numbers.tensor, number)
        start = ranges(numbers.tensor * 0, numbers.tensor, number) * self.stride - self.border.left
        if self.divides_by == "padded":
            divisor = (counts + self.border.right).minimum(start + self.kernel) - start
        else:
            divisor = counts.minimum(start + self.kernel) - start.clamp(min=0)
        return self.kernel / divisor.double()


class WindowLayout(NamedTuple):
    """All sequences in one long sequence, and which of its windows belong to a sequence.

    Args:
        plans: from flat values to the long sequence, and from its windows to the flat outputs; None without a long one.
        lengths: the lengths of the outputs; None if they are those of the sequences.
        corrections: `(windows,)`, float64: the factors of the flat outputs; None for 1.
    """

    plans: tuple[Plan, Plan] | None
    lengths: Lengths | None
    corrections: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """Copy the layout to a device."""
        plans = None if self.plans is None else (self.plans[0].to(device), self.plans[1].to(device))
        corrections = None if self.corrections is None else to_device(self.corrections, device)
        return type(self)(plans, self.lengths, corrections)


def window_layout(lengths: Lengths, windows: Windows, one_by_one: bool) -> WindowLayout:
    """Lay out all sequences in one long sequence, which the layer itself pads at its two ends.

    There is no long one for sequences that are run one by one, or of equal lengths, which allow a dense batch. Where
    PyTorch would then write out of bounds, there is one nevertheless.

    The sequences are so far apart that no window of one reads a step of another, and each starts at a multiple of the
    stride. Windows in between are computed and not picked. Steps that no picked window reads are left out, because the
    gradient of a weight is a sum over all windows, where even 0 times NaN counts.
    """
    # In Python, once per length, because for so few integers that is faster than calling torch.
    numbers_of = {length: windows.number(length) for length in {*lengths.counts}}
    numbers = Lengths(tuple(numbers_of[length] for length in lengths.counts))
    changed = None if numbers.counts == lengths.counts else numbers
    filled = numbers_of.keys() - {0}
    if filled and (one_by_one or len(filled) == 1) and not any(map(windows.may_read_nothing, filled)):
        return WindowLayout(None, changed)
    first, end = _first_windows(lengths, numbers_of, windows)
    steps = _round_to_few_sizes(end - windows.border.left)
    picked = ranges(first, numbers.tensor, numbers.total)
    rows, places = _rows_and_places(lengths, numbers_of, windows, first)
    if not windows.are_dense(numbers.counts):
        is_read = torch.zeros(windows.border.left + steps, dtype=torch.bool, device="cpu")
        for tap in range(0, windows.span, windows.dilation):
            is_read[picked * windows.stride + tap] = True
        is_read = is_read[windows.border.left :][places]
        rows, places = rows[is_read], places[is_read]
    if windows.border.mode == "constant":
        lay = Plan.match(rows, places, lengths.total, steps)
    else:
        take = torch.full((steps,), lengths.total, device="cpu").scatter_(0, places, rows)
        lay = Plan.copy(take, may_fill=True)
    pick = Plan.gather(picked, windows.number(steps))
    corrections = None if windows.divides_by is None else windows.corrections(lengths, numbers)
    return WindowLayout((lay, pick), changed, corrections)


def _first_windows(lengths: Lengths, numbers_of: dict[int, int], windows: Windows) -> tuple[Tensor, int]:
    """Compute where each sequence starts in the long one.

    Args:
        lengths: the lengths.
        numbers_of: the number of windows of a sequence, by its length.
        windows: the windows.

    Returns:
        `(batch,)`, int64: the index of each sequence's first window in the long one; and the steps of the long one with
        the layer's own padding before it.
    """
    stride, left = windows.stride, windows.border.left
    advance = {}
    for length, number in numbers_of.items():
        taken = windows.reach(number)
        if windows.border.mode == "constant":
            # The next sequence may start within the reach of the last window, as long as that reads padding only.
            taken = max(taken - left, min(taken, length + left))
        advance[length] = max(-(-taken // stride), number)
    *firsts, end = accumulate((advance[length] for length in lengths.counts), initial=-(-left // stride))
    return torch.tensor(firsts, dtype=torch.int64, device="cpu"), end * stride + max(windows.span, left + 1)


def _round_to_few_sizes(steps: int) -> int:
    """Round up by 3 % at most, because kernels are prepared for each size, which costs more than the extra steps."""
    unit = 1 << max(steps.bit_length() - 6, 0)
    return -(-steps // unit) * unit


def _rows_and_places(
    lengths: Lengths, numbers_of: dict[int, int], windows: Windows, first: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the rows of the flat values, and their places in the long sequence; arguments as in `_first_windows`."""
    border = windows.border
    # A constant border is not laid out, because it is what stands between sequences. So borders may overlap.
    is_laid = border.mode != "constant"
    left, both = (border.left, border.left + border.right) if is_laid else (0, 0)
    width_of = {
        length: min(length + both, max(windows.reach(number) - border.left + left, 0))
        for length, number in numbers_of.items()
    }
    widths = torch.tensor([width_of[length] for length in lengths.counts], dtype=torch.int64, device="cpu")
    if is_laid:
        rows = border.rows(lengths, widths, windows.dilation)
    else:
        rows = ranges(lengths.offsets[:-1], widths, int(widths.sum()))
    return rows, ranges(first * windows.stride - left, widths, len(rows))
