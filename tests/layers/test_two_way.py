"""Every law for TwoWay, of layers that keep a state and layers that do not, and what cannot be joined."""

from typing import Any

import laws
import pytest
import torch
from hypothesis import strategies as st
from parametrize import for_each_kind
from strategies import for_all_lengths, sequences, state_for
from torch import nn
from torch.testing import assert_close

from seqbatch import (
    ContainerState,
    LSTMState,
    SeqbatchTypeError,
    SeqbatchValueError,
    SequenceBatch,
    encode,
    encode_with_state,
    is_recurrent,
    register_encoder,
)
from seqbatch.layers import FirstStep, LastStep, LayerNormLSTM, Residual, TwoWay


def build(kind: str) -> nn.Module:
    laws.seed(0)
    layers: dict[str, Any] = {
        "linear": lambda: nn.Linear(2, 2),
        "lstm": lambda: nn.LSTM(2, 3, num_layers=2),
        "gru": lambda: nn.GRU(2, 1),
        "cell": lambda: nn.RNNCell(2, 2),
        "residual": lambda: Residual(nn.RNN(2, 2)),
    }
    layer: nn.Module = layers[kind]().double()
    return layer


NAMES = ["linear", "lstm", "gru", "cell", "residual"]
# By the kind of the layer that goes forward; that of the other is drawn.
two_ways = {
    name: st.builds(TwoWay, st.builds(build, st.just(name)), st.sampled_from(NAMES).map(build)) for name in NAMES
}


def start(layer: nn.Module, batch: int) -> Any:
    if isinstance(layer, TwoWay):
        return ContainerState((start(layer.forward_layer, batch), start(layer.backward_layer, batch)))
    if isinstance(layer, Residual):
        return start(layer.layer, batch)
    if isinstance(layer, nn.RNNCell):
        return state_for(nn.RNN(2, 2).double(), batch)
    return state_for(layer, batch) if isinstance(layer, nn.RNNBase) else None


def start_if_any(layer: TwoWay, batch: int, stateful: bool) -> Any:
    return start(layer, batch) if stateful and is_recurrent(layer) else None


@for_each_kind("layer", two_ways, stateful=st.booleans())
def test_alone(lengths: list[int], layer: TwoWay, stateful: bool) -> None:
    xs = sequences(lengths, (2,))
    laws.check_alone(layer, xs, start_if_any(layer, len(xs), stateful))


@for_each_kind("layer", two_ways, fewer=4)
def test_padding(lengths: list[int], layer: TwoWay) -> None:
    laws.check_padding(layer, sequences(lengths or [0], (2,)), float("nan"), "right", True)


@for_each_kind("layer", two_ways, fewer=2, stateful=st.booleans(), random=st.randoms(use_true_random=False))
def test_other_laws(lengths: list[int], layer: TwoWay, stateful: bool, random: Any) -> None:
    xs = sequences(lengths or [0], (2,))
    state = start_if_any(layer, len(xs), stateful)
    laws.check_order(layer, xs, random.sample(range(len(xs)), len(xs)), state)
    laws.check_lengths(layer, xs)
    laws.check_empty(layer, xs, state)
    laws.check_unmodified(layer, xs, state)


@laws.fewer_examples(2)
@for_all_lengths(layer=st.builds(TwoWay, *(st.sampled_from(["linear", "lstm", "gru"]).map(build) for _ in range(2))))
def test_called_as_itself(lengths: list[int], layer: TwoWay) -> None:
    laws.check_called_as_itself(layer, sequences(lengths, (2,)))


@laws.fewer_examples(3)
@for_all_lengths(kind=st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]))
def test_two_layers_are_a_layer_of_two_directions(lengths: list[int], kind: Any) -> None:
    both = kind(2, 3, bidirectional=True, dtype=torch.float64)
    ways = [kind(2, 3, dtype=torch.float64) for _ in range(2)]
    for name, weight in ways[0].named_parameters():
        weight.data = getattr(both, name).data
        getattr(ways[1], name).data = getattr(both, f"{name}_reverse").data
    xs = sequences(lengths, (2,))
    (found, states), (wanted, state) = encode_with_state(TwoWay(*ways), xs), encode_with_state(both, xs)
    assert_close(found, wanted)
    assert_close(torch.cat([states.states[0].hidden, states.states[1].hidden], 1), state.hidden)


