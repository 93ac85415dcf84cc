"""Borders: what stands around a sequence that is padded; and runs of rows, computed on the host."""

from typing import NamedTuple

import torch
from torch import Tensor

from seqbatch._lengths import Lengths


class Border(NamedTuple):
    """What a layer sets before the first and behind the last step of a sequence.

    Args:
        mode: "constant", "reflect", "replicate" or "circular", as in `torch.nn.functional.pad`; or "maximum", for a
            maximum over windows, where the padding is less than any step.
        left: steps that it adds before the first; a negative number of steps is cut off.
        right: the same behind the last.
    """

    mode: str = "constant"
    left: int = 0
    right: int = 0

    @property
    def least(self) -> int:
        """The fewest steps of a sequence that can be padded so, by the rules of `torch.nn.functional.pad`."""
        cut, most = max(-self.left, 0) + max(-self.right, 0), max(self.left, self.right, 0)
        if self.mode == "circular":
            return max(most + cut, 1)
        if self.mode in ("reflect", "replicate"):
            return max(most + 1 if self.mode == "reflect" else 1, 1 - self.left - self.right)
        return max(cut, 1)

    def sources(self, steps: Tensor, lengths: Tensor, dilation: int) -> Tensor:
        """Give the step that stands at each place, both counted from the first of the sequence; -1 where none does.

        Args:
            steps: `(places,)`, int64: from `-left` to before `length + right`.
            lengths: `(places,)`, int64: the steps of the sequence that the place is in.
            dilation: steps from one that a window reads to the next.
        """
        if self.mode == "reflect":
            steps = torch.minimum(steps.abs(), 2 * (lengths - 1) - steps.abs())
        elif self.mode == "replicate":
            steps = torch.minimum(steps.clamp(min=0), lengths - 1)
        elif self.mode == "circular":
            first, cut = max(-self.left, 0), max(-self.right, 0)
            steps = (steps - first) % (lengths - first - cut).clamp(min=1) + first
        elif self.mode == "maximum":
            # Every window that reads such a place reads this step too. It changes no maximum, and where all steps are
            # -inf the gradient goes to a step and not to the padding, as in PyTorch.
            steps = torch.where(steps < 0, steps % dilation, steps)
        return torch.where((steps >= 0) & (steps < lengths), steps, -1)

    def rows(self, lengths: Lengths, wide: Tensor, dilation: int = 1) -> Tensor:
        """Give the row of the flat values that stands at each place, their number where none does.

        Args:
            lengths: the lengths.
            wide: `(batch,)`, int64: how many places of each sequence, from the first of its border.
            dilation: as for `sources`.
        """
        places = int(wide.sum())
        counts, starts = (repeated(one, wide, places) for one in (lengths.tensor, lengths.offsets[:-1]))
        steps = self.sources(runs(torch.full_like(wide, -self.left), wide, places), counts, dilation)
        return torch.where(steps < 0, lengths.total, starts + steps)


def repeated(values: Tensor, counts: Tensor, total: int) -> Tensor:
    """Repeat each value as often as its count says, `total` times together; all of them `(batch,)` and int64.

    As `torch.repeat_interleave`, but without waking other threads for a handful of steps, and waiting for them.
    """
    jumps = values.diff(prepend=values.new_zeros(1))
    return values.new_zeros(total + 1).index_add_(0, counts.cumsum(0) - counts, jumps)[:total].cumsum(0)


def runs(starts: Tensor, counts: Tensor, total: int) -> Tensor:
    """Join the runs `start, start + 1, ...` of the given numbers of steps, `total` of them."""
    jumps = starts - torch.cat([starts.new_ones(1), (starts + counts)[:-1]])  # from where the one before would go on
    steps = torch.ones(total + 1, dtype=torch.int64, device="cpu").index_add_(0, counts.cumsum(0) - counts, jumps)
    return steps[:total].cumsum(0)
