"""The same bits: what a sequence gets on the CPU does not depend on what else is in the batch, nor on how it is run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from kinds import for_each_kind
from strategies import RECURRENT_KINDS, recurrent_layers, sequences, state_for
from torch import Tensor, nn

from seqbatch import SequenceBatch, _kernels, encode, encode_with_state

pytestmark = pytest.mark.skipif(not _kernels.IS_THERE, reason="only the kernels promise it")
KINDS = [kind for kind in RECURRENT_KINDS if kind != "projected"]
every_layer = {
    f"{kind}, {dtype}": recurrent_layers(dtype, [kind]) for kind in KINDS for dtype in (torch.float32, torch.float64)
}


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def results(layer: nn.RNNBase, xs: list[Tensor], state: Any) -> list[list[Tensor]]:
    """Return for each sequence its output, its final state, and the gradients of its input and its initial state."""
    outputs, final = encode_with_state(layer, xs, state)
    ends = final._tensors
    starts = state._tensors
    # Not the same number for every step, so that gradients differ.
    weighted = [(output * torch.arange(1, output.numel() + 1).view_as(output)).sum() for output in outputs]
    loss = torch.stack([*weighted, *(end.sum() for end in ends)]).sum()
    gradients = torch.autograd.grad(loss, [*xs, *starts])
    of_xs, of_states = gradients[: len(xs)], gradients[len(xs) :]
    return [
        [outputs[i], *(end[:, :, i] for end in ends), of_xs[i], *(part[:, :, i] for part in of_states)]
        for i in range(len(xs))
    ]


def assert_same_bits(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other), (one - other).abs().max()


def inputs(layer: nn.RNNBase, lengths: list[int]) -> list[Tensor]:
    return sequences(lengths, (layer.input_size,), next(layer.parameters()).dtype)


@for_each_kind("layer", every_layer, random=st.randoms(use_true_random=False))
def test_alone_and_in_any_batch_and_order(lengths: list[int], layer: Any, random: Any) -> None:
    xs, state = inputs(layer, lengths), state_for(layer, len(lengths))
    together = results(layer, xs, state)
    for i, x in enumerate(xs):
        assert_same_bits(results(layer, [x], state[i])[0], together[i])
    order = random.sample(range(len(xs)), len(xs))
    permuted = results(layer, [xs[i] for i in order], state.select(order)) if order else []
    for place, i in enumerate(order):
        assert_same_bits(permuted[place], together[i])


@for_each_kind("layer", every_layer, fewer=2)
def test_at_any_number_of_threads(lengths: list[int], layer: Any) -> None:
    xs, state = inputs(layer, lengths), state_for(layer, len(lengths))
    with threads(1):
        wanted = results(layer, xs, state)
    for number in (2, 3, 5):
        with threads(number):
            found = results(layer, xs, state)
        for one, other in zip(found, wanted, strict=True):
            assert_same_bits(one, other)


@for_each_kind("layer", every_layer, fewer=2, cut=st.integers(0, 5))
def test_without_gradients_from_a_batch_and_in_chunks(lengths: list[int], layer: Any, cut: int) -> None:
    xs = inputs(layer, lengths or [0])
    wanted = encode(layer, xs)
    with torch.no_grad():
        assert_same_bits(encode(layer, xs), [output.detach() for output in wanted])
    assert_same_bits(encode(layer, SequenceBatch.from_sequences(xs)).to_sequences(), wanted)
    if not layer.bidirectional:
        first, state = encode_with_state(layer, [x[:cut] for x in xs])
        rest, _ = encode_with_state(layer, [x[cut:] for x in xs], state)
        assert_same_bits([torch.cat(parts) for parts in zip(first, rest, strict=True)], wanted)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 33, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sizes_beside_those_of_a_vector(kind: Any, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = kind(size, size, bidirectional=True, dtype=dtype)
    xs = sequences([7, 1, 3, 3, 9, 2, 5], (size,), dtype)
    state = state_for(layer, len(xs))
    together = results(layer, xs, state)
    for i, x in enumerate(xs):
        assert_same_bits(results(layer, [x], state[i])[0], together[i])
