"""What a file checks when it runs: that lengths fit what is padded. An operator that is there for ONNX only."""

from typing import Any

import torch
from torch import Tensor

from seqbatch.onnx._layout import integer, integers, op

_NAME = "seqbatch::checked_lengths"

torch.library.define(_NAME, "(Tensor lengths, Tensor padded, bool batch_first) -> Tensor")
torch.library.register_fake(_NAME, lambda lengths, padded, batch_first: torch.empty_like(lengths))


def checked_lengths(lengths: Tensor, padded: Tensor, batch_first: bool) -> Tensor:
    """Give the lengths; one below 0 or beyond what is padded, or another number of them, stops the run of the file."""
    operators: Any = torch.ops.seqbatch
    checked: Tensor = operators.checked_lengths(lengths, padded, batch_first)
    return checked


def in_onnx(lengths: Any, padded: Any, batch_first: bool) -> Any:
    """Run `seqbatch::checked_lengths`. ONNX has no errors of one's own, but those of Gather and Reshape."""
    number, time = (op.Shape(padded, start=axis, end=axis + 1) for axis in ((0, 1) if batch_first else (1, 0)))
    beyond = op.Add(time, integers(1))
    possible = op.Range(integer(0), op.Squeeze(beyond), integer(1))
    # To Gather a negative number is a place from the end.
    places = op.Where(op.Less(lengths, integer(0)), beyond, lengths)
    return op.Reshape(op.Gather(possible, places), number, allowzero=1)
