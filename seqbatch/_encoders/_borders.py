"""Borders: the padding that a layer adds to each sequence, and the rows it is read from, computed on the host."""

from typing import NamedTuple

import torch
from torch import Tensor

from seqbatch._structure.plans import Plan, PlanWithLengths, ranges, repeat
from seqbatch._structure.sequence_lengths import Lengths


class Border(NamedTuple):
    """The padding that a layer adds before the first and after the last step of a sequence.

    Args:
        mode: "constant", "reflect", "replicate" or "circular", as in `torch.nn.functional.pad`; or "maximum", for a
            maximum over windows, where the padding is less than any step.
        left: steps that it adds before the first; a negative number is cut off.
        right: the same after the last.
    """

    mode: str = "constant"
    left: int = 0
    right: int = 0

    @property
    def least(self) -> int:
        """The smallest length that can be padded like this, by the rules of `torch.nn.functional.pad`."""
        cut, most = max(-self.left, 0) + max(-self.right, 0), max(self.left, self.right, 0)
        if self.mode == "circular":
            return max(most + cut, 1)
        if self.mode in ("reflect", "replicate"):
            return max(most + 1 if self.mode == "reflect" else 1, 1 - self.left - self.right)
        return max(cut, 1)

    def number(self, length: int) -> int:
        """Return the length of a padded sequence; an empty one stays empty."""
        return self.left + length + self.right if length else 0

    def sources(self, steps: Tensor, lengths: Tensor, dilation: int) -> Tensor:
        """Compute the step that each position holds, both counted from the first of the sequence; -1 for none.

        Args:
            steps: `(positions,)`, int64: from `-left` to before `length + right`.
            lengths: `(positions,)`, int64: the steps of the sequence that the position is in.
            dilation: the distance of the steps that a window reads.
        """
        if self.mode == "reflect":
            steps = torch.minimum(steps.abs(), 2 * (lengths - 1) - steps.abs())
        elif self.mode == "replicate":
            steps = torch.minimum(steps.clamp(min=0), lengths - 1)
        elif self.mode == "circular":
            first, cut = max(-self.left, 0), max(-self.right, 0)
            steps = (steps - first) % (lengths - first - cut).clamp(min=1) + first
        elif self.mode == "maximum":
            # Every window that reads such a position reads this step too, so no maximum changes. If all steps are
            # -inf, the gradient goes to a step and not to the padding, as in PyTorch.
            steps = torch.where(steps < 0, steps % dilation, steps)
        return torch.where((steps >= 0) & (steps < lengths), steps, -1)

    def rows(self, lengths: Lengths, widths: Tensor, dilation: int = 1) -> Tensor:
        """Compute the row of the flat values that each position holds; the number of rows for none.

        Args:
            lengths: the lengths.
            widths: `(batch,)`, int64: the number of positions of each sequence, from the first of its border.
            dilation: as for `sources`.
        """
        positions = int(widths.sum())
        counts, starts = (repeat(one, widths, positions) for one in (lengths.tensor, lengths.offsets[:-1]))
        steps = self.sources(ranges(torch.full_like(widths, -self.left), widths, positions), counts, dilation)
        return torch.where(steps < 0, lengths.total, starts + steps)


def border_layout(lengths: Lengths, border: Border) -> PlanWithLengths:
    """Lay out each sequence with its border."""
    widths = torch.where(lengths.tensor > 0, lengths.tensor + (border.left + border.right), 0)
    take = border.rows(lengths, widths)
    if border.mode == "constant":
        real = (take < lengths.total).nonzero().flatten()
        plan = Plan.match(take[real], real, lengths.total, len(take))
    else:
        plan = Plan.copy(take, may_fill=True)
    return PlanWithLengths.change(plan, lengths, tuple(widths.tolist()))
