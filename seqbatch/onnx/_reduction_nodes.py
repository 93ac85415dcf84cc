"""The operators of reductions and of `expand` in ONNX: each on padded values, or by a gather of rows."""

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


def expand_node(rows: Any, lengths: Any, steps: Any) -> Any:
    """Translate `seqbatch::expand`; the number of steps is that of the lengths."""
    sequences = op.Gather(op.NonZero(step_nodes(lengths).real), int_node(0))
    return op.Gather(rows, sequences)


def _sum_node(values: Any, steps: StepNodes) -> Any:
    if not _is_floating(values):
        return _total_node(op.Cast(values, to=TensorProto.INT64), steps)
    return op.CastLike(_total_node(widened_node(values), steps), values)


def _mean_node(values: Any, steps: StepNodes) -> Any:
    total = _total_node(widened_node(values), steps)
    return op.CastLike(op.Div(total, _counts_node(total, values, steps)), values)


def _squared_deviations_node(values: Any, steps: StepNodes) -> Any:
    padded = padded_node(widened_node(values), steps, int_node(0))
    # Shifted by the first step, as without a graph: what is constant then deviates by nothing.
    shifted = _without_padding_node(op.Sub(padded, op.Gather(padded, ints_node(0), axis=1)), values, steps)
    total = op.ReduceSum(shifted, ints_node(1), keepdims=0)
    means = op.Unsqueeze(op.Div(total, _counts_node(total, values, steps)), ints_node(1))
    centred = _without_padding_node(op.Sub(shifted, means), values, steps)
    return op.ReduceSum(op.Mul(centred, centred), ints_node(1), keepdims=0)


def _total_node(values: Any, steps: StepNodes) -> Any:
    return op.ReduceSum(padded_node(values, steps, int_node(0)), ints_node(1), keepdims=0)


def _counts_node(total: Any, values: Any, steps: StepNodes) -> Any:
    """Compute the number of steps of each sequence, at least 1, to divide a total of values by."""
    return op.CastLike(per_sequence_node(op.Max(steps.lengths, ints_node(1)), values), total)


def _without_padding_node(padded: Any, values: Any, steps: StepNodes) -> Any:
    """Replace the padding of `(batch, time, *features)` by zeros; `values` are flat, of the same features."""
    axes = range(2, 1 + len(values.shape))
    real = op.Unsqueeze(steps.real, ints_node(*axes)) if axes else steps.real
    return op.Where(real, padded, op.CastLike(int_node(0), padded))


def _zero_if_empty_node(found: Any, values: Any, steps: StepNodes) -> Any:
    empty = per_sequence_node(op.Equal(steps.lengths, int_node(0)), values)
    return op.Where(empty, op.CastLike(int_node(0), found), found)


def _any_node(values: Any, steps: StepNodes) -> Any:
    true = op.Cast(op.Cast(values, to=TensorProto.BOOL), to=TensorProto.FLOAT)
    return op.Greater(_total_node(true, steps), float_node(0.0))


def _all_node(values: Any, steps: StepNodes) -> Any:
    false = op.Cast(op.Not(op.Cast(values, to=TensorProto.BOOL)), to=TensorProto.FLOAT)
    return op.Equal(_total_node(false, steps), float_node(0.0))


def _padded_by_extreme_node(values: Any, steps: StepNodes, sign: int) -> Any:
    """Pad values by the smallest number of their dtype, or the largest if the sign is 1, as float, double or int64."""
    if _is_floating(values):
        return padded_node(widened_node(values), steps, float_node(sign * float("inf")))
    fill = int_node(-(2**63) if sign < 0 else 2**63 - 1)
    return padded_node(op.Cast(values, to=TensorProto.INT64), steps, fill)


def _is_nan_node(padded: Any) -> Any:
    """Return 1 where a number is NaN, else 0, because ONNX Runtime does not propagate NaN."""
    return op.Cast(op.IsNaN(padded), to=TensorProto.INT32)


def _any_nan_node(is_nan: Any) -> Any:
    return op.Cast(op.ReduceMax(is_nan, ints_node(1), keepdims=0), to=TensorProto.BOOL)


