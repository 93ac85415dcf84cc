"""Dynamically quantized layers, which round what they are given by the range of all of it: each sequence runs alone."""

from typing import Any

import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import LSTMState, SeqbatchValueError, encode, encode_with_state

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
# Of ranges so unequal that what is rounded by the largest is lost in the others.
SPREAD = (1.0, 100.0, 1.0, 1.0)


def sequences(size: int) -> list[Tensor]:
    return [scale * torch.randn(length, size) for scale, length in zip(SPREAD, (4, 6, 0, 3), strict=True)]


def quantized_linear(kind: type[nn.Module] = quantized.Linear) -> Any:
    layer: Any = kind(5, 3)
    layer.set_weight_bias(torch.quantize_per_tensor(torch.randn(3, 5), 0.02, 0, torch.qint8), torch.randn(3))
    return layer


class InPlace(quantized.Linear):
    """A layer that changes what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.add_(1)[:, :3]


def test_one_that_works_in_place_leaves_what_is_the_callers() -> None:
    x = torch.zeros(4, 5)
    encode(quantized_linear(InPlace), x)
    assert not x.any()


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(2, 4), r"`sequences` must have features that end with \(5,\), for .*; got \(4,\)\."),
        (torch.zeros(0, 4), r"`sequences` must have features that end with \(5,\), for .*; got \(4,\)\."),
        (torch.zeros(2, 5).double(), r"`layer` must take features \(5,\) and torch\.float64; got .* PyTorch says: "),
    ],
)
def test_what_a_linear_does_not_take(x: Tensor, said: str) -> None:
    with pytest.raises(SeqbatchValueError, match=said):
        encode(quantized_linear(), [x])


def test_linear() -> None:
    layer: Any = quantized_linear()
    xs = sequences(5)
    entered: list[nn.Module] = []
    layer.register_forward_pre_hook(lambda module, args: entered.append(module))
    found = encode(layer, xs)
    assert entered == [layer]
    assert_close(found, [layer(x) if len(x) else torch.zeros(0, 3) for x in xs], rtol=0, atol=0)
    assert encode(layer, [torch.zeros(0, 2, 5)])[0].shape == (0, 2, 3)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("stateful", [False, True])
def test_recurrent_layers(kind: str, stateful: bool) -> None:
    layer: Any = getattr(quantized, kind)(5, 8, num_layers=2, bidirectional=True)
    xs = sequences(5)
    start = encode_with_state(layer, [100 * x for x in xs])[1] if stateful else None
    outputs, state = encode_with_state(layer, xs, start)
    for i, x in enumerate(xs):
        if not len(x):
            assert outputs[i].shape == (0, 16)
            continue
        before = () if start is None else (start[i].to_torch(),)
        alone, after = layer(x[:, None], *before)
        assert_close(outputs[i], alone[:, 0], rtol=0, atol=0)
        assert_close(state[i].to_torch(), after, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "calls"), [("LSTM", 3), ("GRU", 3), ("LSTMCell", 13), ("GRUCell", 13), ("RNNCell", 13)]
)
def test_hooks_run_for_each_sequence_and_of_a_cell_for_each_step(kind: str, calls: int) -> None:
    layer: Any = getattr(quantized, kind)(5, 8)
    entered: list[nn.Module] = []
    left: list[nn.Module] = []
    layer.register_forward_pre_hook(lambda module, args: entered.append(module))
    layer.register_forward_hook(lambda module, args, output: left.append(module))
    encode(layer, sequences(5))
    assert entered == left == [layer] * calls


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(kind: str) -> None:
    cell: Any = getattr(quantized, kind)(5, 8)
    xs = sequences(5)
    outputs, state = encode_with_state(cell, xs)
    for i, x in enumerate(xs):
        hidden: Any = None
        for step, found in zip(x, outputs[i], strict=True):
            hidden = cell(step[None], hidden)
            assert_close(found, (hidden[0] if isinstance(state, LSTMState) else hidden)[0], rtol=0, atol=0)
