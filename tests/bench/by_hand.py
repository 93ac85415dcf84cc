"""Layers run on padded sequences by hand: pad, run the layer and cut, in the way of PyTorch that is exact for it.

All go from a layer and a list of tensors to a list of tensors; pools to one tensor, a row for each sequence. A mask
keeps padding out wherever it would tell on a result, or on the state of a cell.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence


def _padded(sequences: list[Tensor], value: float = 0.0) -> Tensor:
    return pad_sequence(sequences, batch_first=True, padding_value=value)


def _mask(sequences: list[Tensor]) -> Tensor:
    """Give `(batch, time)`, True on real steps."""
    lengths = torch.tensor([len(one) for one in sequences], device=sequences[0].device)
    return torch.arange(max(len(one) for one in sequences), device=lengths.device) < lengths[:, None]


def _cut(padded: Tensor, sequences: list[Tensor], stride: int = 1) -> list[Tensor]:
    """Give the real steps: of a sequence as many as it has, or with a stride the first of each so many."""
    return [row[: -(-len(one) // stride)] for row, one in zip(padded, sequences, strict=True)]


def steps(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    """A layer that treats every step by itself may treat padding too."""
    return _cut(layer(_padded(sequences)), sequences)


def step_samples(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    """One for which a step is a sample has no dimension of time."""
    padded = _padded(sequences)
    return _cut(layer(padded.flatten(0, 1)).view_as(padded), sequences)


def real_steps(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    """One that takes statistics over steps must have the real ones alone: select them, and put them back."""
    padded, mask = _padded(sequences), _mask(sequences)
    outputs = torch.zeros_like(padded)
    outputs[mask] = layer(padded[mask])
    return _cut(outputs, sequences)


def windows(layer: Any, sequences: list[Tensor], stride: int = 1, value: float = 0.0) -> list[Tensor]:
    """What is padded behind a sequence has the value that the layer itself pads with."""
    return _cut(layer(_padded(sequences, value).mT).mT, sequences, stride)


def cell_steps(cell: Any, sequences: list[Tensor]) -> list[Tensor]:
    """A loop over the steps, in which a mask holds the state of those that have ended."""
    padded = pad_sequence(sequences)
    hidden = padded.new_zeros(len(sequences), cell.hidden_size)
    outputs = []
    for step, there in zip(padded, _mask(sequences).T[..., None], strict=True):
        hidden = torch.where(there, cell(step, hidden), hidden)
        outputs.append(hidden)
    return _cut(torch.stack(outputs).transpose(0, 1), sequences)


def lstm_cell_steps(cell: Any, sequences: list[Tensor]) -> list[Tensor]:
    """The same for a state of two parts."""
    padded = pad_sequence(sequences)
    hidden = memory = padded.new_zeros(len(sequences), cell.hidden_size)
    outputs = []
    for step, there in zip(padded, _mask(sequences).T[..., None], strict=True):
        next_hidden, next_memory = cell(step, (hidden, memory))
        hidden, memory = torch.where(there, next_hidden, hidden), torch.where(there, next_memory, memory)
        outputs.append(hidden)
    return _cut(torch.stack(outputs).transpose(0, 1), sequences)


def attention(layer: Any, sequences: list[Tensor], causal: bool = False) -> list[Tensor]:
    padded, mask = _padded(sequences), _mask(sequences)
    steps = padded.shape[1]
    later = torch.ones(steps, steps, dtype=torch.bool, device=padded.device).triu(1) if causal else None
    options = {"key_padding_mask": ~mask, "attn_mask": later, "is_causal": causal, "need_weights": False}
    return _cut(layer(padded, padded, padded, **options)[0], sequences)


def transformer(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    return _cut(layer(_padded(sequences), src_key_padding_mask=~_mask(sequences)), sequences)


def mean(_: Any, sequences: list[Tensor]) -> list[Tensor]:
    mask = _mask(sequences)[..., None]
    return [(_padded(sequences) * mask).sum(1) / mask.sum(1)]


def maximum(_: Any, sequences: list[Tensor]) -> list[Tensor]:
    return [_padded(sequences).masked_fill(~_mask(sequences)[..., None], -torch.inf).amax(1)]


def attention_pool(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    padded = _padded(sequences)
    shares = (padded @ layer.query).masked_fill(~_mask(sequences), -torch.inf).softmax(1)
    return [(shares[:, None] @ padded)[:, 0]]


def tagger(layer: Any, sequences: list[Tensor]) -> list[Tensor]:
    embedding, lstm, linear = layer
    lengths = torch.tensor([len(one) for one in sequences])
    packed = pack_padded_sequence(embedding(_padded(sequences)), lengths, batch_first=True, enforce_sorted=False)
    hidden, _ = pad_packed_sequence(lstm(packed)[0], batch_first=True)
    return _cut(linear(hidden), sequences)
