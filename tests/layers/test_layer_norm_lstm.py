"""Every law for LayerNormLSTM, and its cell against the equations of the paper."""

from typing import Any

import laws
import pytest
import torch
from hypothesis import strategies as st
from strategies import for_all_lengths, make, sequences
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import LSTMState, SeqbatchTypeError, SeqbatchValueError, SequenceBatch, encode, encode_with_state
from seqbatch.layers import LayerNormLSTM, LayerNormLSTMCell


def randomized(layer: nn.Module, seed: int = 0) -> nn.Module:
    """Set all weights at random, for norms begin with ones and zeros."""
    for i, weight in enumerate(layer.parameters()):
        weight.data = make(tuple(weight.shape), weight.dtype, seed + i)
    return layer


def build(kind: Any, size: int, hidden: int, seed: int) -> nn.Module:
    return randomized(kind(size, hidden, dtype=torch.float64), seed)


layers = st.builds(
    build,
    st.sampled_from([LayerNormLSTM, LayerNormLSTMCell]),
    st.integers(1, 3),
    st.integers(2, 4),  # of one feature the norm is zero, and its gradient of no use
    st.integers(0, 9),
)


def state_of(layer: Any, batch: int) -> LSTMState:
    hidden, cell = (make((1, 1, batch, layer.hidden_size), torch.float64, seed).requires_grad_() for seed in (7, 8))
    return LSTMState(hidden, cell)


@laws.fewer_examples(2)
@for_all_lengths(layer=layers, stateful=st.booleans())
def test_alone(lengths: list[int], layer: Any, stateful: bool) -> None:
    xs = sequences(lengths, (layer.input_size,))
    laws.check_alone(layer, xs, state_of(layer, len(xs)) if stateful else None)


@laws.fewer_examples(4)
@for_all_lengths(layer=layers)
def test_padding(lengths: list[int], layer: Any) -> None:
    laws.check_padding(layer, sequences(lengths or [0], (layer.input_size,)), float("nan"), "right", True)


@laws.fewer_examples(3)
@for_all_lengths(layer=layers, stateful=st.booleans(), random=st.randoms(use_true_random=False))
def test_other_laws(lengths: list[int], layer: Any, stateful: bool, random: Any) -> None:
    xs = sequences(lengths or [0], (layer.input_size,))
    state = state_of(layer, len(xs)) if stateful else None
    laws.check_order(layer, xs, random.sample(range(len(xs)), len(xs)), state)
    laws.check_lengths(layer, xs)
    laws.check_empty(layer, xs, state)
    laws.check_unmodified(layer, xs, state)
    if isinstance(layer, LayerNormLSTM):
        laws.check_called_as_itself(layer, xs)


@pytest.mark.parametrize("lengths", [[2, 2], [3, 1], [0, 2], [0, 0], []])
def test_gradients_of_both_orders(lengths: list[int]) -> None:
    layer = randomized(LayerNormLSTM(2, 2, dtype=torch.float64))
    values = make((sum(lengths), 2), torch.float64).requires_grad_()
    state = state_of(layer, len(lengths))

    def outputs(values: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
        batch, final = encode_with_state(layer, SequenceBatch(values, lengths), LSTMState(hidden, cell))
        return batch.values, *laws.tensors_of(final)

    assert torch.autograd.gradcheck(outputs, (values, state.hidden, state.cell), fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, (values, state.hidden, state.cell), fast_mode=True)


def norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def test_a_step_is_that_of_the_paper() -> None:
    cell = LayerNormLSTMCell(3, 2, dtype=torch.float64)
    randomized(cell)
    x, h, c = (make((4, size), torch.float64, size) for size in (3, 2, 2))
    gates = cell.norm_input.weight * norm(x @ cell.weight_ih.T) + cell.norm_input.bias
    gates = gates + cell.norm_hidden.weight * norm(h @ cell.weight_hh.T)
    i, f, g, o = gates.chunk(4, -1)
    new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    new_h = o.sigmoid() * (cell.norm_cell.weight * norm(new_c) + cell.norm_cell.bias).tanh()
    assert_close(cell(x, (h, c)), (new_h, new_c))
    assert_close(cell(x), cell(x, (torch.zeros_like(h), torch.zeros_like(c))))


def test_one_sequence_by_itself() -> None:
    layer = LayerNormLSTM(3, 2)
    x = torch.randn(5, 3)
    output, (hidden, cell) = layer(x)
    assert (output.shape, hidden.shape, cell.shape) == ((5, 2), (2,), (2,))
    first, state = layer(x[:2])
    assert_close(torch.cat([first, layer(x[2:], state)[0]]), output)
    assert layer(x[:0])[0].shape == (0, 2)
    assert_close(layer(x[:0], state)[1], state)


def test_weights_may_be_reset() -> None:
    cell = LayerNormLSTMCell(3, 2)
    randomized(cell, 5)
    cell.dropout = nn.Dropout(0.5)  # what a subclass may add is left alone
    cell.reset_parameters()
    assert_close([cell.norm_input.weight, cell.norm_input.bias], [torch.ones(8), torch.zeros(8)])
    assert_close(cell.norm_cell.weight, torch.ones(2))
    assert (cell.weight_hh.abs() <= 2**-0.5).all()


def test_memory() -> None:
    laws.check_memory(LayerNormLSTM(32, 32), 32, times=80)


def test_hooks_see_what_it_gives() -> None:
    layer = LayerNormLSTM(3, 2)
    seen: list[Any] = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output))
    batch, state = encode_with_state(layer, SequenceBatch(torch.randn(5, 3), [3, 0, 2]))
    ((values, (hidden, cell)),) = seen
    assert_close([values, hidden, cell], [batch.values, state.hidden[0, 0], state.cell[0, 0]])


def test_training_on_nothing_gives_every_weight_a_gradient_of_zero() -> None:
    layer = LayerNormLSTM(3, 2)
    outputs, state = encode_with_state(layer, [torch.zeros(0, 3)] * 2)
    (outputs[0].sum() + state.last().sum()).backward()
    assert [name for name, weight in layer.named_parameters() if weight.grad is None or weight.grad.any()] == []


@pytest.mark.parametrize("kind", [LayerNormLSTM, LayerNormLSTMCell])
def test_errors(kind: Any) -> None:
    layer, name = kind(3, 2), kind.__name__
    for lengths in ([2, 2], [3, 0]):
        xs = [torch.zeros(n, 3) for n in lengths]
        message = rf"`sequences` must have features \(3,\), for {name}\(.*\); got \(2,\)\."
        laws.check_refused(layer, [x[:, :2] for x in xs], SeqbatchValueError, message)
        message = rf"`sequences` must have dtype torch\.float32, as the weights of {name}\(.*\); got torch\.float64\."
        laws.check_refused(layer, [x.double() for x in xs], SeqbatchValueError, message)
        message = r"`state` must be an LSTMState, for LayerNormLSTMCell\(.*\); got a tuple\."
        laws.check_refused(layer, xs, SeqbatchTypeError, message, (torch.zeros(2, 2), torch.zeros(2, 2)))
        message = r"`state\.hidden` must have shape \(1, 1, 2, 2\), for 2 sequences and LayerNormLSTMCell\(.*; got"
        state = LSTMState(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2))
        laws.check_refused(layer, xs, SeqbatchValueError, message, state)


def test_in_a_sequential() -> None:
    model = nn.Sequential(LayerNormLSTM(2, 3), LayerNormLSTM(3, 2)).double()
    laws.check_alone(model, sequences([3, 0, 2], (2,)))
    assert encode(model, torch.zeros(4, 2, dtype=torch.float64)).shape == (4, 2)
