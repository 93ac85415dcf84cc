"""Indices of states: select, reset and state[i] take every kind of index, share gradients and modify nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from laws import tensors_of
from states import every_state, lstm_state, rnn_state
from strategies import sequences
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import ContainerState, LSTMState, SeqbatchIndexError, SeqbatchTypeError, encode_with_state

INDICES: list[tuple[Any, list[int]]] = [
    (1, [1]),
    (-1, [3]),
    (torch.tensor(2), [2]),
    (slice(1, 3), [1, 2]),
    (slice(None, None, -2), [3, 1]),
    (slice(3, 1), []),
    ([2, 0, -1], [2, 0, 3]),
    ([1, 1], [1, 1]),
    ([], []),
    ([True, False, False, True], [0, 3]),
    ([False] * 4, []),
    (torch.tensor([3, -4]), [3, 0]),
    (torch.tensor([1], dtype=torch.int16), [1]),
    (torch.tensor([False, True, True, False]), [1, 2]),
    (np.int64(-1), [3]),
    (np.array(2), [2]),
    (np.array([2, 0, -1]), [2, 0, 3]),
    (np.array([True, False, False, True]), [0, 3]),  # as environments return which episodes have ended
    (np.array([], dtype=np.int64), []),
    ([np.True_, np.False_, np.False_, np.True_], [0, 3]),
    ([np.int64(1), 1], [1, 1]),
]


@pytest.mark.parametrize(("index", "meant"), INDICES, ids=str)
@every_state
def test_indices(make_state: Callable[[int], Any], index: Any, meant: list[int]) -> None:
    state = make_state(4)
    before = [part.clone() for part in tensors_of(state)]
    for taken in (state[index], state.select(index)):
        assert type(taken) is type(state)
        assert taken.batch_size == len(meant)
        assert_close(tensors_of(taken), [part[:, :, meant] for part in before])
    reset = state.reset(index)
    keeps = torch.tensor([[float(i not in meant)] for i in range(4)], dtype=torch.float64)
    assert type(reset) is type(state)
    assert_close(tensors_of(reset), [part * keeps for part in before])
    assert_close(tensors_of(state), before, rtol=0, atol=0)  # of the original nothing is modified


@every_state
def test_reset_clears_what_is_not_finite(make_state: Callable[[int], Any]) -> None:
    state = make_state(2)
    for part in tensors_of(state):
        part.fill_(float("nan"))
    assert all(not part.any() for part in tensors_of(state.reset([0, 1])))


@pytest.mark.parametrize(
    ("index", "kind", "message"),
    [
        (3, SeqbatchIndexError, r"`index` must be from -3 to 2, for 3 sequences; got 3\."),
        (-4, IndexError, r"`index` must be from -3 to 2, for 3 sequences; got -4\."),
        ([0, 3], SeqbatchIndexError, r"`index\[1\]` must be from -3 to 2, for 3 sequences; got 3\."),
        (torch.tensor([-4]), SeqbatchIndexError, r"`index\[0\]` must be from -3 to 2, for 3 sequences; got -4\."),
        ([True, False], SeqbatchIndexError, r"`index` must have shape \(3,\), as it is a mask; got \(2,\)\."),
        (
            torch.ones(3, 1, dtype=torch.bool),
            SeqbatchIndexError,
            r"`index` must have shape \(3,\), as it is a mask; got \(3, 1\)\.",
        ),
        (True, SeqbatchTypeError, r"`index` must be an integer; got True\."),
        (1.0, SeqbatchTypeError, r"`index` must be an integer; got 1\.0\."),
        (None, SeqbatchTypeError, r"`index` must be an integer; got None\."),
        ((0, 1), SeqbatchTypeError, r"`index` must be one index; got a tuple of 2\. The first axis of a batch or a st"),
        ([0, True], SeqbatchTypeError, r"`index\[1\]` must be an integer; got True\."),
        (
            torch.tensor([[1]]),
            SeqbatchTypeError,
            r"`index` must be integers, as a Tensor of one axis .*; got shape \(1, 1",
        ),
        (
            torch.tensor([1, 0, 1], dtype=torch.uint8),
            SeqbatchTypeError,
            r"`index` must say whether it is a mask; got torch\.uint8\. Call \.bool\(\) for a mask, \.long\(\) for ind",
        ),
        (
            slice(0.5, None),
            SeqbatchTypeError,
            r"`index` must be a slice of integers, its step not 0; got slice\(0\.5, ",
        ),
        (slice(None, None, 0), SeqbatchTypeError, r"`index` must be a slice of integers, .*; got slice\(None, None, 0"),
        (np.array([0, 3]), SeqbatchIndexError, r"`index\[1\]` must be from -3 to 2, for 3 sequences; got 3\."),
        (np.array([True]), SeqbatchIndexError, r"`index` must have shape \(3,\), as it is a mask; got \(1,\)\."),
        (np.array([1, 0, 1], dtype=np.uint8), SeqbatchTypeError, r"`index` must say whether it is a mask; got torch"),
        (np.array([1.0]), SeqbatchTypeError, r"`index` must be integers, as a Tensor .* and torch\.float64"),
        ([0, np.True_], SeqbatchTypeError, r"`index\[1\]` must be an integer; got np\.True_\."),
    ],
)
@every_state
def test_bad_index(make_state: Callable[[int], Any], index: Any, kind: type[Exception], message: str) -> None:
    state = make_state(3)
    for call in (state.__getitem__, state.select, state.reset):
        with pytest.raises(kind, match=message):
            call(index)


def test_index_into_nothing() -> None:
    with pytest.raises(SeqbatchIndexError, match=r"`index` must name a sequence, of which there are none; got 0\."):
        rnn_state(0)[0]


@pytest.mark.parametrize("method", ["select", "reset"])
@pytest.mark.parametrize("index", [1, [2, 0], slice(0, 2), [True, False, True]])
def test_gradients_through_select_and_reset(method: str, index: Any) -> None:
    def result(*parts: Tensor) -> tuple[Tensor, ...]:
        state = ContainerState((LSTMState(*parts), None))
        return tuple(part**2 for part in tensors_of(getattr(state, method)(index)))

    parts = [part.requires_grad_() for part in tensors_of(lstm_state(3))]
    assert torch.autograd.gradcheck(result, parts)
    assert torch.autograd.gradgradcheck(result, parts)


def test_one_sequence_goes_on_from_its_state() -> None:
    gru = nn.GRU(5, 3, dtype=torch.float64)
    xs = sequences([4, 2, 6], (5,))
    outputs, _ = encode_with_state(gru, xs)
    _, state = encode_with_state(gru, [x[:2] for x in xs])
    rest, _ = encode_with_state(gru, [xs[2][2:]], state[2])
    assert_close(rest[0], outputs[2][2:])
