"""The oracle: the result of a layer for one sequence alone, and results of a batch paired with those of runs alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seqbatch._checks.grammar import complaint, type_name
from seqbatch._encode.registry import is_recurrent
from seqbatch._state import LSTMState, RNNState
from seqbatch.errors import SeqbatchTypeError
from seqbatch.testing._comparison import select, tensors_of

Sequences = list[Tensor]
# From a layer, one sequence and its state, or None, to its output, or for a recurrent layer to its output and state.
Alone = Callable[[nn.Module, Tensor, Any], Any]

# These take `(batch, channels, steps)`.
_CHANNELS_FIRST = (
    nn.AvgPool1d,
    nn.CircularPad1d,
    nn.ConstantPad1d,
    nn.Conv1d,
    nn.InstanceNorm1d,
    nn.LPPool1d,
    nn.MaxPool1d,
    nn.ReflectionPad1d,
    nn.ReplicationPad1d,
)
# These take `(batch, channels, steps, features)`.
_OF_TWO_DIMENSIONS = (
    nn.AvgPool2d,
    nn.BatchNorm2d,
    nn.CircularPad2d,
    nn.ConstantPad2d,
    nn.Conv2d,
    nn.LPPool2d,
    nn.MaxPool2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)


def call_alone(layer: nn.Module, sequence: Tensor, state: Any) -> Any:
    """Call the layer on one sequence, with its state if there is one: the default oracle.

    Layers of PyTorch are called in their own form: on a batch of one, with channels before steps, step by step for a
    cell, with the sequence as query, key and value for attention, and with a state in PyTorch's layout.
    """
    if isinstance(layer, nn.RNNBase):
        return _call_recurrent(layer, sequence, state)
    if isinstance(layer, nn.RNNCellBase):
        return _call_cell(layer, sequence, state)
    if isinstance(layer, nn.MultiheadAttention):
        return layer(sequence, sequence, sequence)[0]
    if isinstance(layer, _CHANNELS_FIRST):
        return layer(sequence.T[None])[0].T
    if isinstance(layer, _OF_TWO_DIMENSIONS):
        images = sequence.unsqueeze(1) if sequence.dim() == 2 else sequence  # features of one channel
        return layer(images.transpose(0, 1)[None])[0].transpose(0, 1)
    return layer(sequence) if state is None else layer(sequence, state)


def _call_recurrent(layer: nn.RNNBase, sequence: Tensor, state: Any) -> tuple[Tensor, Any]:
    axis = 0 if layer.batch_first else 1
    output, final = layer(sequence.unsqueeze(axis), None if state is None else state.to_torch())
    kind: Any = LSTMState if isinstance(layer, nn.LSTM) else RNNState
    return output.squeeze(axis), kind.from_torch(final, layer)


def _call_cell(cell: nn.RNNCellBase, sequence: Tensor, state: Any) -> tuple[Tensor, Any]:
    kind: Any = LSTMState if isinstance(cell, nn.LSTMCell) else RNNState
    parts = [part[0, 0] for part in tensors_of(state)]
    outputs = []
    for step in sequence:
        given = None if not parts else tuple(parts) if kind is LSTMState else parts[0]
        result = cell(step[None], given)
        parts = list(result) if kind is LSTMState else [result]
        outputs.append(parts[0])
    return torch.cat(outputs), kind(*(part[None, None] for part in parts))


def beside_alone(
    layer: nn.Module, results: tuple[Any, Any], sequences: Sequences, state: Any, alone: Alone
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs and states of the sequences that are not empty, and those of runs of each alone.

    If the results have no state, as those of `encode`, return only outputs.
    """
    outputs, final = results
    found, wanted = [], []
    for i, sequence in enumerate(sequences):
        if not len(sequence):
            assert not len(outputs[i]), "the output of an empty sequence is not empty"
            continue
        result = alone(layer, sequence.clone(), select(state, [i]))  # a copy, because the layer may work in place
        output, end = _pair(result) if is_recurrent(layer) else (result, None)
        found += [outputs[i], *tensors_of(select(final, [i]))]
        wanted += [output, *(tensors_of(end) if final is not None else [])]
    return found, wanted


def _pair(result: Any) -> tuple[Any, Any]:
    """Return the oracle's result for a recurrent layer if it is a pair, else raise."""
    if not (isinstance(result, tuple) and len(result) == 2):
        must = "return a pair (output, state), because the layer is registered as recurrent"
        remedy = "Pass another oracle: alone=lambda layer, sequence, state: ..."
        raise complaint(SeqbatchTypeError, "alone(layer, sequence, state)", must, type_name(result), remedy)
    return result
