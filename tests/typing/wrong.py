"""What users may not write: mypy and pyright report each line marked wrong, and no other. Never run."""

# ruff: noqa: B015, B018, F841, RUF059  # what a line gives is of no use here

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from seqbatch import (
    ContainerState,
    LSTMState,
    RNNState,
    SequenceBatch,
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
    DotProductAttention,
    LayerNormLSTM,
    LockedDropout,
    Residual,
    TwoWay,
    WordDropout,
)


class MyLayer(nn.Module):
    pass


class MyState:
    pass


def encode_takes_a_layer(x: Tensor) -> None:
    encode(nn.LSTM, [x, x])  # wrong
    encode(3, [x, x])  # wrong
    encode(None, [x, x])  # wrong
    encode(torch.relu, [x, x])  # wrong
    encode([nn.Linear(5, 3)], [x, x])  # wrong
    encode([x, x], nn.LSTM(5, 3))  # wrong
    is_recurrent(nn.LSTM)  # wrong


def encode_takes_sequences(lstm: nn.LSTM, x: Tensor, batch: SequenceBatch, state: LSTMState, text: list[str]) -> None:
    encode(lstm)  # wrong
    encode(lstm, "text")  # wrong
    encode(lstm, text)  # wrong
    encode(lstm, None)  # wrong
    encode(lstm, [1.0, 2.0])  # wrong
    encode(lstm, [[1.0], [2.0]])  # wrong
    encode(lstm, {x})  # wrong
    encode(lstm, {"x": x})  # wrong
    encode(lstm, (2 * one for one in batch))  # wrong
    encode(lstm, [batch, batch])  # wrong
    encode(lstm, [x, None])  # wrong
    encode(lstm, batch, state)  # wrong
    encode_with_state(lstm)  # wrong
    encode_with_state(lstm, "text")  # wrong
    encode_with_state(lstm, [batch, batch])  # wrong
    encode_with_state(lstm, "text", state)  # wrong


def encode_attends_to_memory(
    decoder: nn.TransformerDecoder, lstm: nn.LSTM, x: Tensor, xs: list[Tensor], batch: SequenceBatch
) -> None:
    encode(decoder, x, xs)  # wrong
    encode(decoder, x, batch)  # wrong
    encode(decoder, xs, x)  # wrong
    encode(decoder, batch, x)  # wrong
    encode(decoder, batch, 3)  # wrong
    encode(decoder, batch, [x, 3])  # wrong
    encode(decoder, batch, [batch])  # wrong
    one: Tensor = encode(decoder, xs, xs)  # wrong
    several: list[Tensor] = encode(decoder, batch, xs)  # wrong
    taken: Tensor = encode(lstm, x, x)  # wrong
    states: SequenceBatch = encode(nn.Sequential(decoder), batch, batch)  # wrong
    DotProductAttention(3)  # wrong
    AdditiveAttention(3, 4)  # wrong
    contexts: SequenceBatch = DotProductAttention(3, 4).attend(batch, batch)  # wrong
    DotProductAttention(3, 4).attend(x, xs)  # wrong


@register_cross_attention(MyLayer)  # wrong
def my_attention(layer: MyLayer, queries: SequenceBatch) -> SequenceBatch:
    return queries


def encode_gives_back_the_kind(lstm: nn.LSTM, x: Tensor, batch: SequenceBatch, packed: PackedSequence) -> None:
    one: Tensor = encode(lstm, [x, x])  # wrong
    several: list[Tensor] = encode(lstm, x)  # wrong
    pair: tuple[Tensor, Tensor] = encode(lstm, (x, x))  # wrong
    parameter: nn.Parameter = encode(lstm, nn.Parameter(x))  # wrong
    sequences: list[Tensor] = encode(lstm, batch)  # wrong
    packed_again: SequenceBatch = encode(lstm, packed)  # wrong
    encode(lstm, [x, x]).lengths  # wrong
    encode(lstm, batch).shape  # wrong
    outputs, state = encode_with_state(lstm, [x, x])
    outputs.shape  # wrong
    state.shape  # wrong


