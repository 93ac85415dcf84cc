"""Gradients that the backward passes of the kernels do not compute, from a second run by functions of PyTorch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def replay(
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    tensors: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    *,
    again: bool,
) -> list[Tensor | None]:
    """Run a function and return the gradients of those tensors that require them.

    Args:
        run: a function of these tensors, whose results have gradients.
        tensors: its arguments.
        gradients: those of each result; None without one.
        again: True if the gradients are to be differentiated in turn.

    Returns:
        a gradient for each of the tensors; None for one that requires none, or that the results do not depend on.
    """
    with torch.enable_grad():
        # Views, because one of them may be computed from another: no path through the caller's graph counts here.
        tensors = [part.view_as(part) for part in tensors]
        results = run(tensors)
        ends = [(result, gradient) for result, gradient in zip(results, gradients, strict=True) if gradient is not None]
        asked = [part for part in tensors if part.requires_grad]
        reached, of_reached = zip(*ends, strict=True)
        found = iter(torch.autograd.grad(reached, asked, of_reached, create_graph=again, allow_unused=True))
        return [next(found) if part.requires_grad else None for part in tensors]
