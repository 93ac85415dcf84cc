"""The padded engine, by which `encode` runs what nobody asks the state of: every law, also where it is not chosen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import laws
import pytest
import torch
from hypothesis import strategies as st
from kinds import for_each_kind
from reference import run_alone
from strategies import make, recurrent_layers, sequences
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqbatch import SequenceBatch, encode, encode_with_state, engines, register_encoder
from seqbatch.engines import padded
from seqbatch.layers import Residual, TwoWay
from seqbatch.layouts import to_padded


class Outputs(nn.Module):
    """A recurrent layer without its state, so that the laws ask for the outputs alone."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sequence: Tensor) -> Tensor:
        return run_alone(self.layer, [sequence])[0][0]


@register_encoder(Outputs)
def _(layer: Outputs, batch: SequenceBatch) -> SequenceBatch:
    return encode(layer.layer, batch)


@contextmanager
def everywhere() -> Iterator[None]:
    with patch.object(engines, "pads", lambda layer, values, lengths: True):
        yield


OPEN = ("lstm", "gru", "tanh", "relu")


def one_way(dtype: torch.dtype) -> dict[str, st.SearchStrategy[nn.RNNBase]]:
    return {kind: recurrent_layers(dtype, [kind]).filter(lambda layer: not layer.bidirectional) for kind in OPEN}


@for_each_kind("layer", one_way(torch.float64))
def test_alone(lengths: list[int], layer: nn.RNNBase) -> None:
    with everywhere():
        laws.check_alone(Outputs(layer), sequences(lengths, (layer.input_size,)))


@for_each_kind("layer", {kind: recurrent_layers(torch.float32, [kind]) for kind in OPEN}, fewer=2)
def test_alone_where_it_is_chosen(lengths: list[int], layer: nn.RNNBase) -> None:
    xs = sequences(lengths, (layer.input_size,), torch.float32)
    laws.check_alone(Outputs(layer), xs)
    with torch.no_grad():
        torch.testing.assert_close(encode(layer, xs), encode_with_state(layer, xs)[0])


@for_each_kind("layer", one_way(torch.float64), fewer=2, random=st.randoms(use_true_random=False))
def test_order(lengths: list[int], layer: nn.RNNBase, random: Any) -> None:
    xs = sequences(lengths, (layer.input_size,))
    with everywhere():
        laws.check_order(Outputs(layer), xs, random.sample(range(len(xs)), len(xs)))


@for_each_kind(
    "layer",
    one_way(torch.float64),
    fewer=3,
    poison=st.sampled_from([float("nan"), 1e9, float("inf")]),
    side=st.sampled_from(["left", "right"]),
)
def test_padding(lengths: list[int], layer: nn.RNNBase, poison: float, side: Any) -> None:
    with everywhere():
        laws.check_padding(Outputs(layer), sequences(lengths or [0], (layer.input_size,)), poison, side, True)


def test_what_stands_in_its_own_padding_reaches_no_output() -> None:
    def poisoned(*arguments: Any) -> Tensor:
        values, lengths, batch_first, side, time, _ = arguments
        return to_padded(values, lengths, batch_first, side, time, float("nan"))

    for layer in (nn.LSTM(2, 3, num_layers=2), nn.GRU(2, 3, batch_first=True), nn.RNN(2, 3, nonlinearity="relu")):
        xs = sequences([3, 0, 5, 1], (2,), torch.float32)
        with everywhere(), torch.no_grad():
            wanted = encode(layer, xs)
            with patch.object(padded, "to_padded", poisoned):
                assert all(map(torch.equal, encode(layer, xs), wanted))


which_draw = pytest.mark.parametrize(
    ("layer", "lengths"),
    [
        (nn.LSTM(2, 3, 2, dropout=0.5), [9, 1]),
        (nn.LSTM(64, 64, 2, dropout=0.5), [170, 2]),  # where blocks are worth their cost without gradients only
        (nn.GRU(2, 3, 2, dropout=0.5), [9, 1]),
        (nn.LSTM(2, 3, 2, dropout=0.5).double(), [70, 30, 20, 2]),
        (nn.LSTM(2, 3, 2, dropout=0.5, bidirectional=True), [9, 1]),
        (nn.GRU(2, 3, 2, dropout=0.5, bidirectional=True), [9, 1, 4]),
        (nn.RNN(2, 3, 2, dropout=0.5, bidirectional=True).double(), [3, 3]),
        (Residual(nn.LSTM(2, 2, 2, dropout=0.5)), [9, 1]),
        (TwoWay(nn.LSTM(2, 3, 2, dropout=0.5), nn.GRU(2, 3, 2, dropout=0.5)), [9, 1]),
    ],
    ids=str,
)


@which_draw
def test_dropout_draws_the_same_with_gradients_and_states_and_without(layer: nn.Module, lengths: list[int]) -> None:
    weight = next(layer.parameters())
    xs, drawn = sequences(lengths, (weight.shape[1],), weight.dtype), []
    for gradients in (True, False):
        for run in (encode, lambda layer, xs: encode_with_state(layer, xs)[0]):
            torch.manual_seed(0)
            with torch.set_grad_enabled(gradients):
                drawn.append(torch.cat(run(layer, xs)).detach())
    for one in drawn[1:]:
        torch.testing.assert_close(one, drawn[0])


@which_draw
@pytest.mark.parametrize("run", [encode, lambda layer, xs: encode_with_state(layer, xs)[0]])
def test_dropout_draws_the_same_for_a_checkpoint(layer: nn.Module, lengths: list[int], run: Any) -> None:
    weight = next(layer.parameters())
    xs, found = sequences(lengths, (weight.shape[1],), weight.dtype), []
    for rerun in (False, True):
        torch.manual_seed(0)
        outputs = torch.cat(checkpoint(run, layer, xs, use_reentrant=False) if rerun else run(layer, xs))
        found.append((outputs, *torch.autograd.grad(outputs.sin().sum(), [*xs, *layer.parameters()])))
    torch.testing.assert_close(found[1], found[0])


@for_each_kind("layer", one_way(torch.float64), fewer=2)
def test_lengths_empty_and_what_is_the_callers(lengths: list[int], layer: nn.RNNBase) -> None:
    xs = sequences(lengths or [0], (layer.input_size,))
    with everywhere():
        laws.check_lengths(Outputs(layer), xs)
        laws.check_empty(Outputs(layer), xs)
        laws.check_unmodified(Outputs(layer), xs)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(2, 3),
        nn.Sequential(nn.LSTM(2, 3), nn.Tanh()),
        Residual(nn.LSTM(2, 2)),
        TwoWay(nn.Linear(2, 2), nn.LSTM(2, 3)),
    ],
)
def test_it_is_run_for_outputs_only(layer: nn.Module) -> None:
    xs = sequences([3, 2], (2,), torch.float32)
    with patch.object(padded, "run", wraps=padded.run) as run:
        encode_with_state(layer, xs)
        assert not run.called
        encode(layer, xs)
        assert run.called


def test_gradients_of_both_orders() -> None:
    layer = nn.LSTM(2, 3, num_layers=2)
    values = make((6, 2), torch.float32).requires_grad_()
    found = []
    for outputs in (
        encode(layer, SequenceBatch(values, [4, 2])),
        encode_with_state(layer, SequenceBatch(values, [4, 2]))[0],
    ):
        (first,) = torch.autograd.grad((outputs.values**2).sum(), values, create_graph=True)
        found.append((first, *torch.autograd.grad((first**2).sum(), [values, *layer.parameters()])))
    torch.testing.assert_close(found[0], found[1])
