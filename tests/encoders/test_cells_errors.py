"""Errors of cells: sequences and states that do not fit, and results of `forward` that are not a state."""

from typing import Any

import laws
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import ContainerState, LSTMState, RNNState, SeqbatchTypeError, SeqbatchValueError, encode


def cell_that_returns(result: Any) -> nn.GRUCell:
    class Odd(nn.GRUCell):
        def forward(self, input: Tensor, hx: Any = None) -> Any:
            return result(super().forward(input, hx))

    return Odd(2, 3)


def gives_pair(result: Any) -> nn.LSTMCell:
    class OddPair(nn.LSTMCell):
        def forward(self, input: Tensor, hx: Any = None) -> Any:
            return result(*super().forward(input, hx))

    return OddPair(2, 3)


@pytest.mark.parametrize(
    ("cell", "kind", "message"),
    [
        (
            cell_that_returns(lambda h: (h, h)),
            SeqbatchTypeError,
            r"`layer` must return a hidden state, as its base does; got a tuple\. Register an encoder for Odd\.",
        ),
        (
            cell_that_returns(lambda h: h[:, :2]),
            SeqbatchValueError,
            r"`layer` must return a hidden state of shape \(2, 3\) for 2 sequences; got \(2, 2\)\. Register an encoder",
        ),
        (
            gives_pair(lambda h, c: h),
            SeqbatchTypeError,
            r"`layer` must return a pair \(hidden, cell\), as its base does; got a torch\.Tensor\. Register an encoder",
        ),
        (gives_pair(lambda h, c: (h,)), SeqbatchTypeError, r"return a pair \(hidden, cell\), as its base does; got a "),
        (gives_pair(lambda h, c: (h, None)), SeqbatchTypeError, r"a pair \(hidden, cell\), as its base does; got a tu"),
        (
            gives_pair(lambda h, c: (h, c[:1])),
            SeqbatchValueError,
            r"`layer` must return a pair \(hidden, cell\) of shape \(2, 3\) for 2 sequences; got \(1, 3\)\. Register",
        ),
    ],
)
def test_a_cell_that_returns_something_else_is_refused(cell: nn.RNNCellBase, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        encode(cell, [torch.zeros(2, 2), torch.zeros(1, 2)])


def test_a_cell_may_return_a_list() -> None:
    cell = gives_pair(lambda h, c: [h, c])
    assert_close(encode(cell, [torch.ones(2, 2)])[0], encode_as(nn.LSTMCell, cell, torch.ones(2, 2)))


def encode_as(kind: Any, cell: nn.RNNCellBase, x: Tensor) -> Tensor:
    """Encode by a stock cell with the same weights."""
    plain = kind(cell.input_size, cell.hidden_size)
    plain.load_state_dict(cell.state_dict())
    return encode(plain, [x])[0]


LSTM, GRU = nn.LSTMCell(2, 3), nn.GRUCell(2, 3)


def zeros(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape, **options)


@pytest.mark.parametrize("lengths", [[2, 2], [3, 0]])
@pytest.mark.parametrize(
    ("cell", "features", "message"),
    [
        (LSTM, (3,), r"`sequences` must have features \(2,\), for LSTMCell\(2, 3\); got \(3,\)\."),
        (
            GRU,
            (1, 2),
            r"`sequences` must have features \(2,\), for GRUCell\(2, 3\); got \(1, 2\)\. For a padded Tensor",
        ),
        (GRU.__class__(2, 3, dtype=torch.float64), (2,), r"must have dtype torch\.float64, as the weights of GRUCell"),
        (nn.RNNCell(2, 3, device="meta"), (2,), r"`sequences` must be on meta, as the weights of RNNCell\(2, 3\); got"),
    ],
)
def test_wrong_sequences(lengths: list[int], cell: nn.Module, features: tuple[int, ...], message: str) -> None:
    laws.check_refused(cell, [zeros(n, *features) for n in lengths], SeqbatchValueError, message)


@pytest.mark.parametrize(
    ("cell", "state", "kind", "message"),
    [
        (
            LSTM,
            (zeros(2, 3), zeros(2, 3)),
            SeqbatchTypeError,
            r"`state` must be an LSTMState, for LSTMCell\(2, 3\); got a tuple\. For the state of a cell of PyTorch "
            r"pass LSTMState\(hidden\[None, None\], cell\[None, None\]\)\.",
        ),
        (GRU, zeros(2, 3), SeqbatchTypeError, r"`state` must be an RNNState, .* pass RNNState\(hidden\[None, None\]\)"),
        (
            GRU,
            LSTMState(zeros(1, 1, 2, 3), zeros(1, 1, 2, 3)),
            SeqbatchTypeError,
            r"It is that of another type of laye",
        ),
        (GRU, ContainerState((RNNState(zeros(1, 1, 2, 3)),)), SeqbatchTypeError, r"Take that of the layer, state\.sta"),
        (
            GRU,
            RNNState(zeros(1, 2, 2, 3)),
            SeqbatchValueError,
            r"`state\.hidden` must have shape \(1, 1, 2, 3\), for 2 sequences and GRUCell\(2, 3\); got \(1, 2, 2, 3\)",
        ),
        (
            LSTM,
            LSTMState(zeros(1, 1, 2, 3), zeros(1, 1, 2, 4)),
            SeqbatchValueError,
            r"`state\.cell` must have shape \(1, 1, 2, 3\), for 2 sequences and LSTMCell\(2, 3\); got \(1, 1, 2, 4\)",
        ),
        (
            LSTM,
            LSTMState(zeros(1, 1, 2, 3).double(), zeros(1, 1, 2, 3).double()),
            SeqbatchValueError,
            r"have dtype tor",
        ),
    ],
)
def test_wrong_states(cell: nn.Module, state: Any, kind: Any, message: str) -> None:
    laws.check_refused(cell, [zeros(3, 2), zeros(1, 2)], kind, message, state)


@pytest.mark.parametrize("lengths", [[3, 2], [9, 0, 7]])
def test_an_unknown_nonlinearity_is_refused_by_the_cell(lengths: list[int]) -> None:
    cell = nn.RNNCell(2, 3, nonlinearity="sigmoid")
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: sigmoid"):
        encode(cell, [torch.zeros(length, 2) for length in lengths])