def encode_with_state_takes_the_state_of_the_layer(
    lstm: nn.LSTM,
    gru: nn.GRU,
    rnn: nn.RNN,
    both: nn.Sequential,
    x: Tensor,
    batch: SequenceBatch,
    lstm_state: LSTMState,
    rnn_state: RNNState,
    states: ContainerState,
) -> None:
    hs, end = encode_with_state(lstm, [x, x], rnn_state)  # wrong
    hs, end = encode_with_state(lstm, [x, x], state=rnn_state)  # wrong
    hs, end = encode_with_state(lstm, [x, x], (x, x))  # wrong
    hs, end = encode_with_state(lstm, (x, x), states)  # wrong
    ys, end = encode_with_state(gru, batch, lstm_state)  # wrong
    ys, end = encode_with_state(gru, batch, x)  # wrong
    ys, end = encode_with_state(rnn, batch, lstm_state)  # wrong
    ys, end = encode_with_state(both, batch, lstm_state)  # wrong
    ys, end = encode_with_state(both, batch, (lstm_state, rnn_state))  # wrong
    encode_with_state(gru, x, lstm_state)[0]  # wrong
    encode_with_state(lstm, x, lstm_state.hidden)[1]  # wrong


def encode_with_state_takes_the_state_of_the_cell(
    lstm: nn.LSTMCell, gru: nn.GRUCell, rnn: nn.RNNCell, x: Tensor, lstm_state: LSTMState, rnn_state: RNNState
) -> None:
    hs, end = encode_with_state(lstm, [x, x], rnn_state)  # wrong
    hs, end = encode_with_state(lstm, x, (x, x))  # wrong
    ys, end = encode_with_state(gru, x, lstm_state)  # wrong
    ys, end = encode_with_state(rnn, [x, x], x)  # wrong
    pair: LSTMState = encode_with_state(gru, x)[1]  # wrong
    encode_with_state(rnn, x)[1].cell  # wrong


def layers_are_made(x: Tensor) -> None:
    LockedDropout("0.5")  # wrong
    LockedDropout()  # wrong
    WordDropout(0.5, 7)  # wrong
    WordDropout(0.5, token=x)  # wrong
    AttentionPool()  # wrong
    Residual(torch.relu)  # wrong
    Residual(nn.Linear)  # wrong
    TwoWay(nn.LSTM(5, 3))  # wrong
    LayerNormLSTM(5)  # wrong


def encode_with_state_gives_the_state_of_the_layer(lstm: nn.LSTM, gru: nn.GRU, batch: SequenceBatch) -> None:
    hidden: RNNState = encode_with_state(lstm, batch)[1]  # wrong
    pair: LSTMState = encode_with_state(gru, batch)[1]  # wrong
    encode_with_state(gru, batch)[1].cell  # wrong
    encode_with_state(nn.Sequential(lstm), batch)[1].hidden  # wrong
    (outputs, (h_n, c_n)) = encode_with_state(lstm, batch)  # wrong


def batches_need_values_and_lengths(x: Tensor, sequences: list[Tensor], packed: PackedSequence) -> None:
    SequenceBatch(x)  # wrong
    SequenceBatch(x, 17)  # wrong
    SequenceBatch(x, "10 7")  # wrong
    SequenceBatch(x, [10.0, 7.0])  # wrong
    SequenceBatch(sequences, [10, 7])  # wrong
    SequenceBatch(x, sizes=[10, 7])  # wrong
    SequenceBatch([[1.0]])  # wrong
    SequenceBatch.from_sequences(3)  # wrong
    SequenceBatch.from_sequences([[1.0], [2.0]])  # wrong
    SequenceBatch.from_packed(x)  # wrong
    SequenceBatch.from_nested(sequences)  # wrong
    SequenceBatch.from_offsets(x, 17)  # wrong
    SequenceBatch.from_offsets(x)  # wrong
    SequenceBatch.concat(SequenceBatch(x, [17]), SequenceBatch(x, [17]))  # wrong
    SequenceBatch.concat(sequences)  # wrong


