"""Every law for nn.LSTM, nn.GRU and nn.RNN, with every option they have."""

from typing import Any

import laws
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parametrize import for_each_kind
from strategies import PATTERNS, RECURRENT_KINDS, make, recurrent_layers, sequences, state_for
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode, encode_with_state

layers = {kind: recurrent_layers(kinds=[kind]) for kind in RECURRENT_KINDS}
single = {kind: recurrent_layers(torch.float32, [kind]) for kind in RECURRENT_KINDS}


@for_each_kind("layer", layers, stateful=st.booleans())
def test_alone(lengths: list[int], layer: nn.RNNBase, stateful: bool) -> None:
    xs = sequences(lengths, (layer.input_size,))
    laws.check_alone(layer, xs, state_for(layer, len(xs)) if stateful else None)


@for_each_kind("layer", single, stateful=st.booleans())
def test_alone_in_single_precision(lengths: list[int], layer: nn.RNNBase, stateful: bool) -> None:
    xs = sequences(lengths, (layer.input_size,), torch.float32)
    laws.check_alone(layer, xs, state_for(layer, len(xs)) if stateful else None)


@for_each_kind("layer", layers, stateful=st.booleans(), random=st.randoms(use_true_random=False))
def test_order(lengths: list[int], layer: nn.RNNBase, stateful: bool, random: Any) -> None:
    xs = sequences(lengths, (layer.input_size,))
    order = random.sample(range(len(xs)), len(xs))
    laws.check_order(layer, xs, order, state_for(layer, len(xs)) if stateful else None)


@for_each_kind(
    "layer",
    layers,
    fewer=2,
    poison=st.sampled_from([float("nan"), 1e9, float("inf")]),
    side=st.sampled_from(["left", "right"]),
    batch_first=st.booleans(),
)
def test_padding(lengths: list[int], layer: nn.RNNBase, poison: float, side: Any, batch_first: bool) -> None:
    laws.check_padding(layer, sequences(lengths or [0], (layer.input_size,)), poison, side, batch_first)


@for_each_kind("layer", layers, stateful=st.booleans())
def test_other_laws(lengths: list[int], layer: nn.RNNBase, stateful: bool) -> None:
    xs = sequences(lengths, (layer.input_size,))
    laws.check_lengths(layer, xs)
    laws.check_called_as_itself(layer, xs)
    laws.check_unmodified(layer, xs, state_for(layer, len(xs)) if stateful else None)
    some = xs or sequences([0], (layer.input_size,))
    laws.check_empty(layer, some, state_for(layer, len(some)) if stateful else None)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_memory(kind: Any) -> None:
    # Training keeps about ten values for each gate of every step; padding would take 256 times as much as the values.
    laws.check_memory(kind(32, 32), 32, times=30)


def test_memory_of_one_long_sequence_beside_thousands_of_one_step() -> None:
    laws.check_memory(nn.LSTM(32, 32), 32, times=30, ones=4095, longest=65536)


@pytest.mark.parametrize("lengths", [[2, 2], [3, 1], [1, 3], [0, 2], [0, 0], []])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_gradients_of_both_orders(lengths: list[int], kind: Any) -> None:
    layer = kind(2, 2, num_layers=2, bidirectional=True, dtype=torch.float64)
    values = make((sum(lengths), layer.input_size), torch.float64).requires_grad_()
    state = state_for(layer, len(lengths))

    def outputs(values: Tensor, *hidden: Tensor) -> tuple[Tensor, ...]:
        batch, final = encode_with_state(layer, SequenceBatch(values, lengths), type(state)(*hidden))
        return batch.values, *laws.tensors_of(final)

    inputs = (values, *laws.tensors_of(state))
    assert torch.autograd.gradcheck(outputs, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, inputs, fast_mode=True)


@for_each_kind("layer", layers, fewer=2, cut=st.integers(0, 7))
def test_chunks_with_carried_state_equal_the_whole(lengths: list[int], layer: nn.RNNBase, cut: int) -> None:
    kind: Any = type(layer)
    one_way = kind(layer.input_size, layer.hidden_size, num_layers=layer.num_layers, dtype=torch.float64)
    xs = sequences(lengths, (layer.input_size,))
    whole, end = encode_with_state(one_way, xs)
    first, state = encode_with_state(one_way, [x[:cut] for x in xs])
    second, state = encode_with_state(one_way, [x[cut:] for x in xs], state)
    assert_close([torch.cat(parts) for parts in zip(first, second, strict=True)], whole)
    assert_close(laws.tensors_of(state), laws.tensors_of(end))


