"""encode and encode_with_state: every kind in is the same kind out, with equal values; and what they refuse."""

from collections.abc import Callable
from typing import Any

import laws
import pytest
import torch
from hypothesis import strategies as st
from reference import run_alone
from strategies import for_all_lengths, make, sequences, state_for
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch, encode, encode_with_state

MAKERS: dict[str, Callable[[bool], nn.Module]] = {
    "lstm": lambda first: nn.LSTM(3, 2, num_layers=2, bidirectional=True, batch_first=first),
    "gru": lambda first: nn.GRU(3, 4, batch_first=first),
    "rnn": lambda first: nn.RNN(3, 4, batch_first=first),
    "sequential": lambda first: nn.Sequential(nn.Linear(3, 5), nn.GRU(5, 4, batch_first=first), nn.Tanh()),
    "linear": lambda first: nn.Linear(3, 4),
    "pointwise": lambda first: nn.Sequential(nn.Linear(3, 4), nn.Sigmoid()),
}
STATEFUL = ("lstm", "gru", "rnn", "sequential")


def make_layer(name: str, batch_first: bool) -> nn.Module:
    torch.manual_seed(0)
    return MAKERS[name](batch_first).double()


@for_all_lengths(name=st.sampled_from([*MAKERS]), batch_first=st.booleans())
def test_every_kind_gives_its_own_kind_and_equal_values(lengths: list[int], name: str, batch_first: bool) -> None:
    layer = make_layer(name, batch_first)
    xs = sequences(lengths or [0], (3,))
    outputs = encode(layer, xs)
    assert type(outputs) is list
    batch = SequenceBatch.from_sequences(xs)
    of_batch, of_tuple, of_nested = encode(layer, batch), encode(layer, tuple(xs)), encode(layer, batch.to_nested())
    assert type(of_tuple) is list
    assert isinstance(of_batch, SequenceBatch)
    assert of_batch.structure is batch.structure
    assert of_nested.is_nested
    assert of_nested.layout is torch.jagged
    for found in (of_tuple, of_batch, SequenceBatch.from_nested(of_nested)):
        assert_close(list(found), outputs)
    for x, output in zip(xs, outputs, strict=True):
        alone = encode(layer, x)
        assert type(alone) is Tensor
        assert_close(alone, output)


@for_all_lengths(name=st.sampled_from([*MAKERS]), batch_first=st.booleans())
def test_packed_sequences_keep_their_order(lengths: list[int], name: str, batch_first: bool) -> None:
    layer = make_layer(name, batch_first)
    xs = sequences([length for length in lengths if length] or [1], (3,))
    for given in (pack_sequence(xs, enforce_sorted=False), pack_sequence(sorted(xs, key=len, reverse=True))):
        found = encode(layer, given)
        assert isinstance(found, PackedSequence)
        assert found.batch_sizes is given.batch_sizes
        assert found.sorted_indices is given.sorted_indices
        assert found.unsorted_indices is given.unsorted_indices
        unpacked = SequenceBatch.from_packed(given).to_sequences()
        assert_close(SequenceBatch.from_packed(found).to_sequences(), encode(layer, unpacked))


@for_all_lengths(name=st.sampled_from(STATEFUL), batch_first=st.booleans(), from_state=st.booleans())
def test_states_of_every_kind_are_equal(lengths: list[int], name: str, batch_first: bool, from_state: bool) -> None:
    layer = make_layer(name, batch_first)
    xs = sequences([length for length in lengths if length] or [1], (3,))
    start = encode_with_state(layer, [x.flip(0) for x in xs])[1] if from_state else None
    outputs, state = encode_with_state(layer, xs, start)
    alone, alone_state = run_alone(layer, xs, None if start is None else laws.tensors_of(start))
    assert_close([*outputs, *laws.tensors_of(state)], [*alone, *alone_state])
    batch = SequenceBatch.from_sequences(xs)
    for given in (tuple(xs), batch, batch.to_packed(), batch.to_nested()):
        found, final = encode_with_state(layer, given, start)
        assert type(found) is (list if type(given) is tuple else type(given))
        assert type(final) is type(state)
        assert_close(laws.tensors_of(final), laws.tensors_of(state))
    for i, x in enumerate(xs):
        output, final = encode_with_state(layer, x, None if start is None else start[i])
        assert_close(output, outputs[i])
        assert_close(laws.tensors_of(final), laws.tensors_of(state[i]))


@pytest.mark.parametrize("name", [*MAKERS])
def test_gradients_flow_through_every_kind(name: str) -> None:
    layer = make_layer(name, batch_first=True)
    gradients = []
    ways: list[tuple[Callable[[SequenceBatch], Any], Callable[[Any], SequenceBatch]]] = [
        (lambda batch: batch, lambda batch: batch),
        (SequenceBatch.to_sequences, SequenceBatch.from_sequences),
        (SequenceBatch.to_packed, SequenceBatch.from_packed),
        (SequenceBatch.to_nested, SequenceBatch.from_nested),
    ]
    for there, back in ways:
        values = make((5, 3), torch.float64).requires_grad_()
        found = back(encode(layer, there(SequenceBatch(values, [2, 3])))).values.sin().sum()
        gradients.append(torch.autograd.grad(found, [values, *layer.parameters()]))
    for gradient in gradients:
        assert gradient[0].any()
        assert_close(gradient, gradients[0])


@pytest.mark.parametrize("call", [encode, encode_with_state])
def test_an_error_while_the_layer_runs_says_what_ran_on_what(call: Callable[..., Any]) -> None:
    with pytest.raises(SeqbatchValueError) as caught:
        call(nn.LSTM(4, 5), [torch.zeros(3, 2), torch.zeros(1, 2)])
    note = "while LSTM(4, 5) ran on SequenceBatch(2 sequences of 1 to 3 steps, features (2,), torch.float32, cpu)"
    assert caught.value.__notes__ == [note]


def test_the_note_stands_on_errors_of_other_libraries_too() -> None:
    def fail(module: nn.Module, args: Any) -> None:
        raise RuntimeError("out of luck")

    layer = nn.GRU(3, 2)
    layer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of luck") as caught:
        encode(layer, [torch.zeros(2, 3), torch.zeros(2, 3)])
    assert caught.value.__notes__ == [
        "while GRU(3, 2) ran on SequenceBatch(2 sequences of 2 steps, features (3,), torch.float32, cpu)"
    ]


def test_bad_arguments_get_no_note() -> None:
    with pytest.raises(SeqbatchTypeError) as caught:
        encode(nn.LSTM(4, 5), 3)  # type: ignore[call-overload]  # wrong
    assert not hasattr(caught.value, "__notes__")


def test_the_state_of_the_caller_stays_as_it_was() -> None:
    layer = nn.LSTM(3, 2, dtype=torch.float64)
    laws.check_unmodified(layer, sequences([2, 0, 3], (3,)), state_for(layer, 3))