def samples_are_collated(x: Tensor, pairs: list[tuple[Tensor, int]]) -> None:
    collate_sequences()  # wrong
    collate_sequences(x)  # wrong
    collate_sequences(x, x)  # wrong
    collate_sequences({"x": x})  # wrong
    collate_sequences({x})  # wrong
    collate_sequences(one for one in pairs)  # wrong
    collate_sequences(None)  # wrong
    collate_sequences(pairs, [0])  # wrong
    collate_sequences(pairs, sequences=0)  # wrong
    collate_sequences(pairs, sequences=[x])  # wrong
    collate_sequences(pairs, sequences=[0.5])  # wrong
    collate_sequences(pairs, names=["0"])  # wrong
    collate_sequences([x, x]).shape  # wrong


def batch_first_is_never_guessed(x: Tensor, batch: SequenceBatch) -> None:
    SequenceBatch.from_padded(x, [10, 7])  # wrong
    SequenceBatch.from_padded(x, [10, 7], True)  # wrong
    SequenceBatch.from_padded(x, [10, 7], batch_first=None)  # wrong
    SequenceBatch.from_padded(x, batch_first=True)  # wrong
    SequenceBatch.from_mask(x, x > 0)  # wrong
    SequenceBatch.from_mask(x, x > 0, True)  # wrong
    batch.to_padded()  # wrong
    batch.to_padded(True)  # wrong
    batch.to_padded(batch_first="yes")  # wrong
    batch.mask()  # wrong
    batch.mask(True)  # wrong


def paddings_are_known(x: Tensor, batch: SequenceBatch, side: str, right: Literal["right"]) -> None:
    SequenceBatch.from_padded(x, [10, 7], batch_first=True, padding_side="both")  # wrong
    batch.to_padded(batch_first=True, padding_side="both")  # wrong
    batch.to_padded(batch_first=True, padding_side=side)  # wrong
    batch.to_padded(batch_first=True, padding_side=right)
    batch.to_padded(batch_first=True, padding_value="0")  # wrong
    batch.to_padded(batch_first=True, padding_value=None)  # wrong
    batch.to_padded(batch_first=True, total_length=20.0)  # wrong
    batch.to_padded(batch_first=True, length=20)  # wrong
    batch.mask(batch_first=True, padding_side="both")  # wrong
    batch.mask(batch_first=True, total_length="20")  # wrong


def batches_do_not_change(batch: SequenceBatch, x: Tensor) -> None:
    batch.values = x  # wrong
    batch.lengths = (10, 7)  # wrong
    batch.lengths[0] = 10  # wrong
    batch.batch_size = 2  # wrong
    batch.dtype = torch.float64  # wrong
    batch[0] = x  # wrong
    del batch[0]  # wrong
    batch.append(x)  # wrong


def batches_are_indexed_by_sequence(batch: SequenceBatch) -> None:
    batch["xs"]  # wrong
    batch[0.0]  # wrong
    batch[None]  # wrong
    batch[["xs"]]  # wrong
    batch[[1.0]]  # wrong
    batch[batch]  # wrong
    batch[0].lengths  # wrong
    batch[:1].shape  # wrong


def batches_are_indexed_by_step(batch: SequenceBatch, x: Tensor) -> None:
    batch[0, 1, 2]  # wrong
    batch[..., 0]  # wrong
    batch[:, ...]  # wrong
    batch[:, None]  # wrong
    batch[None, :]  # wrong
    batch[:, [0, 1]]  # wrong
    batch[:, 0.5]  # wrong
    batch[:, "xs"]  # wrong
    batch[:, 0].lengths  # wrong
    batch[0, :].lengths  # wrong
    batch[:, 1:].shape  # wrong
    batch[[0, 1], :-1].shape  # wrong
    batch.take(x)  # wrong
    batch.take([0, 1])  # wrong
    batch.take()  # wrong
    batch.take(batch).shape  # wrong


