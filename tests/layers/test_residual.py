"""Every law for Residual, around layers that keep a state and layers that do not."""

from collections.abc import Callable
from typing import Any

import laws
import pytest
import torch
from hypothesis import strategies as st
from parametrize import for_each_kind
from strategies import sequences, state_for
from torch import nn

from seqbatch import (
    ContainerState,
    LSTMState,
    SeqbatchTypeError,
    SeqbatchValueError,
    UnsupportedLayerError,
    encode,
    encode_with_state,
    is_recurrent,
    register_encoder,
)
from seqbatch.layers import FirstStep, Residual


def build(make: Callable[[], nn.Module]) -> nn.Module:
    laws.seed(0)
    return make().double()


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(2, 2),
    "in place": lambda: nn.ReLU(inplace=True),
    "lstm": lambda: nn.LSTM(2, 2, num_layers=2),
    "two-way": lambda: nn.GRU(2, 1, bidirectional=True),
    "stack": lambda: nn.Sequential(nn.Linear(2, 3), nn.GRU(3, 2)),
    "nested": lambda: Residual(nn.RNN(2, 2)),
}
inner_layers = {name: st.builds(build, st.just(make)) for name, make in LAYERS.items()}


def start(layer: nn.Module, batch: int) -> Any:
    if isinstance(layer, Residual):
        return start(layer.layer, batch)
    if isinstance(layer, nn.Sequential):
        return ContainerState(tuple(start(child, batch) for child in layer))
    return state_for(layer, batch) if isinstance(layer, nn.RNNBase) else None


@for_each_kind("inner", inner_layers, fewer=2, stateful=st.booleans())
def test_alone(lengths: list[int], inner: nn.Module, stateful: bool) -> None:
    xs = sequences(lengths, (2,))
    laws.check_alone(Residual(inner), xs, start(inner, len(xs)) if stateful else None)


@for_each_kind("inner", inner_layers, fewer=4)
def test_padding(lengths: list[int], inner: nn.Module) -> None:
    laws.check_padding(Residual(inner), sequences(lengths or [0], (2,)), float("nan"), "right", True)


@for_each_kind("inner", inner_layers, fewer=3, stateful=st.booleans(), random=st.randoms(use_true_random=False))
def test_other_laws(lengths: list[int], inner: nn.Module, stateful: bool, random: Any) -> None:
    layer, xs = Residual(inner), sequences(lengths or [0], (2,))
    state = start(inner, len(xs)) if stateful else None
    laws.check_order(layer, xs, random.sample(range(len(xs)), len(xs)), state)
    laws.check_lengths(layer, xs)
    laws.check_empty(layer, xs, state)
    laws.check_called_as_itself(layer, xs)
    laws.check_unmodified(layer, xs, state)


@pytest.mark.parametrize("inner", [nn.Linear(32, 32), nn.GRU(32, 32)])
def test_memory(inner: nn.Module) -> None:
    laws.check_memory(Residual(inner), 32, times=40)


def test_the_state_is_that_of_the_layer() -> None:
    layer = Residual(nn.LSTM(2, 2))
    xs = sequences([3, 0], (2,), torch.float32)
    _, state = encode_with_state(layer, xs)
    assert isinstance(state, LSTMState)
    assert encode_with_state(layer, xs, state)[1].batch_size == 2
    assert is_recurrent(layer)
    assert not is_recurrent(Residual(nn.Linear(2, 2)))
    with pytest.raises(UnsupportedLayerError, match=r"`layer` must keep a state; got .*Residual, which keeps none"):
        encode_with_state(Residual(nn.Linear(2, 2)), xs)


def test_many_layers() -> None:
    model = nn.Sequential(*(Residual(nn.GRU(2, 2)) for _ in range(3))).double()
    laws.check_alone(model, sequences([3, 0, 5], (2,)))


class Halve(nn.Module):
    """A layer that changes lengths."""


@register_encoder(Halve)
def _(layer: Halve, batch: Any) -> Any:
    return batch[[0] * batch.batch_size]


@pytest.mark.parametrize(
    ("layer", "lengths", "message"),
    [
        (
            nn.Linear(2, 1),
            [3, 1],
            r"`layer\.layer` must keep the features of its input, for a residual connection; got \(1,\) from \(2,\)\. "
            r"It is Linear\(in_features=2, .*\)\.",
        ),
        (
            nn.GRU(2, 1),
            [0, 0],
            r"must keep the features of its input, for .*; got \(1,\) from \(2,\)\. It is GRU",
        ),
        (
            FirstStep(),
            [3, 1],
            r"`layer\.layer` must keep the lengths of its input, .*; got \(1, 1\) from \(3, 1\)\. It",
        ),
        (Halve(), [3, 1], r"`layer\.layer` must keep the lengths of its input, .*; got \(3, 3\) from \(3, 1\)\. It is"),
    ],
)
def test_layers_that_change_what_must_stay(layer: nn.Module, lengths: list[int], message: str) -> None:
    with pytest.raises(SeqbatchValueError, match=message):
        encode(Residual(layer), sequences(lengths, (2,), torch.float32))
    if len(set(lengths)) == 1:
        with pytest.raises(SeqbatchValueError, match=message):
            Residual(layer)(torch.zeros(lengths[0], 2))


def test_errors_of_the_layer() -> None:
    layer = Residual(nn.LSTM(2, 2))
    message = r"`sequences` must have features \(2,\), for LSTM\(2, 2\); got \(3,\)\."
    laws.check_refused(layer, [torch.zeros(3, 3)], SeqbatchValueError, message)
    message = r"`state` must be an LSTMState, for LSTM\(2, 2\); got a torch\.Tensor\."
    laws.check_refused(layer, [torch.zeros(3, 2)], SeqbatchTypeError, message, torch.zeros(1, 1, 2))
    with pytest.raises(UnsupportedLayerError, match=r"`layer` must have an encoder; got a torch.*Conv3d: none is"):
        encode(Residual(nn.Conv3d(1, 1, 1)), [torch.zeros(3, 2)])
