"""encode_chunks: what it gives is that of the whole; what it reads, holds and refuses."""

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, assert_type

import pytest
import torch
from hypothesis import strategies as st
from laws import tensors_of
from reference import run_alone
from strategies import for_all_lengths, make, recurrent_layers, sequences, state_for
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.testing import assert_close

from seqbatch import ContainerState, LSTMState, RNNState, SequenceBatch
from seqbatch.data._encode_chunks import encode_chunks
from seqbatch.layers import LayerNormLSTM, Residual
from seqbatch.testing._memory_law import peak

STACKS: dict[str, Callable[[], Any]] = {
    "lstm cell": lambda: nn.LSTMCell(2, 3),
    "gru cell": lambda: nn.GRUCell(2, 3),
    "stack": lambda: nn.Sequential(nn.Linear(2, 4), nn.GRU(4, 3), nn.LayerNorm(3), nn.LSTM(3, 2)),
    "nested": lambda: nn.Sequential(nn.Sequential(), Residual(nn.Sequential(nn.RNN(2, 2), nn.ReLU())), nn.LSTM(2, 3)),
    "list": lambda: nn.ModuleList([nn.Tanh(), nn.GRU(2, 3)]),
    "normalized": lambda: LayerNormLSTM(2, 3),
}


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layer: nn.Module = STACKS[kind]().double()
    return layer


layers: st.SearchStrategy[Any] = st.one_of(
    recurrent_layers().filter(lambda layer: not layer.bidirectional), st.sampled_from([*STACKS]).map(build)
)


def cut(xs: list[Tensor], number: int, random: Any) -> list[list[Tensor]]:
    """Cut each sequence at places of its own, so that some chunks have no step of it."""
    parts = []
    for x in xs:
        borders = [0, *sorted(random.choices(range(len(x) + 1), k=number - 1)), len(x)]
        parts.append([x[a:b] for a, b in pairwise(borders)])
    return [[part[t] for part in parts] for t in range(number)]


def join(results: list[Any]) -> list[Tensor]:
    """Put the outputs of each sequence together again."""
    return [torch.cat(parts) for parts in zip(*(outputs for outputs, _ in results), strict=True)]


@for_all_lengths(
    layer=layers, number=st.integers(1, 4), stateful=st.booleans(), random=st.randoms(use_true_random=False)
)
def test_chunks_give_what_the_whole_gives(
    lengths: list[int], layer: Any, number: int, stateful: bool, random: Any
) -> None:
    xs = sequences(lengths, (getattr(layer, "input_size", 2),))
    state = state_for(layer, len(xs)) if stateful and isinstance(layer, nn.RNNBase) else None
    chunks = cut(xs, number, random)
    results = [*encode_chunks(layer, chunks, state)]
    outputs, final = run_alone(layer, xs, None if state is None else tensors_of(state))
    assert len(results) == number
    assert_close(join(results), outputs)
    if xs:
        assert_close(tensors_of(results[-1][1]), final)


@for_all_lengths(layer=layers, number=st.integers(1, 3), random=st.randoms(use_true_random=False))
def test_each_chunk_is_given_back_as_the_kind_it_is(lengths: list[int], layer: Any, number: int, random: Any) -> None:
    xs = sequences(lengths or [0], (getattr(layer, "input_size", 2),))
    chunks = cut(xs, number, random)
    wanted = [outputs for outputs, _ in encode_chunks(layer, chunks)]
    batches = [*encode_chunks(layer, map(SequenceBatch.from_sequences, chunks))]
    assert_close([outputs.to_sequences() for outputs, _ in batches], wanted)
    if not isinstance(layer, nn.RNNCellBase):  # which one Tensor has two meanings for
        alone = [*encode_chunks(layer, (chunk[0] for chunk in chunks))]
        assert_close([outputs for outputs, _ in alone], [outputs[0] for outputs in wanted])


