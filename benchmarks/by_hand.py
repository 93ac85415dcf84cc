"""Layers run on padded sequences by hand: pad, run the layer and cut, in the way of PyTorch that is exact for it.

All go from a layer and a list of tensors to a list of tensors; pools to one tensor, a row for each sequence. A mask
keeps padding out only where it would affect a result: what comes after the end of a sequence is cut off.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence


def _padded(sequences: list[Tensor], value: float = 0.0) -> Tensor:
    return pad_sequence(sequences, batch_first=True, padding_value=value)


def _lengths(sequences: list[Tensor]) -> Tensor:
    return torch.tensor([len(one) for one in sequences], device=sequences[0].device)


def _mask(sequences: list[Tensor]) -> Tensor:
    """Return `(batch, time)`, True on real steps."""
    lengths = _lengths(sequences)
    return torch.arange(max(len(one) for one in sequences), device=lengths.device) < lengths[:, None]


def _cut(padded: Tensor, sequences: list[Tensor], stride: int = 1) -> list[Tensor]:
    """Return the real steps of each sequence; with a stride, the first of every `stride` steps."""
    return [row[: -(-len(one) // stride)] for row, one in zip(padded, sequences, strict=True)]


def steps(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    """A layer that treats every step by itself may treat padding too."""
    return _cut(layer(_padded(sequences)), sequences)


def step_samples(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    """One for which a step is a sample has no dimension of time."""
    padded = _padded(sequences)
    return _cut(layer(padded.flatten(0, 1)).view_as(padded), sequences)


def real_steps(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    """One that takes statistics over steps in training must have the real ones alone there: select them."""
    if not layer.training:
        return step_samples(layer, sequences)
    return list(layer(_padded(sequences)[_mask(sequences)]).split([len(one) for one in sequences]))


def windows(layer: Any, sequences: list[Tensor], stride: int = 1, value: float = 0.0) -> list[Tensor]:
    """What is padded behind a sequence has the value that the layer itself pads with."""
    return _cut(layer(_padded(sequences, value).mT).mT, sequences, stride)


def images(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    """Between two convolutions, the first of which writes to padding, zeros are written back there."""
    first, activation, second = layer
    hidden = activation(first(_padded(sequences)[:, None])) * _mask(sequences)[:, None, :, None]
    return _cut(second(hidden).transpose(1, 2), sequences)


def loop(cell: Any, steps: Tensor) -> list[Tensor]:
    """Return the output of a cell at each step, one after another."""
    outputs, state = [], None
    for step in steps:
        state = cell(step, state)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return outputs


def cell_steps(cell: Any, sequences: list[Tensor]) -> list[Tensor]:
    """A sequence that has ended runs on through padding, because its final state is not needed."""
    return _cut(torch.stack(loop(cell, pad_sequence(sequences)), 1), sequences)


def attention(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    padded, mask = _padded(sequences), _mask(sequences)
    return _cut(layer(padded, padded, padded, key_padding_mask=~mask, need_weights=False)[0], sequences)


def causal(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    """Where no step attends to later ones, none does to the padding behind it."""
    padded = _padded(sequences)
    later = nn.Transformer.generate_square_subsequent_mask(padded.shape[1], device=padded.device)
    return _cut(layer(padded, padded, padded, attn_mask=later, is_causal=True, need_weights=False)[0], sequences)


def transformer(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    return _cut(layer(_padded(sequences), src_key_padding_mask=~_mask(sequences)), sequences)


def attention_to_memory(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    memory = sequences[::-1]
    keys, hidden = _padded(memory), ~_mask(memory)
    output, _ = layer(_padded(sequences), keys, keys, key_padding_mask=hidden, need_weights=False)
    return _cut(output, sequences)


def decoder(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    """Where no step attends to later ones, none does to the padding behind it."""
    memory, padded = sequences[::-1], _padded(sequences)
    later = nn.Transformer.generate_square_subsequent_mask(padded.shape[1], device=padded.device)
    hidden = ~_mask(memory)
    output = layer(padded, _padded(memory), later, memory_key_padding_mask=hidden, tgt_is_causal=True)
    return _cut(output, sequences)


def additive(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    memory = sequences[::-1]
    keys = _padded(memory)
    queries, projected = layer.query_projection(_padded(sequences)), layer.memory_projection(keys)
    scores = layer.score(torch.tanh(queries[:, :, None] + projected[:, None])).squeeze(-1)
    return _cut(scores.masked_fill(~_mask(memory)[:, None], -torch.inf).softmax(-1) @ keys, sequences)


def dot_product(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    memory = sequences[::-1]
    keys = _padded(memory)
    scores = layer.query_projection(_padded(sequences)) @ keys.mT / layer.memory_size**0.5
    return _cut(scores.masked_fill(~_mask(memory)[:, None], -torch.inf).softmax(-1) @ keys, sequences)


def mean(_: Any, sequences: list[Tensor]) -> list[Tensor]:
    return [_padded(sequences).sum(1) / _lengths(sequences)[:, None]]


def maximum(_: Any, sequences: list[Tensor]) -> list[Tensor]:
    return [_padded(sequences, -torch.inf).amax(1)]


def attention_pool(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    padded = _padded(sequences)
    shares = (padded @ layer.query).masked_fill(~_mask(sequences), -torch.inf).softmax(1)
    return [(shares[:, None] @ padded)[:, 0]]


def tagger(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    embedding, lstm, linear = layer
    lengths = torch.tensor([len(one) for one in sequences])  # on the host, as PyTorch asks for
    packed = pack_padded_sequence(embedding(_padded(sequences)), lengths, batch_first=True, enforce_sorted=False)
    hidden, _ = lstm(packed)
    outputs, _ = pad_packed_sequence(hidden._replace(data=linear(hidden.data)), batch_first=True)
    return _cut(outputs, sequences)
