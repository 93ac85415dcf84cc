"""An LSTM's layer whose weights are laid out for oneDNN once for many blocks, where no gradients are wanted.

`torch.lstm` lays them out anew in every call.
"""

from typing import Any

import torch
from torch import Tensor

from seqbatch.engines._interface import Hidden
from seqbatch.engines._probe import is_lstm

# The number by which oneDNN's operator knows an LSTM.
_LSTM = 2


def lay_out(weights: list[Tensor], steps: int, count: int) -> list[Tensor]:
    """Lay out the weights of one layer in one direction, for blocks of any size; without biases it gets zeros.

    Args:
        weights: `(4 * size, features)`, `(4 * size, size)` and two biases `(4 * size,)` or none.
        steps: of a block.
        count: of the sequences in it.
    """
    size, features = weights[1].shape[1], weights[0].shape[1]
    operator: Any = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight
    biases = weights[2:] or [weights[0].new_zeros(4 * size)] * 2
    return [*operator(weights[0], weights[1], size, False, True, False, [steps, count, features]), *biases]


def run_laid_out(block: Tensor, start: Hidden, weights: list[Tensor]) -> tuple[Tensor, ...]:
    """Run a block as `torch.lstm` does.

    Args:
        block: `(steps, count, features)`.
        start: hidden state and cell, `(1, count, size)`.
        weights: what `lay_out` gave.

    Returns:
        output, hidden state and cell.
    """
    hidden, cell = start
    operator: Any = torch.mkldnn_rnn_layer
    results = operator(
        block, *weights, hidden[0], cell[0], False, [], _LSTM, hidden.shape[2], 1, True, False, False, False
    )
    output, hidden, cell, _ = results
    return output, hidden.view_as(start[0]), cell.view_as(start[1])


def probe() -> bool:
    """Try whether this PyTorch has the operators, which it does not document, and they do what they should."""
    return is_lstm(lambda block, start, weights: run_laid_out(block, start, lay_out(weights, *block.shape[:2])))


IS_THERE = probe()
