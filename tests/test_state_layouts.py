"""States in PyTorch's layout: there and back as views, and objects that are not a state of the layer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from laws import tensors_of
from strategies import for_all_lengths, make, recurrent_layers, state_for
from torch import nn
from torch.testing import assert_close

from seqbatch import LSTMState, RNNState, SeqbatchTypeError, SeqbatchValueError


@for_all_lengths(layer=recurrent_layers())
def test_pytorchs_layout_and_back_are_views(lengths: list[int], layer: nn.RNNBase) -> None:
    state = state_for(layer, len(lengths))
    hx = state.to_torch()
    back = type(state).from_torch(hx, layer)  # type: ignore[arg-type]  # each by its own kind
    parts = hx if isinstance(hx, tuple) else (hx,)
    directions = 2 if layer.bidirectional else 1
    for part, old, new in zip(parts, tensors_of(state), tensors_of(back), strict=True):
        assert part.shape == (layer.num_layers * directions, len(lengths), old.shape[3])
        assert part.data_ptr() == old.data_ptr() == new.data_ptr()
        assert_close(new, old)
    if lengths:
        steps = make((1, len(lengths), layer.input_size), torch.float64)
        layer(steps.transpose(0, 1) if layer.batch_first else steps, hx)  # PyTorch takes it


def test_pytorchs_layout_goes_by_layer_then_direction() -> None:
    layer = nn.GRU(5, 3, num_layers=2, bidirectional=True)
    _, hx = layer(torch.randn(7, 4, 5))
    state = RNNState.from_torch(hx, layer)
    for i in range(2):
        for direction in range(2):
            assert_close(state.hidden[i, direction], hx[2 * i + direction])


PAIR = (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: LSTMState.from_torch(PAIR[0], nn.LSTM(5, 4, 2)),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`hx` must be a pair \(hidden, cell\) of Tensors; got a torch\.Tensor\.",
        ),
        (
            lambda: LSTMState.from_torch((*PAIR, PAIR[0]), nn.LSTM(5, 4, 2)),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`hx` must be a pair \(hidden, cell\) of Tensors; got a tuple\.",
        ),
        (
            lambda: LSTMState.from_torch((PAIR[0], [0.0]), nn.LSTM(5, 4, 2)),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`hx\[1\]` must be a Tensor; got a list\.",
        ),
        (
            lambda: LSTMState.from_torch((PAIR[0], PAIR[1][:1]), nn.LSTM(5, 4, 2)),
            SeqbatchValueError,
            r"`hx\[1\]` must have shape \(2, batch, 4\), 2 layers x 1 direction; got \(1, 3, 4\)\.",
        ),
        (
            lambda: RNNState.from_torch(PAIR, nn.GRU(5, 4, 2)),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`hx` must be a Tensor; got a tuple\.",
        ),
        (
            lambda: RNNState.from_torch(PAIR[0], nn.GRU(5, 4, 2, bidirectional=True)),
            SeqbatchValueError,
            r"`hx` must have shape \(4, batch, 4\), 2 layers x 2 directions; got \(2, 3, 4\)\.",
        ),
        (
            lambda: RNNState.from_torch(PAIR[0][0], nn.GRU(5, 4, 2)),
            SeqbatchValueError,
            r"`hx` must have shape \(2, batch, 4\), 2 layers x 1 direction; got \(3, 4\)\. For a state without a batch "
            r"pass hx\[:, None\]\.",
        ),
        (
            lambda: LSTMState.from_torch((PAIR[0], PAIR[1][0]), nn.LSTM(5, 4, 2)),
            SeqbatchValueError,
            r"`hx\[1\]` must have shape .*; got \(3, 4\)\. For a state without a batch pass hx\[1\]\[:, None\]\.",
        ),
        (
            lambda: RNNState.from_torch(PAIR[0], nn.RNN(5, 3, 2)),
            SeqbatchValueError,
            r"`hx` must have shape \(2, batch, 3\), 2 layers x 1 direction; got \(2, 3, 4\)\.$",
        ),
        (
            lambda: RNNState.from_torch(PAIR[0][None], nn.RNN(5, 4, 2)),
            SeqbatchValueError,
            r"`hx` must have shape \(2, batch, 4\), .*; got \(1, 2, 3, 4\)\.$",
        ),
        (
            lambda: LSTMState.from_torch(PAIR, nn.LSTM(5, 4, 2, proj_size=3)),
            SeqbatchValueError,
            r"`hx\[0\]` must have shape \(2, batch, 3\), 2 layers x 1 direction; got \(2, 3, 4\)\.",
        ),
        (
            lambda: LSTMState.from_torch((PAIR[0], PAIR[1][..., :3]), nn.LSTM(5, 4, 2)),
            SeqbatchValueError,
            r"`hx\[1\]` must have shape \(2, batch, 4\), 2 layers x 1 direction; got \(2, 3, 3\)\.",
        ),
        (
            lambda: LSTMState.from_torch((PAIR[0], PAIR[1][:, :2]), nn.LSTM(5, 4, 2)),
            SeqbatchValueError,
            r"`cell` must have layers, directions and batch \(2, 1, 3\), as `hidden`; got \(2, 1, 2\)\.",
        ),
        (
            lambda: RNNState.from_torch(PAIR[0].long(), nn.GRU(5, 4, 2)),
            SeqbatchTypeError,
            r"`hidden` must be floating; got torch\.int64\.",
        ),
        (
            lambda: LSTMState.from_torch(PAIR, nn.GRU(5, 4, 2)),
            SeqbatchTypeError,
            r"`layer` must be a layer of PyTorch of mode LSTM; got a torch\.nn\.modules\.rnn\.GRU\.",
        ),
        (
            lambda: RNNState.from_torch(PAIR[0], nn.LSTM(5, 4, 2)),
            SeqbatchTypeError,
            r"`layer` must be a layer of PyTorch of mode GRU or RNN_TANH or RNN_RELU; got a torch\..*\.LSTM\.",
        ),
        (
            lambda: RNNState.from_torch(PAIR[0], nn.Linear(5, 4)),
            SeqbatchTypeError,
            r"`layer` must be a layer of PyTorch of mode GRU or RNN_TANH or RNN_RELU; got a torch",
        ),
    ],
)
def test_bad_layouts_of_pytorch(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
