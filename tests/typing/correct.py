"""What users may write, and the types they get: checked by mypy and pyright, and never run."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, assert_type

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset

from seqbatch import (
    ContainerState,
    LSTMState,
    RNNState,
    SeqbatchError,
    SeqbatchIndexError,
    SeqbatchTypeError,
    SeqbatchValueError,
    SequenceBatch,
    UnsupportedLayerError,
    encode,
    encode_with_state,
    is_recurrent,
    register_cross_attention,
    register_encoder,
    register_recurrent,
    scan,
)
from seqbatch.data import collate_sequences
from seqbatch.layers import (
    AdditiveAttention,
    AttentionPool,
    Causal,
    DotProductAttention,
    LayerNormLSTM,
    LayerNormLSTMCell,
    LockedDropout,
    MeanPool,
    Residual,
    TwoWay,
    WordDropout,
)

Either = TypeVar("Either", Tensor, SequenceBatch)


class MyLSTM(nn.LSTM):
    pass


class MyCell(nn.GRUCell):
    pass


class MyLayer(nn.Module):
    pass


class MyState:
    pass


class MyPair(NamedTuple):
    x: Tensor
    y: int


def encode_gives_back_the_kind(
    lstm: nn.LSTM,
    layer: nn.Module,
    x: Tensor,
    sequences: list[Tensor],
    pair: tuple[Tensor, Tensor],
    several: tuple[Tensor, ...],
    mixed: tuple[Tensor, nn.Parameter],
    parameter: nn.Parameter,
    parameters: list[nn.Parameter],
    batch: SequenceBatch,
    packed: PackedSequence,
) -> None:
    assert_type(encode(lstm, sequences), list[Tensor])
    assert_type(encode(lstm, [x, x]), list[Tensor])
    assert_type(encode(lstm, [x, parameter]), list[Tensor])
    assert_type(encode(lstm, []), list[Tensor])
    assert_type(encode(lstm, pair), list[Tensor])
    assert_type(encode(lstm, several), list[Tensor])
    assert_type(encode(lstm, mixed), list[Tensor])
    assert_type(encode(lstm, ()), list[Tensor])
    assert_type(encode(lstm, parameters), list[Tensor])
    assert_type(encode(lstm, x), Tensor)
    assert_type(encode(lstm, parameter), Tensor)
    assert_type(encode(lstm, batch), SequenceBatch)
    assert_type(encode(lstm, packed), PackedSequence)
    assert_type(encode(layer, sequences), list[Tensor])
    assert_type(encode(layer, batch), SequenceBatch)
    assert_type(encode(layer=MyLayer(), sequences=batch), SequenceBatch)
    assert_type(encode(nn.Sequential(nn.Linear(5, 4), nn.ReLU()), x), Tensor)


def encode_attends_to_memory(
    decoder: nn.TransformerDecoder,
    layer: nn.Module,
    x: Tensor,
    parameter: nn.Parameter,
    sequences: list[Tensor],
    parameters: list[nn.Parameter],
    pair: tuple[Tensor, Tensor],
    batch: SequenceBatch,
    packed: PackedSequence,
    memory: SequenceBatch | None,
) -> None:
    assert_type(encode(decoder, sequences, sequences), list[Tensor])
    assert_type(encode(decoder, [x, x], [parameter, x]), list[Tensor])
    assert_type(encode(decoder, sequences, parameters), list[Tensor])
    assert_type(encode(decoder, pair, batch), list[Tensor])
    assert_type(encode(decoder, [], []), list[Tensor])
    assert_type(encode(decoder, batch, batch), SequenceBatch)
    assert_type(encode(decoder, batch, sequences), SequenceBatch)
    assert_type(encode(decoder, batch, packed), SequenceBatch)
    assert_type(encode(decoder, packed, pair), PackedSequence)
    assert_type(encode(decoder, x, x), Tensor)
    assert_type(encode(layer, x, parameter), Tensor)
    assert_type(encode(layer, sequences=batch, memory=batch), SequenceBatch)
    assert_type(encode(nn.MultiheadAttention(4, 2), batch, memory), SequenceBatch)
    assert_type(encode(Causal(decoder), sequences, batch), list[Tensor])


def layers_return_their_weights(
    additive: AdditiveAttention, dot: DotProductAttention, x: Tensor, sequences: list[Tensor], batch: SequenceBatch
) -> None:
    assert_type(additive.attend(batch, batch), tuple[SequenceBatch, SequenceBatch])
    assert_type(additive.attend(sequences, batch), tuple[list[Tensor], SequenceBatch])
    assert_type(dot.attend(x, x), tuple[Tensor, SequenceBatch])
    assert_type(additive.forward(x, x), Tensor)
    assert_type(AdditiveAttention(3, 4, 5, dtype=torch.float64).hidden_size, int)
    assert_type(DotProductAttention(3, 4, device="cpu").query_projection, nn.Linear)


@register_cross_attention(MyLayer)
def my_attention(layer: MyLayer, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    return queries.map(torch.neg)


assert_type(my_attention(MyLayer(), SequenceBatch([]), SequenceBatch([])), SequenceBatch)


def encode_unpacks(lstm: nn.LSTM, xs: Tensor, ys: Tensor) -> None:
    hs_x, hs_y = encode(lstm, [xs, ys])
    assert_type(hs_x, Tensor)
    assert_type(hs_y, Tensor)


def encode_takes_one_kind_or_another(
    lstm: nn.LSTM,
    one_or_batch: Tensor | SequenceBatch,
    several_or_batch: list[Tensor] | SequenceBatch,
    batch_or_packed: SequenceBatch | PackedSequence,
    state: LSTMState,
) -> None:
    assert_type(encode(lstm, one_or_batch), Tensor | SequenceBatch)
    assert_type(encode(lstm, several_or_batch), list[Tensor] | SequenceBatch)
    assert_type(encode(lstm, batch_or_packed), SequenceBatch | PackedSequence)
    assert_type(encode_with_state(lstm, one_or_batch, state)[0], Tensor | SequenceBatch)
    assert_type(encode_with_state(lstm, several_or_batch, state)[0], list[Tensor] | SequenceBatch)
    assert_type(encode_with_state(lstm, batch_or_packed, state)[1], LSTMState)


def encode_in_a_generic_function(lstm: nn.LSTM, sequences: Either, state: LSTMState) -> Either:
    outputs, state = encode_with_state(lstm, sequences, state)
    return encode(nn.ReLU(), outputs)


def encode_with_state_knows_the_state(
    x: Tensor, several: tuple[Tensor, ...], parameters: list[nn.Parameter], batch: SequenceBatch, packed: PackedSequence
) -> None:
    lstm, gru, rnn = nn.LSTM(5, 3), nn.GRU(5, 3), nn.RNN(5, 3)
    assert_type(encode_with_state(lstm, [x, x]), tuple[list[Tensor], LSTMState])
    assert_type(encode_with_state(lstm, several), tuple[list[Tensor], LSTMState])
    assert_type(encode_with_state(lstm, parameters), tuple[list[Tensor], LSTMState])
    assert_type(encode_with_state(lstm, x), tuple[Tensor, LSTMState])
    assert_type(encode_with_state(lstm, batch), tuple[SequenceBatch, LSTMState])
    assert_type(encode_with_state(lstm, packed), tuple[PackedSequence, LSTMState])
    assert_type(encode_with_state(MyLSTM(5, 3), [x, x]), tuple[list[Tensor], LSTMState])
    assert_type(encode_with_state(MyLSTM(5, 3), batch), tuple[SequenceBatch, LSTMState])
    assert_type(encode_with_state(gru, [x, x]), tuple[list[Tensor], RNNState])
    assert_type(encode_with_state(gru, x), tuple[Tensor, RNNState])
    assert_type(encode_with_state(gru, batch), tuple[SequenceBatch, RNNState])
    assert_type(encode_with_state(gru, packed), tuple[PackedSequence, RNNState])
    assert_type(encode_with_state(rnn, several), tuple[list[Tensor], RNNState])
    assert_type(encode_with_state(rnn, x), tuple[Tensor, RNNState])
    assert_type(encode_with_state(rnn, batch), tuple[SequenceBatch, RNNState])
    assert_type(encode_with_state(rnn, packed), tuple[PackedSequence, RNNState])
    assert_type(encode_with_state(nn.Sequential(lstm, gru), [x, x]), tuple[list[Tensor], ContainerState])
    assert_type(encode_with_state(nn.Sequential(lstm, gru), batch), tuple[SequenceBatch, ContainerState])


def encode_with_state_knows_the_state_of_cells(
    x: Tensor, several: tuple[Tensor, ...], batch: SequenceBatch, packed: PackedSequence
) -> None:
    lstm, gru, rnn = nn.LSTMCell(5, 3), nn.GRUCell(5, 3), nn.RNNCell(5, 3)
    assert_type(encode(lstm, [x, x]), list[Tensor])
    assert_type(encode_with_state(lstm, [x, x]), tuple[list[Tensor], LSTMState])
    assert_type(encode_with_state(lstm, packed), tuple[PackedSequence, LSTMState])
    assert_type(encode_with_state(LayerNormLSTMCell(5, 3), x), tuple[Tensor, LSTMState])
    assert_type(encode_with_state(gru, batch), tuple[SequenceBatch, RNNState])
    assert_type(encode_with_state(MyCell(5, 3), several), tuple[list[Tensor], RNNState])
    assert_type(encode_with_state(rnn, x, RNNState(x)), tuple[Tensor, RNNState])


def encode_with_state_leaves_the_state_of_other_layers_open(
    layer: nn.Module, lstm_or_gru: nn.LSTM | nn.GRU, x: Tensor, batch: SequenceBatch, state: LSTMState
) -> None:
    assert_type(encode_with_state(MyLayer(), [x, x]), tuple[list[Tensor], Any])
    assert_type(encode_with_state(MyLayer(), batch, MyState()), tuple[SequenceBatch, Any])
    assert_type(encode_with_state(layer, batch), tuple[SequenceBatch, Any])
    assert_type(encode_with_state(layer, x, state), tuple[Tensor, Any])
    assert_type(encode_with_state(layer, x, (x, x)), tuple[Tensor, Any])
    assert_type(encode_with_state(lstm_or_gru, x)[0], Tensor)


def encode_with_state_takes_back_its_state(lstm: nn.LSTM, gru: nn.GRU, chunks: list[SequenceBatch]) -> None:
    state: LSTMState | None = None
    for chunk in chunks:
        outputs, state = encode_with_state(lstm, chunk, state)
        assert_type(outputs, SequenceBatch)
        assert_type(state, LSTMState)
        state = state.detach()
    _, hidden = encode_with_state(gru, chunks[0])
    _, hidden = encode_with_state(gru, chunks[1], state=hidden)
    assert_type(hidden, RNNState)
    both = nn.Sequential(lstm, gru)
    _, states = encode_with_state(both, chunks[0], None)
    assert_type(encode_with_state(both, chunks[1], states), tuple[SequenceBatch, ContainerState])


def layers_are_made_and_run(x: Tensor, batch: SequenceBatch) -> None:
    assert_type(LockedDropout(0.5)(x), Any)  # as every layer of PyTorch
    assert_type(encode(LockedDropout(0.5), batch), SequenceBatch)
    assert_type(encode(WordDropout(0.1, token=0), [x, x]), list[Tensor])
    assert_type(encode(nn.Sequential(AttentionPool(5), MeanPool()), x), Tensor)
    assert_type(encode(Residual(nn.Linear(5, 5)), batch), SequenceBatch)
    assert_type(encode_with_state(TwoWay(nn.LSTM(5, 3), LayerNormLSTM(5, 3)), x), tuple[Tensor, Any])
    assert_type(LayerNormLSTM(5, 3).cell, LayerNormLSTMCell)


def batches_are_made(x: Tensor, sequences: list[Tensor], packed: PackedSequence, lengths: tuple[int, ...]) -> None:
    assert_type(SequenceBatch(x, [10, 7]), SequenceBatch)
    assert_type(SequenceBatch(values=x, lengths=lengths), SequenceBatch)
    assert_type(SequenceBatch(x, torch.tensor([10, 7])), SequenceBatch)
    assert_type(SequenceBatch(sequences), SequenceBatch)
    assert_type(SequenceBatch(2 * one for one in sequences), SequenceBatch)
    assert_type(SequenceBatch((x, x)), SequenceBatch)
    assert_type(SequenceBatch.from_sequences(sequences), SequenceBatch)
    assert_type(SequenceBatch.from_sequences(2 * one for one in sequences), SequenceBatch)
    assert_type(SequenceBatch.from_padded(x, [10, 7], batch_first=True), SequenceBatch)
    assert_type(SequenceBatch.from_padded(x, x, batch_first=False, padding_side="left"), SequenceBatch)
    assert_type(SequenceBatch.from_mask(x, x > 0, batch_first=True), SequenceBatch)
    assert_type(SequenceBatch.from_packed(packed), SequenceBatch)
    assert_type(SequenceBatch.from_nested(x), SequenceBatch)
    assert_type(SequenceBatch.from_offsets(x, [0, 10, 17]), SequenceBatch)
    assert_type(SequenceBatch.from_offsets(x, x), SequenceBatch)


def samples_are_collated(
    x: Tensor,
    sequences: list[Tensor],
    parameters: list[nn.Parameter],
    batch: SequenceBatch,
    pairs: list[MyPair],
    data: Dataset[MyPair],
) -> None:
    assert_type(collate_sequences([x, x]), SequenceBatch)
    assert_type(collate_sequences(sequences), SequenceBatch)
    assert_type(collate_sequences(parameters), SequenceBatch)
    assert_type(collate_sequences((x, x)), SequenceBatch)
    assert_type(collate_sequences(batch), SequenceBatch)
    assert_type(collate_sequences(samples=sequences, sequences=None), SequenceBatch)
    assert_type(collate_sequences(sequences, sequences=[]), Any)  # a Tensor, and of other samples it is not known
    assert_type(collate_sequences([(x, 1), (x, 0)]), Any)
    assert_type(collate_sequences(pairs, sequences={"x"}), Any)
    assert_type(collate_sequences([{"x": x, "y": "a"}], sequences=["x"]), Any)
    assert_type(collate_sequences([((x, x), x)], sequences=("0.1", 1)), Any)
    assert_type(DataLoader(data, collate_fn=collate_sequences), DataLoader[MyPair])
    assert_type(DataLoader(data, collate_fn=partial(collate_sequences, sequences=["x"])), DataLoader[MyPair])


def batches_are_converted(batch: SequenceBatch) -> None:
    assert_type(batch.to_sequences(), list[Tensor])
    assert_type(batch.to_padded(batch_first=True), Tensor)
    assert_type(
        batch.to_padded(batch_first=False, padding_value=-1, padding_side="left", total_length=20),
        Tensor,
    )
    assert_type(batch.to_packed(), PackedSequence)
    assert_type(batch.to_nested(), Tensor)
    assert_type(batch.mask(batch_first=True, padding_side="right", total_length=None), Tensor)


def batches_tell_what_they_hold(batch: SequenceBatch) -> None:
    assert_type(batch.values, Tensor)
    assert_type(batch.lengths, tuple[int, ...])
    assert_type(batch.offsets, Tensor)
    assert_type(batch.batch_size, int)
    assert_type(batch.total_steps, int)
    assert_type(batch.max_length, int)
    assert_type(batch.feature_shape, torch.Size)
    assert_type(batch.dtype, torch.dtype)
    assert_type(batch.device, torch.device)


def batches_are_indexed(batch: SequenceBatch, x: Tensor, numbers: list[int], flags: list[bool]) -> None:
    assert_type(batch[0], Tensor)
    assert_type(batch[-1], Tensor)
    assert_type(batch[1:], SequenceBatch)
    assert_type(batch[::2], SequenceBatch)
    assert_type(batch[numbers], SequenceBatch)
    assert_type(batch[[1, 0]], SequenceBatch)
    assert_type(batch[flags], SequenceBatch)
    assert_type(batch[[True, False]], SequenceBatch)
    assert_type(batch[x], SequenceBatch)


def batches_are_indexed_by_step(
    batch: SequenceBatch,
    x: Tensor,
    numbers: list[int],
    flags: list[bool],
    number: np.int64,
    array: npt.NDArray[np.int64],
) -> None:
    assert_type(batch[:, 1:], SequenceBatch)
    assert_type(batch[:, :-1], SequenceBatch)
    assert_type(batch[:, ::2], SequenceBatch)
    assert_type(batch[2:, :3], SequenceBatch)
    assert_type(batch[numbers, 1:], SequenceBatch)
    assert_type(batch[flags, 1:], SequenceBatch)
    assert_type(batch[x, 1:], SequenceBatch)
    assert_type(batch[array, 1:], SequenceBatch)
    assert_type(batch[:, 0], Tensor)
    assert_type(batch[:, -1], Tensor)
    assert_type(batch[:, x], Tensor)
    assert_type(batch[:, number], Tensor)
    assert_type(batch[numbers, 0], Tensor)
    assert_type(batch[x, 0], Tensor)
    assert_type(batch[array, number], Tensor)
    assert_type(batch[0, 1:], Tensor)
    assert_type(batch[0, -1], Tensor)
    assert_type(batch[0, x], Tensor)
    assert_type(batch[number, 1:], Tensor)
    assert_type(batch[number, 0], Tensor)
    assert_type(batch.take(batch), SequenceBatch)


def batches_and_states_are_indexed_by_numpy(
    batch: SequenceBatch,
    state: LSTMState,
    array: npt.NDArray[np.int64],
    mask: npt.NDArray[np.bool_],
    number: np.int64,
    numbers: list[np.int64],
    flags: list[np.bool_],
) -> None:
    assert_type(batch[array], SequenceBatch)
    assert_type(batch[mask], SequenceBatch)
    assert_type(batch[number], Tensor)
    assert_type(batch[numbers], SequenceBatch)
    assert_type(batch[flags], SequenceBatch)
    assert_type(state[array], LSTMState)
    assert_type(state[mask], LSTMState)
    assert_type(state.select(number), LSTMState)
    assert_type(state.select(numbers), LSTMState)
    assert_type(state.reset(mask), LSTMState)
    assert_type(state.reset(flags), LSTMState)


def batches_and_states_are_cast(batch: SequenceBatch, state: LSTMState) -> None:
    assert_type(batch.float(), SequenceBatch)
    assert_type(batch.double(), SequenceBatch)
    assert_type(batch.half(), SequenceBatch)
    assert_type(batch.bfloat16(), SequenceBatch)
    assert_type(state.float(), LSTMState)


def batches_are_sequences_of_tensors(batch: SequenceBatch, x: Tensor) -> None:
    sequences: Sequence[Tensor] = batch
    assert_type(sequences[0], Tensor)
    assert_type(len(batch), int)
    assert_type(iter(batch), Iterator[Tensor])
    assert_type([one for one in batch], list[Tensor])  # noqa: C416  # list(batch) would show less
    assert_type(list(batch), list[Tensor])
    assert_type(list(zip(batch, batch.lengths, strict=True)), list[tuple[Tensor, int]])
    assert_type(x in batch, bool)
    assert_type(batch.count(x), int)
    assert_type(batch.index(x, 1, 3), int)
    first, second = batch
    assert_type(first, Tensor)
    assert_type(second, Tensor)


def batches_are_reduced(batch: SequenceBatch) -> None:
    assert_type(batch.sum(), Tensor)
    assert_type(batch.mean(), Tensor)
    assert_type(batch.max(), Tensor)
    assert_type(batch.min(), Tensor)
    assert_type(batch.first(), Tensor)
    assert_type(batch.last(), Tensor)
    assert_type(batch.softmax(), SequenceBatch)
    assert_type(batch.log_softmax(), SequenceBatch)
    assert_type(batch.cumsum(), SequenceBatch)
    assert_type(batch.cumsum(reverse=True), SequenceBatch)
    assert_type(batch.logsumexp(), Tensor)
    assert_type(batch.argmax(), Tensor)
    assert_type(batch.argmin(), Tensor)
    assert_type(batch.all(), Tensor)
    assert_type(batch.any(), Tensor)
    assert_type(batch.var(), Tensor)
    assert_type(batch.std(correction=0), Tensor)


def batches_give_batches(batch: SequenceBatch, x: Tensor) -> None:
    assert_type(batch.map(torch.relu), SequenceBatch)
    assert_type(batch.map(lambda values: values + 1), SequenceBatch)
    assert_type(batch.map(nn.Linear(5, 3)), SequenceBatch)
    assert_type(batch.map(torch.add, batch), SequenceBatch)
    assert_type(batch.with_values(x), SequenceBatch)
    assert_type(batch.expand(x), SequenceBatch)
    assert_type(batch.map(torch.add, batch.expand(x)), SequenceBatch)
    assert_type(batch.reverse(), SequenceBatch)
    assert_type(SequenceBatch.concat([batch, batch]), SequenceBatch)
    assert_type(SequenceBatch.concat(part for part in (batch, batch)), SequenceBatch)
    assert_type(SequenceBatch.concat_steps([batch, batch]), SequenceBatch)
    assert_type(SequenceBatch.concat_steps(part for part in (batch, batch)), SequenceBatch)
    assert_type(batch.merge([2, 1]), SequenceBatch)
    assert_type(batch.merge(x), SequenceBatch)
    assert_type(batch.merge(batch.structure), SequenceBatch)
    assert_type(batch.split((2, 1)), SequenceBatch)
    assert_type(batch.split(batch.structure), SequenceBatch)
    assert_type(batch.map_sequences(torch.flatten), SequenceBatch)
    assert_type(batch.map_sequences(lambda sequence: sequence[1:]), SequenceBatch)
    assert_type(batch.to("cuda"), SequenceBatch)
    assert_type(batch.to(dtype=torch.float64, non_blocking=True), SequenceBatch)
    assert_type(batch.cpu(), SequenceBatch)
    assert_type(batch.cuda(), SequenceBatch)
    assert_type(batch.cuda(0, non_blocking=True), SequenceBatch)
    assert_type(batch.pin_memory(), SequenceBatch)
    assert_type(batch.detach(), SequenceBatch)
    assert_type(batch.clone(), SequenceBatch)


class MyBatch(SequenceBatch):
    pass


def subclasses_of_a_batch_keep_their_type(batch: MyBatch, sequences: list[Tensor]) -> None:
    assert_type(MyBatch.from_sequences(sequences), MyBatch)
    assert_type(MyBatch.concat([batch]), MyBatch)
    assert_type(MyBatch.concat_steps([batch]), MyBatch)
    assert_type(batch[1:], MyBatch)
    assert_type(batch[:, 1:].take(batch).merge([2]).split([2]), MyBatch)
    assert_type(batch.reverse().softmax().to("cuda"), MyBatch)
    assert_type(batch.log_softmax().cumsum().expand(batch.max()), MyBatch)


def lstm_states(state: LSTMState, lstm: nn.LSTM, x: Tensor) -> None:
    assert_type(LSTMState(x, x), LSTMState)
    assert_type(LSTMState(hidden=x, cell=x), LSTMState)
    assert_type(state.hidden, Tensor)
    assert_type(state.cell, Tensor)
    assert_type(state.batch_size, int)
    assert_type(state.last(), Tensor)
    assert_type(state[0], LSTMState)
    assert_type(state[1:], LSTMState)
    assert_type(state[[True, False]], LSTMState)
    assert_type(state.select(x), LSTMState)
    assert_type(state.select([1, 0]), LSTMState)
    assert_type(state.reset(0), LSTMState)
    assert_type(state.detach(), LSTMState)
    assert_type(state.to(torch.float64), LSTMState)
    assert_type(state.to_torch(), tuple[Tensor, Tensor])
    assert_type(LSTMState.from_torch((x, x), lstm), LSTMState)
    assert_type(LSTMState.from_torch(state.to_torch(), lstm), LSTMState)


def rnn_states(state: RNNState, gru: nn.GRU, x: Tensor) -> None:
    assert_type(RNNState(x), RNNState)
    assert_type(RNNState(hidden=x), RNNState)
    assert_type(state.hidden, Tensor)
    assert_type(state.batch_size, int)
    assert_type(state.last(), Tensor)
    assert_type(state[0], RNNState)
    assert_type(state.select(slice(1, None)), RNNState)
    assert_type(state.reset([0]), RNNState)
    assert_type(state.detach(), RNNState)
    assert_type(state.to("cuda"), RNNState)
    assert_type(state.to_torch(), Tensor)
    assert_type(RNNState.from_torch(x, gru), RNNState)


def container_states(state: ContainerState, first: LSTMState) -> None:
    assert_type(ContainerState((first, None)), ContainerState)
    assert_type(ContainerState(states=(first, None)), ContainerState)
    assert_type(state.states, tuple[Any, ...])
    assert_type(state.batch_size, int)
    assert_type(state[0], ContainerState)
    assert_type(state.select([0]), ContainerState)
    assert_type(state.reset(0), ContainerState)
    assert_type(state.detach(), ContainerState)
    assert_type(state.to("cuda"), ContainerState)


Pair = tuple[Tensor, Tensor]


def step_of_pair(inputs: Tensor, state: Pair) -> tuple[Tensor, Pair]:
    return inputs, state


def step_of_lstm_state(inputs: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
    return inputs, state


def step_with_memory(inputs: Tensor, state: Tensor, memory: SequenceBatch) -> tuple[Tensor, Tensor]:
    return inputs, state


def step_of_several(inputs: Tensor, state: Pair) -> tuple[tuple[Tensor, SequenceBatch], Pair]:
    raise NotImplementedError


def step_of_weights(inputs: Tensor, state: Tensor, memory: dict[str, Tensor]) -> tuple[SequenceBatch, Tensor]:
    raise NotImplementedError


def scan_gives_back_the_kind_and_the_state(
    x: Tensor,
    sequences: list[Tensor],
    several: tuple[Tensor, ...],
    batch: SequenceBatch,
    packed: PackedSequence,
    parameters: list[nn.Parameter],
    pair: Pair,
    state: LSTMState,
    memory: SequenceBatch,
    either: Tensor | SequenceBatch,
) -> None:
    assert_type(scan(step_of_pair, x, pair), tuple[Tensor, Pair])
    assert_type(scan(step_of_pair, batch, pair), tuple[SequenceBatch, Pair])
    assert_type(scan(step_of_pair, packed, pair, reverse=True), tuple[PackedSequence, Pair])
    assert_type(scan(step_of_pair, sequences, pair), tuple[list[Tensor], Pair])
    assert_type(scan(step_of_pair, several, (x, x)), tuple[list[Tensor], Pair])
    assert_type(scan(step_of_pair, parameters, pair), tuple[list[Tensor], Pair])
    assert_type(scan(step_of_pair, [x, x], pair), tuple[list[Tensor], Pair])
    assert_type(scan(step_of_lstm_state, batch, state), tuple[SequenceBatch, LSTMState])
    assert_type(scan(step_with_memory, batch, x, constants=memory), tuple[SequenceBatch, Tensor])
    assert_type(scan(step_with_memory, x, x, constants=memory), tuple[Tensor, Tensor])
    assert_type(scan(step_with_memory, [x], x, constants=memory, reverse=True), tuple[list[Tensor], Tensor])
    assert_type(scan(step_of_several, batch, pair), tuple[Any, Pair])
    assert_type(scan(step_of_several, [x], pair), tuple[Any, Pair])
    assert_type(scan(step_of_weights, batch, x, constants={"mask": x}), tuple[Any, Tensor])
    assert_type(scan(step_of_pair, either, pair)[0], Tensor | SequenceBatch)
    assert_type(scan(lambda inputs, state: (inputs, state), batch, x), tuple[SequenceBatch, Tensor])


def layers_keep_a_state_or_not(layer: nn.Module) -> None:
    assert_type(is_recurrent(layer), bool)


@register_encoder(MyLayer)
def encoder(layer: MyLayer, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(layer)


@register_encoder(MyLayer)
def encoder_of_any_layer(layer: nn.Module, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(layer)


@register_recurrent(MyLayer)
def recurrent(layer: MyLayer, batch: SequenceBatch, state: MyState | None) -> tuple[SequenceBatch, MyState]:
    return batch, state or MyState()


@register_recurrent(MyLayer, when=lambda layer: layer.training)
def recurrent_at_times(layer: MyLayer, batch: SequenceBatch, state: Tensor | None) -> tuple[SequenceBatch, Tensor]:
    return batch, batch.last() if state is None else state


def decorators_keep_the_type_of_a_function() -> None:
    assert_type(encoder, Callable[[MyLayer, SequenceBatch], SequenceBatch])
    assert_type(encoder_of_any_layer, Callable[[MyLayer, SequenceBatch], SequenceBatch])
    assert_type(recurrent, Callable[[MyLayer, SequenceBatch, MyState | None], tuple[SequenceBatch, MyState]])
    assert_type(recurrent_at_times, Callable[[MyLayer, SequenceBatch, Tensor | None], tuple[SequenceBatch, Tensor]])


def errors_are_errors_of_python(
    unsupported: UnsupportedLayerError,
    wrong_type: SeqbatchTypeError,
    wrong_value: SeqbatchValueError,
    wrong_index: SeqbatchIndexError,
) -> tuple[list[SeqbatchError], list[TypeError], list[ValueError], list[IndexError]]:
    errors: list[SeqbatchError] = [unsupported, wrong_type, wrong_value, wrong_index]
    return errors, [unsupported, wrong_type], [wrong_value], [wrong_index]
