"""Flat values and padded ones in ONNX, which know lengths as a value only: the operators of `seqbatch.graphs` there."""

from typing import Any, NamedTuple

from onnx import TensorProto
from onnxscript import opset18

# The operators of ONNX, which have no types.
op: Any = opset18
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


class Layout(NamedTuple):
    """Where the steps of sequences are: values of the graph.

    Args:
        lengths: `(batch,)`, int64.
        offsets: `(batch,)`, int64: where each sequence starts in flat values.
        real: `(batch, time)`, bool: real steps; time is 1 at least.
        rows: `(batch, time)`, int64: the row of each in flat values, if it is real.
    """

    lengths: Any
    offsets: Any
    real: Any
    rows: Any


def layout_of(lengths: Any) -> Layout:
    """Work out the layout of lengths `(batch,)`."""
    offsets = op.CumSum(lengths, integer(0), exclusive=1)
    longest = op.Max(op.ReduceMax(lengths, keepdims=0), integer(1))
    steps = op.Unsqueeze(op.Range(integer(0), longest, integer(1)), integers(0))
    ends, starts = (op.Unsqueeze(one, integers(1)) for one in (lengths, offsets))
    return Layout(lengths, offsets, op.Less(steps, ends), op.Add(steps, starts))


def to_padded(values: Any, layout: Layout, fill: Any) -> Any:
    """Turn flat values `(total_steps, *features)` into `(batch, time, *features)`, `fill` where there is no step."""
    return op.Gather(with_row(values, fill), op.Where(layout.real, layout.rows, _number(values)))


def from_padded(padded: Any, layout: Layout) -> Any:
    """Turn `(batch, time, *features)` into flat values; what stands in padding is never read."""
    return op.GatherND(padded, op.Transpose(op.NonZero(layout.real), perm=[1, 0]))


def take(values: Any, layout: Layout, rows: Any) -> Any:
    """Take a row for each sequence, zeros for one of no steps."""
    index = op.Where(op.Greater(layout.lengths, integer(0)), rows, _number(values))
    return op.Gather(with_row(values, op.CastLike(integer(0), values)), index)


def with_row(values: Any, fill: Any) -> Any:
    """Add a row of a number."""
    row = op.Expand(op.CastLike(fill, values), op.Concat(integers(1), op.Shape(values, start=1), axis=0))
    return op.Concat(values, row, axis=0)


def widen(values: Any) -> Any:
    """Compute in single precision at least."""
    return op.Cast(values, to=TensorProto.FLOAT) if values.dtype in _HALF else values


def per_sequence(numbers: Any, like: Any) -> Any:
    """Give a number for each sequence the dimensions of `(batch, *features)`."""
    return op.Unsqueeze(numbers, integers(*range(1, len(like.shape)))) if len(like.shape) > 1 else numbers


def integer(value: int) -> Any:
    """Give an int64 of no dimension."""
    return op.Constant(value_int=value)


def integers(*values: int) -> Any:
    """Give int64 `(number,)`."""
    return op.Constant(value_ints=list(values))


def number(value: float) -> Any:
    """Give a float32 of no dimension."""
    return op.Constant(value_float=value)


def _number(values: Any) -> Any:
    return op.Shape(values, start=0, end=1)
