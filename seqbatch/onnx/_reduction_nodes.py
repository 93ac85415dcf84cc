"""The operator of reductions in ONNX: each on padded values, or by a gather of rows."""

from collections.abc import Callable
from typing import Any

from onnx import TensorProto

from seqbatch.onnx._conversions import (
    Layout,
    from_padded,
    integer,
    integers,
    layout_of,
    number,
    op,
    per_sequence,
    take,
    to_padded,
    widen,
)

_FLOATING = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def reduce(values: Any, lengths: Any, how: str) -> Any:
    """Translate `seqbatch::reduce`."""
    return _FUNCTIONS[how](values, layout_of(lengths))


def _sum(values: Any, layout: Layout) -> Any:
    if not _is_floating(values):
        return _add(op.Cast(values, to=TensorProto.INT64), layout)
    return op.CastLike(_add(widen(values), layout), values)


def _mean(values: Any, layout: Layout) -> Any:
    total = _add(widen(values), layout)
    counts = per_sequence(op.Max(layout.lengths, integers(1)), values)
    return op.CastLike(op.Div(total, op.CastLike(counts, total)), values)


def _add(values: Any, layout: Layout) -> Any:
    return op.ReduceSum(to_padded(values, layout, integer(0)), integers(1), keepdims=0)


def _extreme(node: str, sign: int) -> Callable[[Any, Layout], Any]:
    def run(values: Any, layout: Layout) -> Any:
        if _is_floating(values):
            padded = to_padded(widen(values), layout, number(sign * float("inf")))
        else:
            fill = integer(-(2**63) if sign < 0 else 2**63 - 1)
            padded = to_padded(op.Cast(values, to=TensorProto.INT64), layout, fill)
        found = getattr(op, node)(padded, integers(1), keepdims=0)
        if _is_floating(values):  # because ONNX Runtime does not propagate NaN
            lost = op.ReduceMax(op.Cast(op.IsNaN(padded), to=TensorProto.INT32), integers(1), keepdims=0)
            found = op.Where(op.Cast(lost, to=TensorProto.BOOL), op.CastLike(number(float("nan")), found), found)
        empty = per_sequence(op.Equal(layout.lengths, integer(0)), values)
        return op.CastLike(op.Where(empty, op.CastLike(integer(0), found), found), values)

    return run


def _softmax(values: Any, layout: Layout) -> Any:
    padded = to_padded(widen(values), layout, number(float("-inf")))
    return op.CastLike(from_padded(op.Softmax(padded, axis=1), layout), values)


def _reverse(values: Any, layout: Layout) -> Any:
    ends = op.Unsqueeze(op.Add(layout.offsets, layout.lengths), integers(1))
    starts = op.Unsqueeze(layout.offsets, integers(1))
    back = op.Sub(op.Sub(op.Add(ends, starts), integer(1)), layout.rows)
    return op.Gather(values, from_padded(back, layout))


def _is_floating(values: Any) -> bool:
    return values.dtype in _FLOATING


_FUNCTIONS: dict[str, Callable[[Any, Layout], Any]] = {
    "first": lambda values, layout: take(values, layout, layout.offsets),
    "last": lambda values, layout: take(values, layout, op.Sub(op.Add(layout.offsets, layout.lengths), integer(1))),
    "max": _extreme("ReduceMax", -1),
    "mean": _mean,
    "min": _extreme("ReduceMin", 1),
    "reverse": _reverse,
    "softmax": _softmax,
    "sum": _sum,
}
