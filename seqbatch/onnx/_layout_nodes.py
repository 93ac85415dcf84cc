"""Conversions between flat and padded values in ONNX, as in `seqbatch._ops.traced`; lengths are values of the graph."""

from typing import Any, NamedTuple

from onnx import TensorProto
from onnxscript import opset18

# Any, because the operators of ONNX are not annotated.
op: Any = opset18
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


class StepNodes(NamedTuple):
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


def step_nodes(lengths: Any) -> StepNodes:
    """Compute the positions of steps from lengths `(batch,)`."""
    offsets = op.CumSum(lengths, int_node(0), exclusive=1)
    longest = op.Max(op.ReduceMax(lengths, keepdims=0), int_node(1))
    steps = op.Unsqueeze(op.Range(int_node(0), longest, int_node(1)), ints_node(0))
    ends, starts = (op.Unsqueeze(one, ints_node(1)) for one in (lengths, offsets))
    return StepNodes(lengths, offsets, op.Less(steps, ends), op.Add(steps, starts))


def padded_node(values: Any, steps: StepNodes, fill: Any) -> Any:
    """Convert flat values `(total_steps, *features)` to `(batch, time, *features)`, `fill` in padding."""
    return op.Gather(with_fill_row(values, fill), op.Where(steps.real, steps.rows, _rows_of(values)))


def flat_node(padded: Any, steps: StepNodes) -> Any:
    """Convert `(batch, time, *features)` to flat values; padding is never read."""
    return op.GatherND(padded, op.Transpose(op.NonZero(steps.real), perm=[1, 0]))


def rows_node(values: Any, steps: StepNodes, rows: Any) -> Any:
    """Gather a row for each sequence, zeros for an empty one."""
    index = op.Where(op.Greater(steps.lengths, int_node(0)), rows, _rows_of(values))
    return op.Gather(with_fill_row(values, op.CastLike(int_node(0), values)), index)


def with_fill_row(values: Any, fill: Any) -> Any:
    """Append a row of a number."""
    row = op.Expand(op.CastLike(fill, values), op.Concat(ints_node(1), op.Shape(values, start=1), axis=0))
    return op.Concat(values, row, axis=0)


def widened_node(values: Any) -> Any:
    """Convert to single precision at least."""
    return op.Cast(values, to=TensorProto.FLOAT) if values.dtype in _HALF else values


def per_sequence_node(numbers: Any, like: Any) -> Any:
    """Add axes to a number per sequence, up to the dimensions of `(batch, *features)`."""
    return op.Unsqueeze(numbers, ints_node(*range(1, len(like.shape)))) if len(like.shape) > 1 else numbers


def int_node(value: int) -> Any:
    """Build an int64 constant without dimensions."""
    return op.Constant(value_int=value)


def ints_node(*values: int) -> Any:
    """Build an int64 constant `(number,)`."""
    return op.Constant(value_ints=list(values))


def float_node(value: float) -> Any:
    """Build a float32 constant without dimensions."""
    return op.Constant(value_float=value)


def _rows_of(values: Any) -> Any:
    return op.Shape(values, start=0, end=1)