def batches_are_joined_and_cut(batch: SequenceBatch, x: Tensor, sequences: list[Tensor]) -> None:
    SequenceBatch.concat_steps(batch, batch)  # wrong
    SequenceBatch.concat_steps(sequences)  # wrong
    batch.concat_steps()  # wrong
    batch.merge(2)  # wrong
    batch.merge([1.0])  # wrong
    batch.split("2 1")  # wrong
    batch.split(batch)  # wrong
    batch.merge([1, 2]).shape  # wrong
    batch.map_sequences(len)  # wrong
    batch.map_sequences(x)  # wrong
    batch.map_sequences(torch.add, batch)  # wrong
    batch.map_sequences(torch.relu).shape  # wrong


def batches_are_no_tensors(batch: SequenceBatch, x: Tensor) -> None:
    batch + batch  # wrong
    2 * batch  # wrong
    torch.relu(batch)  # wrong
    batch.shape  # wrong
    nn.functional.relu(batch)  # wrong
    -batch  # wrong
    x * batch  # wrong
    batch @ x  # wrong
    batch > 0  # wrong
    batch.dim()  # wrong


def batches_map_tensors_to_tensors(batch: SequenceBatch, x: Tensor) -> None:
    batch.map(len)  # wrong
    batch.map(x)  # wrong
    batch.map(torch.add, x)  # wrong
    batch.map(torch.add, [batch])  # wrong
    batch.with_values([1.0, 2.0])  # wrong
    batch.with_values(batch)  # wrong
    batch.reverse(0)  # wrong
    batch.sum(0)  # wrong
    batch.expand([1.0, 2.0])  # wrong
    batch.expand(batch)  # wrong
    batch.softmax().shape  # wrong
    batch.log_softmax().shape  # wrong
    batch.cumsum(True)  # wrong
    batch.cumsum(0)  # wrong
    batch.argmax(0)  # wrong
    batch.argmax().lengths  # wrong
    batch.all().lengths  # wrong
    batch.var(0)  # wrong
    batch.std(correction="1")  # wrong
    batch.logsumexp(0)  # wrong
    batch.max().lengths  # wrong
    batch.cuda(0, True)  # wrong


def states_are_made(x: Tensor, lstm: nn.LSTM, gru: nn.GRU) -> None:
    LSTMState(x)  # wrong
    LSTMState((x, x))  # wrong
    RNNState(x, x)  # wrong
    RNNState()  # wrong
    LSTMState(h=x, c=x)  # wrong
    ContainerState(LSTMState(x, x), RNNState(x))  # wrong
    LSTMState.from_torch(x, lstm)  # wrong
    LSTMState.from_torch((x, x, x), lstm)  # wrong
    LSTMState.from_torch((x, x))  # wrong
    LSTMState.from_torch(x, x, lstm)  # wrong
    RNNState.from_torch((x, x), gru)  # wrong
    RNNState.from_torch(x, nn.GRU)  # wrong


def states_are_not_tuples(lstm_state: LSTMState, rnn_state: RNNState, states: ContainerState, x: Tensor) -> None:
    hidden, cell = lstm_state  # wrong
    (only,) = rnn_state  # wrong
    for state in states:  # wrong
        print(state)
    list(lstm_state)  # wrong
    lstm_state.hidden = x  # wrong
    lstm_state.batch_size = 3  # wrong
    lstm_state["hidden"]  # wrong
    lstm_state[0, 1]  # wrong
    lstm_state[0] = lstm_state  # wrong
    lstm_state.select()  # wrong
    lstm_state.select("all")  # wrong
    lstm_state.select([1.0])  # wrong
    lstm_state + lstm_state  # wrong
    lstm_state.reset(None)  # wrong
    rnn_state.cell  # wrong
    states.hidden  # wrong
    states.last()  # wrong
    states.to_torch()  # wrong
    lstm_state.to_torch().shape  # wrong


@register_encoder(MyLayer)  # wrong
def _(layer: nn.LSTM, batch: SequenceBatch) -> SequenceBatch:
    return batch


@register_encoder(MyLayer)  # wrong
def _(layer: MyLayer, batch: SequenceBatch) -> Tensor:
    return batch.values


