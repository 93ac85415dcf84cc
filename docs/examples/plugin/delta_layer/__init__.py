"""A layer that joins to each step its change since the step before; it does not import seqbatch."""

import torch
from torch import Tensor, nn

__all__ = ["Delta"]


class Delta(nn.Module):
    """Joins to the features of each step their change since the step before, times a learned weight.

    Args:
        features: the features of a step.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, steps: Tensor, starts: Tensor | None = None) -> Tensor:
        """Join to each step its change.

        Args:
            steps: `(steps, features)`.
            starts: `(steps,)`, bool, True where a sequence starts and the change is 0; by default at the first step.

        Returns:
            `(steps, 2 * features)`.
        """
        if starts is None:
            starts = torch.arange(len(steps), device=steps.device) == 0
        changes = (steps - steps.roll(1, 0)).masked_fill(starts[:, None], 0)
        return torch.cat([steps, self.weight * changes], 1)