def test_packed_and_nested_chunks() -> None:
    gru, xs = nn.GRU(5, 3), [torch.randn(4, 5), torch.randn(6, 5)]
    wanted = [outputs for outputs, _ in encode_chunks(gru, [xs, xs])]
    packed = pack_sequence(xs, enforce_sorted=False)
    for (repacked, _), want in zip(encode_chunks(gru, [packed, packed]), wanted, strict=True):
        assert isinstance(repacked, PackedSequence)
        assert_close(SequenceBatch.from_packed(repacked).to_sequences(), want)
    nested = torch.nested.nested_tensor(xs, layout=torch.jagged)
    for (given_back, _), want in zip(encode_chunks(gru, [nested, nested]), wanted, strict=True):
        assert_close(list(given_back.unbind()), want)


def test_types_are_known() -> None:
    x = torch.randn(4, 5)
    for lstm_outputs, lstm_state in encode_chunks(nn.LSTM(5, 3), [x, x]):
        assert_type(lstm_outputs, Tensor)
        assert_type(lstm_state, LSTMState)
    for gru_outputs, gru_state in encode_chunks(nn.GRU(5, 3), [[x, x], [x, x]]):
        assert_type(gru_outputs, list[Tensor])
        assert_type(gru_state, RNNState)
    for outputs, state in encode_chunks(nn.Sequential(nn.GRU(5, 3)), iter([SequenceBatch(x, [4])])):
        assert_type(outputs, SequenceBatch)
        assert_type(state, ContainerState)


def test_no_chunks_give_nothing() -> None:
    assert [*encode_chunks(nn.LSTM(5, 3), [])] == []


def test_chunks_of_no_sequences() -> None:
    nothing: list[list[Tensor]] = [[], []]
    assert [outputs for outputs, _ in encode_chunks(nn.LSTM(5, 3), nothing)] == [[], []]


def test_a_chunk_is_read_when_it_is_asked_for_and_let_go_after() -> None:
    read: list[weakref.ref[Tensor]] = []
    given: list[weakref.ref[Tensor]] = []

    def chunks() -> Iterator[Tensor]:
        for _ in range(4):
            assert [one() for one in (*read, *given)] == [None] * (len(read) + len(given)), "a former chunk is held"
            chunk = torch.randn(3, 5)
            read.append(weakref.ref(chunk))
            yield chunk
            del chunk

    results = encode_chunks(nn.LSTM(5, 3), chunks())
    assert read == []
    for i in range(4):
        outputs, state = next(results)
        assert len(read) == i + 1
        given += [weakref.ref(outputs), weakref.ref(state.hidden)]
        del outputs, state
    assert [*results] == []


def run_chunks(number: int) -> None:
    gru = nn.GRU(8, 8)
    gc.freeze()  # what there is already, which takes long to look through
    for _ in encode_chunks(gru, (torch.randn(64, 8) for _ in range(number))):
        gc.collect()  # what is let go may hang in a circle
    gc.unfreeze()


@pytest.mark.parametrize("training", [True, False])
def test_memory_does_not_grow_with_the_number_of_chunks(training: bool) -> None:
    with torch.set_grad_enabled(training):
        few, many = (peak(partial(run_chunks, number)) for number in (3, 60))
        assert many < 3 * few  # of chunks that hang together it would be 20 times as much


def test_gradients_stop_between_chunks() -> None:
    lstm, xs = nn.LSTM(2, 3, dtype=torch.float64), [make((6, 2), torch.float64).requires_grad_()]
    start = state_for(lstm, 1)
    for i, (outputs, state) in enumerate(encode_chunks(lstm, [[xs[0][:2]], [xs[0][2:]]], start)):
        sources = [*xs, *tensors_of(start)]
        found = torch.autograd.grad(outputs[0].sum() + state.last().sum(), sources, allow_unused=True)
        assert found[0] is not None
        assert [row.any().item() for row in found[0]] == [i == 0] * 2 + [i == 1] * 4
        assert [gradient is not None for gradient in found[1:]] == [i == 0] * 2
