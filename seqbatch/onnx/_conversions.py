"""Conversions between flat and padded values in ONNX, as in `seqbatch._ops.traced`; lengths are values of the graph."""

from typing import Any, NamedTuple

from onnx import TensorProto
from onnxscript import opset18

# Any, because the operators of ONNX are not annotated.
op: Any = opset18
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


class Layout(NamedTuple):
    """The positions of the steps of sequences, as values of the graph.

    Args:
        lengths: `(batch,)`, int64.
        offsets: `(batch,)`, int64: where each sequence starts in flat values.
        real: `(batch, time)`, bool: real steps; time is at least 1.
        rows: `(batch, time)`, int64: the row of each real step in flat values.
    """

    lengths: Any
    offsets: Any
    real: Any
    rows: Any


def layout_of(lengths: Any) -> Layout:
    """Compute the layout of lengths `(batch,)`."""
    offsets = op.CumSum(lengths, integer(0), exclusive=1)
    longest = op.Max(op.ReduceMax(lengths, keepdims=0), integer(1))
    steps = op.Unsqueeze(op.Range(integer(0), longest, integer(1)), integers(0))
    ends, starts = (op.Unsqueeze(one, integers(1)) for one in (lengths, offsets))
    return Layout(lengths, offsets, op.Less(steps, ends), op.Add(steps, starts))


def to_padded(values: Any, layout: Layout, fill: Any) -> Any:
    """Convert flat values `(total_steps, *features)` to `(batch, time, *features)`, `fill` in padding."""
    return op.Gather(with_row(values, fill), op.Where(layout.real, layout.rows, _number(values)))


def from_padded(padded: Any, layout: Layout) -> Any:
    """Convert `(batch, time, *features)` to flat values; padding is never read."""
    return op.GatherND(padded, op.Transpose(op.NonZero(layout.real), perm=[1, 0]))


def take(values: Any, layout: Layout, rows: Any) -> Any:
    """Gather a row for each sequence, zeros for an empty one."""
    index = op.Where(op.Greater(layout.lengths, integer(0)), rows, _number(values))
    return op.Gather(with_row(values, op.CastLike(integer(0), values)), index)


def with_row(values: Any, fill: Any) -> Any:
    """Append a row of a number."""
    row = op.Expand(op.CastLike(fill, values), op.Concat(integers(1), op.Shape(values, start=1), axis=0))
    return op.Concat(values, row, axis=0)


def widen(values: Any) -> Any:
    """Convert to single precision at least."""
    return op.Cast(values, to=TensorProto.FLOAT) if values.dtype in _HALF else values


def per_sequence(numbers: Any, like: Any) -> Any:
    """Add axes to a number per sequence, up to the dimensions of `(batch, *features)`."""
    return op.Unsqueeze(numbers, integers(*range(1, len(like.shape)))) if len(like.shape) > 1 else numbers


def integer(value: int) -> Any:
    """Build an int64 constant without dimensions."""
    return op.Constant(value_int=value)


def integers(*values: int) -> Any:
    """Build an int64 constant `(number,)`."""
    return op.Constant(value_ints=list(values))


def number(value: float) -> Any:
    """Build a float32 constant without dimensions."""
    return op.Constant(value_float=value)


def _number(values: Any) -> Any:
    return op.Shape(values, start=0, end=1)
