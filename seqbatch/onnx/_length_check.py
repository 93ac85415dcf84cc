"""The check of an exported file at run time that lengths fit the padded sequences, as an operator for ONNX only."""

from typing import Any

import torch
from torch import Tensor

from seqbatch.onnx._layout_nodes import int_node, ints_node, op


def checked_lengths(lengths: Tensor, padded: Tensor, batch_first: bool) -> Tensor:
    """Return the lengths; the run of the file stops if one is negative or too large, or if their number is wrong."""
    checked: Tensor = _operator(lengths, padded, batch_first)
    return checked


def _clone_lengths(lengths: Tensor, padded: Tensor, batch_first: bool) -> Tensor:
    return lengths.clone()


_operator: Any = torch.library.custom_op("seqbatch::checked_lengths", _clone_lengths, mutates_args=())
_operator.register_fake(_clone_lengths)


def checked_lengths_node(lengths: Any, padded: Any, batch_first: bool) -> Any:
    """Translate `seqbatch::checked_lengths`, by Gather out of range, because ONNX has no custom errors."""
    number, time = (op.Shape(padded, start=axis, end=axis + 1) for axis in ((0, 1) if batch_first else (1, 0)))
    beyond = op.Add(time, ints_node(1))
    possible = op.Range(int_node(0), op.Squeeze(beyond), int_node(1))
    # Negative numbers are replaced, because to Gather they are rows from the end.
    found = op.Gather(possible, op.Where(op.Less(lengths, int_node(0)), beyond, lengths))
    is_one_each = op.Equal(op.Shape(lengths), number)
    return op.Add(found, op.Gather(ints_node(0), op.Where(is_one_each, ints_node(0), ints_node(1))))
