"""The operator of reductions in ONNX: each on padded values, or by a gather of rows."""

from collections.abc import Callable
from typing import Any

from onnx import TensorProto

from seqbatch.onnx._layout_nodes import (
    StepNodes,
    flat_node,
    float_node,
    int_node,
    ints_node,
    op,
    padded_node,
    per_sequence_node,
    rows_node,
    step_nodes,
    widened_node,
)

_FLOATING = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def reduce_node(values: Any, lengths: Any, how: str) -> Any:
    """Translate `seqbatch::reduce`."""
    return _NODES[how](values, step_nodes(lengths))


def _sum_node(values: Any, steps: StepNodes) -> Any:
    if not _is_floating(values):
        return _total_node(op.Cast(values, to=TensorProto.INT64), steps)
    return op.CastLike(_total_node(widened_node(values), steps), values)


def _mean_node(values: Any, steps: StepNodes) -> Any:
    total = _total_node(widened_node(values), steps)
    counts = per_sequence_node(op.Max(steps.lengths, ints_node(1)), values)
    return op.CastLike(op.Div(total, op.CastLike(counts, total)), values)


def _total_node(values: Any, steps: StepNodes) -> Any:
    return op.ReduceSum(padded_node(values, steps, int_node(0)), ints_node(1), keepdims=0)


def _extreme_node(node: str, sign: int) -> Callable[[Any, StepNodes], Any]:
    def run(values: Any, steps: StepNodes) -> Any:
        if _is_floating(values):
            padded = padded_node(widened_node(values), steps, float_node(sign * float("inf")))
        else:
            fill = int_node(-(2**63) if sign < 0 else 2**63 - 1)
            padded = padded_node(op.Cast(values, to=TensorProto.INT64), steps, fill)
        found = getattr(op, node)(padded, ints_node(1), keepdims=0)
        if _is_floating(values):  # because ONNX Runtime does not propagate NaN
            lost = op.ReduceMax(op.Cast(op.IsNaN(padded), to=TensorProto.INT32), ints_node(1), keepdims=0)
            found = op.Where(op.Cast(lost, to=TensorProto.BOOL), op.CastLike(float_node(float("nan")), found), found)
        empty = per_sequence_node(op.Equal(steps.lengths, int_node(0)), values)
        return op.CastLike(op.Where(empty, op.CastLike(int_node(0), found), found), values)

    return run


def _softmax_node(values: Any, steps: StepNodes) -> Any:
    padded = padded_node(widened_node(values), steps, float_node(float("-inf")))
    return op.CastLike(flat_node(op.Softmax(padded, axis=1), steps), values)


def _reverse_node(values: Any, steps: StepNodes) -> Any:
    ends = op.Unsqueeze(op.Add(steps.offsets, steps.lengths), ints_node(1))
    starts = op.Unsqueeze(steps.offsets, ints_node(1))
    back = op.Sub(op.Sub(op.Add(ends, starts), int_node(1)), steps.rows)
    return op.Gather(values, flat_node(back, steps))


def _is_floating(values: Any) -> bool:
    return values.dtype in _FLOATING


_NODES: dict[str, Callable[[Any, StepNodes], Any]] = {
    "first": lambda values, steps: rows_node(values, steps, steps.offsets),
    "last": lambda values, steps: rows_node(values, steps, op.Sub(op.Add(steps.offsets, steps.lengths), int_node(1))),
    "max": _extreme_node("ReduceMax", -1),
    "mean": _mean_node,
    "min": _extreme_node("ReduceMin", 1),
    "reverse": _reverse_node,
    "softmax": _softmax_node,
    "sum": _sum_node,
}
