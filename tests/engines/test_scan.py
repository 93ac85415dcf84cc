"""The backward pass of the scan engine: which gradients it computes, from which it is given, and what it refuses."""

from typing import Any

import pytest
import torch
from strategies import sequences
from torch import Tensor, nn

from seqbatch import encode_with_state
from seqbatch._lengths import Lengths
from seqbatch.engines import choose, scan


class Without(torch.autograd.Function):
    """A function of which no gradient comes back."""

    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        return given.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        return None


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_where_no_gradient_comes_back_it_gives_none(kind: Any, bidirectional: bool, create_graph: bool) -> None:
    layer = kind(2, 3, bidirectional=bidirectional, dtype=torch.float64)
    xs = sequences([3, 2], (2,))
    assert choose(layer, torch.cat(xs), Lengths((3, 2))) is scan.run
    _, state = encode_with_state(layer, xs)
    _, alone = layer(xs[0])
    for hidden in (state.hidden, alone[0]):  # as PyTorch's own
        apply: Any = Without.apply
        found = torch.autograd.grad(
            apply(hidden).sum(), list(layer.parameters()), allow_unused=True, create_graph=create_graph
        )
        assert found == (None,) * len(found)