@given(st.data())
def test_dropout_is_random_between_layers_and_off_in_eval_mode(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 9)))
    lstm = nn.LSTM(3, 50, num_layers=2, dropout=0.5)
    xs = sequences(data.draw(PATTERNS["unsorted"]), (3,), torch.float32)
    assert not torch.equal(torch.cat(encode(lstm, xs)), torch.cat(encode(lstm, xs)))
    lstm.eval()
    laws.check_alone(lstm, xs)


def test_dropout_drops_the_stated_share_for_every_sequence() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(1, 200, num_layers=2, dropout=0.25)
    with torch.no_grad():
        for name, weight in lstm.named_parameters():
            weight.zero_()
            if name == "bias_ih_l0":
                weight.fill_(20.0)  # open gates: the first layer returns about 0.76 and more at each step
            if name == "weight_ih_l1":
                weight[400:600] = torch.eye(200)  # the cell input of the second layer is the first's output
            if name == "bias_ih_l1":
                weight[:200], weight[200:400], weight[600:] = 20.0, -20.0, 20.0
    outputs = encode(lstm, [torch.zeros(n, 1) for n in (3, 0, 40, 1)])
    shares = [float((output.abs() < 1e-6).double().mean()) for output in outputs if len(output)]
    assert shares == pytest.approx([0.25] * 3, abs=0.12)


def test_final_state_is_of_the_last_real_step() -> None:
    lstm = nn.LSTM(5, 3, num_layers=2, bidirectional=True)
    xs, ys = torch.randn(10, 5), torch.randn(7, 5)
    outputs, state = encode_with_state(lstm, [xs, ys])
    for i, (sequence, output) in enumerate(zip([xs, ys], outputs, strict=True)):
        _, (hidden, cell) = lstm(sequence)
        assert_close(state.hidden[:, :, i].flatten(0, 1), hidden)
        assert_close(state.cell[:, :, i].flatten(0, 1), cell)
        assert_close(state.last()[i], torch.cat([output[-1, :3], output[0, 3:]]))


def test_empty_list() -> None:
    lstm = nn.LSTM(5, 3, num_layers=2, bidirectional=True)
    assert encode(lstm, []) == []
    outputs, state = encode_with_state(lstm, [])
    assert outputs == []
    assert state.hidden.shape == state.cell.shape == (2, 2, 0, 3)
    assert encode_with_state(lstm, [], state)[1].hidden.shape == (2, 2, 0, 3)


@pytest.mark.parametrize("lengths", [[0, 0], [0, 2], [3, 2]], ids=str)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell])
def test_the_new_state_shares_no_memory_with_the_callers(kind: Any, lengths: list[int]) -> None:
    layer = kind(2, 3).requires_grad_(False)  # because a result that depends on weights is a copy anyway
    xs = [torch.randn(length, 2) for length in lengths]
    _, state = encode_with_state(layer, xs)
    _, new = encode_with_state(layer, xs, state)
    before = [part.clone() for part in laws.tensors_of(state)]
    for part in laws.tensors_of(new):
        part.add_(1)
    assert_close(laws.tensors_of(state), before)


@pytest.mark.parametrize("lengths", [[5, 3], [5, 5], [5, 0], [5], [1, 0, 7]], ids=str)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_under_autocast_every_sequence_has_the_dtype_that_it_has_alone(kind: Any, lengths: list[int]) -> None:
    layer = kind(3, 4)
    xs = [torch.randn(length, 3) for length in lengths]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, state = encode_with_state(layer, xs)
        wanted = [layer(x)[0] if len(x) else layer(xs[0])[0][:0] for x in xs]
        assert_close(encode(layer, xs), outputs)
    assert_close(outputs, wanted, rtol=0.03, atol=0.03)  # half precision rounds in another order
    assert all(part.dtype is wanted[0].dtype for part in state._parts)
