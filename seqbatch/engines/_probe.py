"""Trying, at import, whether an operator that PyTorch does not document is there and does what it should."""

from collections.abc import Callable

import torch
from torch import Tensor

from seqbatch.engines._interface import Hidden


def is_lstm(run: Callable[[Tensor, Hidden, list[Tensor]], tuple[Tensor, ...]]) -> bool:
    """Tell whether a function runs an LSTM.

    Args:
        run: from steps `(steps, count, features)`, hidden state and cell `(1, count, size)`, and the weights of input
            and hidden state, to output, hidden state and cell.
    """
    try:
        # Whatever is set where this is imported.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            block, gates = (torch.ones(*shape, device="cpu", dtype=torch.float32) for shape in ((1, 1, 1), (4, 1)))
            state = torch.zeros_like(block)
            output, _, cell = run(block, (state, state), [gates, gates])
            opened = block.sigmoid()
            wanted = opened * block.tanh()
            return torch.allclose(cell, wanted) and torch.allclose(output, opened * wanted.tanh())
    except Exception:  # whatever it raises, there is another way
        return False
