"""nn.ModuleList, which is run as nn.Sequential is, and so meets its laws in fewer examples."""

from typing import Any

import laws
import pytest
import torch
from hypothesis import strategies as st
from strategies import for_all_lengths, sequences, state_for
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import ContainerState, SeqbatchTypeError, UnsupportedLayerError, encode, encode_with_state, is_recurrent


def models() -> st.SearchStrategy[nn.ModuleList]:
    def build(nested: bool) -> nn.ModuleList:
        laws.seed(0)
        gru: nn.Module = nn.GRU(4, 3)
        parts = [nn.Linear(2, 3), nn.LSTM(3, 2, bidirectional=True), nn.ModuleList([gru]) if nested else gru]
        return nn.ModuleList([*parts, nn.ReLU()]).double()

    return st.builds(build, st.booleans())


def start(model: nn.Module, batch: int) -> Any:
    if isinstance(model, nn.ModuleList):
        return ContainerState(tuple(start(child, batch) for child in model))
    return state_for(model, batch) if isinstance(model, nn.RNNBase) else None


@laws.fewer_examples(4)
@for_all_lengths(model=models(), stateful=st.booleans(), random=st.randoms(use_true_random=False))
def test_alone_and_order(lengths: list[int], model: nn.ModuleList, stateful: bool, random: Any) -> None:
    xs = sequences(lengths, (2,))
    state = start(model, len(xs)) if stateful else None
    laws.check_alone(model, xs, state)
    laws.check_order(model, xs, random.sample(range(len(xs)), len(xs)), state)


@laws.fewer_examples(4)
@for_all_lengths(model=models())
def test_padding(lengths: list[int], model: nn.ModuleList) -> None:
    laws.check_padding(model, sequences(lengths or [0], (2,)), float("nan"), "right", True)


@laws.fewer_examples(4)
@for_all_lengths(model=models())
def test_other_laws(lengths: list[int], model: nn.ModuleList) -> None:
    xs = sequences(lengths or [0], (2,))
    laws.check_lengths(model, xs)
    laws.check_empty(model, xs)
    laws.check_called_as_itself(model, xs)
    laws.check_unmodified(model, xs)


def test_it_is_what_a_sequential_is() -> None:
    parts = [nn.Linear(2, 3), nn.GRU(3, 4), nn.Tanh()]
    xs = sequences([3, 0, 2], (2,), torch.float32)
    outputs, state = encode_with_state(nn.ModuleList(parts), xs)
    wanted, wanted_state = encode_with_state(nn.Sequential(*parts), xs)
    assert_close(outputs, wanted)
    assert isinstance(state, ContainerState)
    again = encode_with_state(nn.ModuleList(parts), xs, state)[0]
    assert_close(again, encode_with_state(nn.Sequential(*parts), xs, wanted_state)[0])
    assert not is_recurrent(nn.ModuleList(parts[::2]))
    assert encode(nn.ModuleList(), xs)[0].equal(xs[0])


def test_a_forward_of_its_own_is_refused() -> None:
    class Own(nn.ModuleList):
        def forward(self, input: Tensor) -> Tensor:
            return -input

    message = r"`layer` must have an encoder; got .*Own: it has a forward of its own"
    for layer in (nn.Linear(2, 2), nn.GRU(2, 2)):
        with pytest.raises(UnsupportedLayerError, match=message):
            encode(Own([layer]), [torch.zeros(3, 2)])


def test_a_state_of_another_kind() -> None:
    model = nn.ModuleList([nn.GRU(2, 2)])
    message = r"`state` must be a ContainerState, for ModuleList\(\.\.\.\); got a seqbatch"
    with pytest.raises(SeqbatchTypeError, match=message):
        encode_with_state(model, [torch.zeros(3, 2)], state_for(nn.GRU(2, 2), 1))
