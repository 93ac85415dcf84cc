"""Every law for nn.LSTMCell, nn.GRUCell and nn.RNNCell driven over sequences, plain or with more to them."""

from typing import Any

import laws
import pytest
import torch
from hypothesis import strategies as st
from parametrize import for_each_kind
from strategies import cells, make, sequences, state_for
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode_with_state


class Peephole(nn.LSTMCell):
    """A cell of one's own: its forget gate sees the cell, and the rest is PyTorch's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.peep = nn.Parameter(torch.linspace(-1, 1, self.hidden_size, dtype=self.weight_ih.dtype))

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        hidden, cell = (input.new_zeros(*input.shape[:-1], self.hidden_size),) * 2 if hx is None else hx
        return super().forward(input, (hidden, cell * (self.peep * cell).sigmoid()))


class Shared(nn.GRUCell):
    """A cell of one's own, whose input need not have `input_size` features, and whose gate is one number."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        hidden = input.new_zeros(*input.shape[:-1], self.hidden_size) if hx is None else hx
        gate = input.mean(-1, keepdim=True).sigmoid()
        return gate * hidden + (1 - gate) * (hidden @ self.weight_hh[: self.hidden_size].T + self.bias_ih.mean()).tanh()


@st.composite
def some_cells(draw: st.DrawFn, kind: Any, dtype: torch.dtype) -> nn.RNNCellBase:
    """Cells of one kind and every option, of which some can run as layers and some must be called."""
    if kind in (Peephole, Shared):
        laws.seed(draw(st.integers(0, 3)))
        own: nn.RNNCellBase = kind(draw(st.integers(1, 3)), draw(st.integers(1, 4)), dtype=dtype)
        return own
    cell = draw(cells(kind, dtype))
    if draw(st.booleans()):
        cell.register_forward_hook(lambda module, args, output: None)
    return cell


def kinds(dtype: torch.dtype = torch.float64) -> dict[str, st.SearchStrategy[nn.RNNCellBase]]:
    return {kind.__name__: some_cells(kind, dtype) for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell, Peephole, Shared)}


@for_each_kind("cell", kinds(), stateful=st.booleans())
def test_alone(lengths: list[int], cell: nn.RNNCellBase, stateful: bool) -> None:
    xs = sequences(lengths, (cell.input_size,))
    laws.check_alone(cell, xs, state_for(cell, len(xs)) if stateful else None)


@for_each_kind("cell", kinds(torch.float32), fewer=2, stateful=st.booleans())
def test_alone_in_single_precision(lengths: list[int], cell: nn.RNNCellBase, stateful: bool) -> None:
    xs = sequences(lengths, (cell.input_size,), torch.float32)
    laws.check_alone(cell, xs, state_for(cell, len(xs)) if stateful else None)


@for_each_kind("cell", kinds(), fewer=2, stateful=st.booleans(), random=st.randoms(use_true_random=False))
def test_order(lengths: list[int], cell: nn.RNNCellBase, stateful: bool, random: Any) -> None:
    xs = sequences(lengths, (cell.input_size,))
    order = random.sample(range(len(xs)), len(xs))
    laws.check_order(cell, xs, order, state_for(cell, len(xs)) if stateful else None)


@for_each_kind(
    "cell",
    kinds(),
    fewer=3,
    poison=st.sampled_from([float("nan"), 1e9]),
    side=st.sampled_from(["left", "right"]),
    batch_first=st.booleans(),
)
def test_padding(lengths: list[int], cell: nn.RNNCellBase, poison: float, side: Any, batch_first: bool) -> None:
    laws.check_padding(cell, sequences(lengths or [0], (cell.input_size,)), poison, side, batch_first)


@for_each_kind("cell", kinds(), fewer=2, stateful=st.booleans())
def test_other_laws(lengths: list[int], cell: nn.RNNCellBase, stateful: bool) -> None:
    xs = sequences(lengths or [0], (cell.input_size,))
    state = state_for(cell, len(xs)) if stateful else None
    laws.check_lengths(cell, xs)
    laws.check_empty(cell, xs, state)
    laws.check_unmodified(cell, xs, state)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, Peephole])
def test_memory(kind: Any) -> None:
    laws.check_memory(kind(32, 32), 32, times=40)


@pytest.mark.parametrize("lengths", [[2, 2], [3, 1], [1, 3], [0, 2], [0, 0], []])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, Peephole, Shared])
def test_gradients_of_both_orders(lengths: list[int], kind: Any) -> None:
    torch.manual_seed(0)
    cell = kind(2, 2, dtype=torch.float64)
    values = make((sum(lengths), 2), torch.float64).requires_grad_()
    state = state_for(cell, len(lengths))

    def outputs(values: Tensor, *hidden: Tensor) -> tuple[Tensor, ...]:
        batch, final = encode_with_state(cell, SequenceBatch(values, lengths), type(state)(*hidden))
        return batch.values, *laws.tensors_of(final)

    inputs = (values, *laws.tensors_of(state))
    assert torch.autograd.gradcheck(outputs, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, inputs, fast_mode=True)


@for_each_kind("cell", kinds(), fewer=2, cut=st.integers(0, 7))
def test_chunks_with_carried_state_equal_the_whole(lengths: list[int], cell: nn.RNNCellBase, cut: int) -> None:
    xs = sequences(lengths, (cell.input_size,))
    whole, end = encode_with_state(cell, xs)
    first, state = encode_with_state(cell, [x[:cut] for x in xs])
    second, state = encode_with_state(cell, [x[cut:] for x in xs], state)
    assert_close([torch.cat(parts) for parts in zip(first, second, strict=True)], whole)
    assert_close(laws.tensors_of(state), laws.tensors_of(end))


def test_a_sequence_of_many_steps() -> None:
    cell = Peephole(2, 3, dtype=torch.float64)
    laws.check_alone(cell, sequences([600, 1, 257, 256], (2,)))


def test_empty_list() -> None:
    outputs, state = encode_with_state(nn.LSTMCell(5, 3), [])
    assert outputs == []
    assert state.hidden.shape == state.cell.shape == (1, 1, 0, 3)
    assert encode_with_state(nn.LSTMCell(5, 3), [], state)[1].cell.shape == (1, 1, 0, 3)
    assert encode_with_state(nn.GRUCell(5, 3), [])[1].hidden.shape == (1, 1, 0, 3)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, Peephole])
def test_training_on_nothing_gives_every_weight_a_gradient_of_zero(kind: Any) -> None:
    cell = kind(5, 3)
    outputs, state = encode_with_state(cell, [torch.zeros(0, 5)] * 2)
    (outputs[0].sum() + state.last().sum()).backward()
    assert [name for name, weight in cell.named_parameters() if weight.grad is None or weight.grad.any()] == []


def test_a_cell_in_a_sequential() -> None:
    model = nn.Sequential(nn.Linear(5, 4), Peephole(4, 3), nn.GRUCell(3, 2), nn.Linear(2, 2)).double()
    laws.check_alone(model, sequences([4, 0, 2], (5,)))
    assert encode_with_state(model, sequences([4, 0], (5,)))[1].states[2].hidden.shape == (1, 1, 2, 2)