def _extreme_node(node: str, sign: int) -> Callable[[Any, StepNodes], Any]:
    def run(values: Any, steps: StepNodes) -> Any:
        padded = _padded_by_extreme_node(values, steps, sign)
        found = getattr(op, node)(padded, ints_node(1), keepdims=0)
        if _is_floating(values):
            nan = op.CastLike(float_node(float("nan")), found)
            found = op.Where(_any_nan_node(_is_nan_node(padded)), nan, found)
        return op.CastLike(_zero_if_empty_node(found, values, steps), values)

    return run


def _position_node(node: str, sign: int) -> Callable[[Any, StepNodes], Any]:
    """Return the function that finds the first extreme, or NaN; padding is never first, because it stands behind."""

    def run(values: Any, steps: StepNodes) -> Any:
        padded = _padded_by_extreme_node(values, steps, sign)
        found = getattr(op, node)(padded, axis=1, keepdims=0)
        if _is_floating(values):
            is_nan = _is_nan_node(padded)
            found = op.Where(_any_nan_node(is_nan), op.ArgMax(is_nan, axis=1, keepdims=0), found)
        return found

    return run


def _softmax_node(values: Any, steps: StepNodes) -> Any:
    padded = padded_node(widened_node(values), steps, float_node(float("-inf")))
    return op.CastLike(flat_node(op.Softmax(padded, axis=1), steps), values)


def _log_softmax_node(values: Any, steps: StepNodes) -> Any:
    """Compute it from exponentials, because the LogSoftmax of ONNX Runtime is wrong where a step is NaN."""
    padded = padded_node(widened_node(values), steps, float_node(float("-inf")))
    shifted = op.Sub(padded, op.ReduceMax(padded, ints_node(1), keepdims=1))
    total = op.ReduceSum(op.Exp(shifted), ints_node(1), keepdims=1)
    return op.CastLike(flat_node(op.Sub(shifted, op.Log(total)), steps), values)


def _logsumexp_node(values: Any, steps: StepNodes) -> Any:
    padded = padded_node(widened_node(values), steps, float_node(float("-inf")))
    peaks = op.ReduceMax(padded, ints_node(1), keepdims=1)
    peaks = op.Where(op.IsInf(peaks), op.CastLike(int_node(0), peaks), peaks)  # because inf - inf is NaN
    total = op.ReduceSum(op.Exp(op.Sub(padded, peaks)), ints_node(1), keepdims=0)
    found = op.Add(op.Log(total), op.Squeeze(peaks, ints_node(1)))
    return op.CastLike(_zero_if_empty_node(found, values, steps), values)


def _cumsum_node(values: Any, steps: StepNodes) -> Any:
    wide = widened_node(values) if _is_floating(values) else op.Cast(values, to=TensorProto.INT64)
    sums = flat_node(op.CumSum(padded_node(wide, steps, int_node(0)), int_node(1)), steps)
    return op.CastLike(sums, values) if _is_floating(values) else sums


def _reverse_node(values: Any, steps: StepNodes) -> Any:
    ends = op.Unsqueeze(op.Add(steps.offsets, steps.lengths), ints_node(1))
    starts = op.Unsqueeze(steps.offsets, ints_node(1))
    back = op.Sub(op.Sub(op.Add(ends, starts), int_node(1)), steps.rows)
    return op.Gather(values, flat_node(back, steps))


def _is_floating(values: Any) -> bool:
    return values.dtype in _FLOATING


_NODES: dict[str, Callable[[Any, StepNodes], Any]] = {
    "all": _all_node,
    "any": _any_node,
    "argmax": _position_node("ArgMax", -1),
    "argmin": _position_node("ArgMin", 1),
    "cumsum": _cumsum_node,
    "first": lambda values, steps: rows_node(values, steps, steps.offsets),
    "last": lambda values, steps: rows_node(values, steps, op.Sub(op.Add(steps.offsets, steps.lengths), int_node(1))),
    "log_softmax": _log_softmax_node,
    "logsumexp": _logsumexp_node,
    "max": _extreme_node("ReduceMax", -1),
    "mean": _mean_node,
    "min": _extreme_node("ReduceMin", 1),
    "reverse": _reverse_node,
    "softmax": _softmax_node,
    "squared_deviations": _squared_deviations_node,
    "sum": _sum_node,
}
