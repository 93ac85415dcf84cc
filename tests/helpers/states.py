"""States of every kind, for the tests of what all of them can do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import make

from seqbatch import ContainerState, LSTMState, RNNState


def rnn_state(batch: int) -> RNNState:
    return RNNState(make((2, 2, batch, 4), torch.float64))


def lstm_state(batch: int) -> LSTMState:
    return LSTMState(make((2, 1, batch, 4), torch.float64), make((2, 1, batch, 5), torch.float64, seed=1))


def container_state(batch: int) -> ContainerState:
    return ContainerState((None, rnn_state(batch), ContainerState((lstm_state(batch), None))))


MAKERS: list[Callable[[int], Any]] = [rnn_state, lstm_state, container_state]
every_state = pytest.mark.parametrize("make_state", MAKERS)