def test_memory() -> None:
    laws.check_memory(TwoWay(nn.GRU(32, 32), nn.LSTM(32, 32)), 32, times=60)


def test_pools_give_first_and_last() -> None:
    x = torch.arange(6.0).view(3, 2)
    layer = TwoWay(FirstStep(), LastStep())  # the last of the reversed sequence, which is the first
    assert_close(encode(layer, [x, x[:0]]), [torch.tensor([[0.0, 1.0, 0.0, 1.0]]), torch.zeros(0, 4)])
    assert not is_recurrent(layer)


def test_layers_of_ones_own() -> None:
    laws.check_alone(TwoWay(LayerNormLSTM(2, 3), LayerNormLSTM(2, 2)).double(), sequences([3, 0, 2], (2,)))


class Flat(nn.Flatten):
    """A layer that joins the last features."""


@register_encoder(Flat)
def _(layer: Flat, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(lambda values: values.flatten(2))


@pytest.mark.parametrize(
    ("layer", "features", "message"),
    [
        (
            TwoWay(nn.Identity(), FirstStep()),
            (2,),
            r"`layer\.backward_layer` must return the lengths that `layer\.forward_layer` returns; "
            r"got \(1, 1\), and there \(3, 1\)\.",
        ),
        (
            TwoWay(nn.Identity(), nn.Tanh()),
            (),
            r"`layer\.forward_layer` must return steps of at least one feature dimension, along which they are joined",
        ),
        (
            TwoWay(nn.Identity(), Flat()),
            (2, 3, 4),
            r"`layer\.backward_layer` must return the features, but for the last, that `layer\.forward_layer` returns; "
            r"got \(2, 12\), and there \(2, 3, 4\)\.",
        ),
        (TwoWay(nn.Identity(), nn.Linear(2, 3)), (2,), ""),
    ],
)
def test_what_cannot_be_joined(layer: TwoWay, features: tuple[int, ...], message: str) -> None:
    xs = sequences([3, 1], features, torch.float32)
    if not message:
        assert encode(layer, xs)[1].shape == (1, 5)
        return
    with pytest.raises(SeqbatchValueError, match=message):
        encode(layer, xs)


@pytest.mark.parametrize("layer", [nn.GRU(2, 1, bidirectional=True), nn.RNN(2, 2, bidirectional=True)])
def test_layers_of_two_directions(layer: nn.Module) -> None:
    for given in (layer, Residual(layer)):
        for subject, ways in (("forward_layer", (given, nn.Tanh())), ("backward_layer", (nn.Tanh(), given))):
            found = rf"{type(layer).__name__}\(2, \d, bidirectional=True\)"
            message = rf"`{subject}` must be of one direction; got {found}\. It would run in both directions; pass two"
            with pytest.raises(SeqbatchValueError, match=message):
                TwoWay(*ways)


def test_wrong_states() -> None:
    layer = TwoWay(nn.Linear(2, 2), nn.LSTM(2, 2))
    xs = [torch.zeros(3, 2), torch.zeros(1, 2)]
    good = LSTMState(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    message = r"`state` must be a ContainerState, for TwoWay\(\.\.\.\); got a seqbatch\.LSTMState\."
    laws.check_refused(layer, xs, SeqbatchTypeError, message, good)
    message = r"`state\.states` must hold 2 states, None but for the layers \[1\]; got 2 states, not None for \[0\]\."
    laws.check_refused(layer, xs, SeqbatchValueError, message, ContainerState((good, None)))
    message = r"`state` must be of 1 sequence, as the batch; got 2\."
    laws.check_refused(layer, xs[:1], SeqbatchValueError, message, ContainerState((None, good)))
    assert encode_with_state(layer, xs, ContainerState((None, good)))[1].states[0] is None