@register_encoder(MyLayer)  # wrong
def _(layer: MyLayer, batch: Tensor) -> SequenceBatch:
    return SequenceBatch(batch, [len(batch)])


@register_encoder(MyLayer)  # wrong
def _(layer: MyLayer) -> SequenceBatch:
    return SequenceBatch.from_sequences([])


@register_encoder(MyLayer)  # wrong
def _(layer: MyLayer, batch: SequenceBatch, state: MyState | None) -> tuple[SequenceBatch, MyState]:
    return batch, state or MyState()


@register_encoder(MyLayer())  # wrong
def _(layer: MyLayer, batch: SequenceBatch) -> SequenceBatch:
    return batch


@register_encoder(MyState)  # wrong
def _(layer: MyState, batch: SequenceBatch) -> SequenceBatch:
    return batch


def step(inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return inputs, state


def step_with_memory(inputs: Tensor, state: Tensor, memory: SequenceBatch) -> tuple[Tensor, Tensor]:
    return inputs, state


def step_without_output(inputs: Tensor, state: Tensor) -> Tensor:
    return state


def step_of_number(inputs: Tensor, state: Tensor) -> tuple[float, Tensor]:
    return 0.0, state


def step_of_other_state(inputs: Tensor, state: Tensor) -> tuple[Tensor, None]:
    return inputs, None


def scan_takes_a_step_and_its_state(x: Tensor, batch: SequenceBatch, state: LSTMState) -> None:
    scan(step, batch)  # wrong
    scan(batch, step, x)  # wrong
    scan(step, "text", x)  # wrong
    scan(step, [1.0], x)  # wrong
    scan(step, batch, state)  # wrong
    scan(step, batch, (x, x))  # wrong
    scan(step, batch, x, batch)  # wrong
    scan(step, batch, x, constants=batch)  # wrong
    scan(step, batch, x, reverse="yes")  # wrong
    scan(step_with_memory, batch, x)  # wrong
    scan(step_with_memory, batch, x, constants=x)  # wrong
    scan(step_without_output, batch, x)  # wrong
    scan(step_of_number, batch, x)  # wrong
    scan(step_of_other_state, batch, x)  # wrong


def scan_gives_back_the_kind(x: Tensor, batch: SequenceBatch) -> None:
    one: Tensor = scan(step, [x, x], x)[0]  # wrong
    several: list[Tensor] = scan(step, batch, x)[0]  # wrong
    scan(step, batch, x)[0].shape  # wrong
    scan(step, batch, x)[1].lengths  # wrong


@register_encoder  # wrong
def _(layer: MyLayer, batch: SequenceBatch) -> SequenceBatch:
    return batch


@register_recurrent(MyLayer)  # wrong
def _(layer: nn.LSTM, batch: SequenceBatch, state: MyState | None) -> tuple[SequenceBatch, MyState]:
    return batch, state or MyState()


@register_recurrent(MyLayer)  # wrong
def _(layer: MyLayer, batch: SequenceBatch, state: MyState) -> tuple[SequenceBatch, MyState]:
    return batch, state


@register_recurrent(MyLayer)  # wrong
def _(layer: MyLayer, batch: SequenceBatch, state: MyState | None) -> tuple[SequenceBatch, Tensor]:
    return batch, batch.values


@register_recurrent(MyLayer)  # wrong
def _(layer: MyLayer, batch: SequenceBatch, state: MyState | None) -> SequenceBatch:
    return batch


@register_recurrent(MyLayer)  # wrong
def _(layer: MyLayer, batch: SequenceBatch) -> SequenceBatch:
    return batch


@register_recurrent(MyLayer, lambda layer: layer.training)  # wrong
def _(layer: MyLayer, batch: SequenceBatch, state: MyState | None) -> tuple[SequenceBatch, MyState]:
    return batch, state or MyState()


@register_recurrent(MyLayer, when=True)  # wrong
def _(layer: MyLayer, batch: SequenceBatch, state: MyState | None) -> tuple[SequenceBatch, MyState]:
    return batch, state or MyState()
