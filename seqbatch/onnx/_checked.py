"""What a file checks when it runs: that lengths fit what is padded. An operator that is there for ONNX only."""

from typing import Any

import torch
from torch import Tensor

from seqbatch.onnx._layout import integer, integers, op


def checked_lengths(lengths: Tensor, padded: Tensor, batch_first: bool) -> Tensor:
    """Give the lengths; one below 0 or beyond what is padded, or another number of them, stops the run of the file."""
    checked: Tensor = _operator(lengths, padded, batch_first)
    return checked


def _copy(lengths: Tensor, padded: Tensor, batch_first: bool) -> Tensor:
    return lengths.clone()


_operator: Any = torch.library.custom_op("seqbatch::checked_lengths", _copy, mutates_args=())
_operator.register_fake(_copy)


def in_onnx(lengths: Any, padded: Any, batch_first: bool) -> Any:
    """Run `seqbatch::checked_lengths`. ONNX has no errors of one's own, but that of Gather where no row is."""
    number, time = (op.Shape(padded, start=axis, end=axis + 1) for axis in ((0, 1) if batch_first else (1, 0)))
    beyond = op.Add(time, integers(1))
    possible = op.Range(integer(0), op.Squeeze(beyond), integer(1))
    # To Gather a negative number is a row from the end.
    found = op.Gather(possible, op.Where(op.Less(lengths, integer(0)), beyond, lengths))
    is_one_each = op.Equal(op.Shape(lengths), number)
    return op.Add(found, op.Gather(integers(0), op.Where(is_one_each, integers(0), integers(1))))
