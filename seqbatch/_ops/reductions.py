"""Reductions of each sequence: sum, mean, extremes, first, last and softmax; and the operator for all in graphs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqbatch._ops.custom_operator import Operator
from seqbatch._ops.layouts import call_autograd_function, needs_own_backward, rearrange
from seqbatch._structure.plans import Plan, edge_plan, reverse_plan
from seqbatch._structure.sequence_lengths import SUMMATION_CHUNK, Lengths
from seqbatch._torch import is_transformed

# Up to this many sequences, a loop on the CPU is faster than one call for all, because that wakes other threads.
REDUCTION_LOOP_LIMIT = 32
# Longer sequences are added in chunks. Two levels of sums round as much as this many steps in one loop do.
UNCHUNKED_SUM_LIMIT = 2 * SUMMATION_CHUNK

# -------------------------------------------------------------------------------- sums, copies and extremes by sequence


def segment_sum(values: Tensor, lengths: Lengths) -> Tensor:
    """Sum the steps of each sequence: `(batch, *features)`, through which gradients of every order flow."""
    if (rectangle := _as_rectangle(values, lengths)) is not None:
        return rectangle.sum(1)
    if needs_own_backward(values):
        return call_autograd_function(_SegmentSum, values, lengths)
    if _loop_is_faster(values, lengths):
        return torch.stack([sequence.sum(0) for sequence in values.split(lengths.counts)])
    if lengths.longest > UNCHUNKED_SUM_LIMIT:
        chunks, numbers = lengths.summation_chunks
        return segment_sum(segment_sum(values, chunks), numbers)
    if values.device.type == "cpu" and values.is_floating_point() and values.numel() and not is_transformed():
        flat, steps = values.reshape(len(values), -1), torch.arange(len(values), device="cpu")
        sums = functional.embedding_bag(steps, flat, lengths.offsets, mode="sum", include_last_offset=True)
        return sums.reshape(-1, *values.shape[1:])
    start = values.new_zeros(len(lengths), *values.shape[1:])
    return start.index_add_(0, lengths.on(values.device).segment_ids, values)


def expand_to_steps(rows: Tensor, lengths: Lengths) -> Tensor:
    """Copy the row of each sequence to all its steps: `(total_steps, *features)`; gradients of every order flow."""
    if needs_own_backward(rows):
        return call_autograd_function(_ExpandToSteps, rows, lengths)
    return rows.index_select(0, lengths.on(rows.device).segment_ids)


def segment_extreme(values: Tensor, lengths: Lengths, which: str) -> Tensor:
    """Compute the largest or smallest step of each sequence: `(batch, *features)`; zeros for an empty one.

    Args:
        values: `(total_steps, *features)`.
        lengths: the lengths.
        which: "amax" or "amin".
    """
    wide, full = _widen(values) if values.is_floating_point() else values.long(), lengths.without_empty
    found = _extreme_of_full(wide, full, which)
    if full is not lengths:
        start = found.new_zeros(len(lengths), *values.shape[1:])
        found = start.index_copy(0, lengths.on(values.device).not_empty, found)
    return found.to(values.dtype)


def _extreme_of_full(values: Tensor, lengths: Lengths, which: str) -> Tensor:
    """Compute the largest or smallest step of each sequence, none of which is empty."""
    if (rectangle := _as_rectangle(values, lengths)) is not None:
        found: Tensor = getattr(torch, which)(rectangle, 1)
        return found
    if needs_own_backward(values):
        return call_autograd_function(_SegmentExtreme, values, lengths, which)
    if _loop_is_faster(values, lengths):
        return torch.stack([getattr(torch, which)(sequence, 0) for sequence in values.split(lengths.counts)])
    index = _per_row(lengths.on(values.device).segment_ids, values).expand_as(values)
    # NaN, because torch shares the gradient with a start that equals the extreme, and NaN equals nothing.
    start = values.new_full((len(lengths), *values.shape[1:]), float("nan") if values.is_floating_point() else 0)
    return start.scatter_reduce(0, index, values, which, include_self=False)


class _SegmentSum(torch.autograd.Function):
    """`segment_sum`; torch's own gradient of `embedding_bag` is slow and cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lengths: Lengths) -> Tensor:
        ctx.lengths = lengths
        return segment_sum(values, lengths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return expand_to_steps(gradients[0], ctx.lengths), None


class _ExpandToSteps(torch.autograd.Function):
    """`expand_to_steps`; its gradient is the sum, which torch computes with other rounding, step by step."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, lengths: Lengths) -> Tensor:
        ctx.lengths = lengths
        return expand_to_steps(rows, lengths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return segment_sum(gradients[0], ctx.lengths), None


class _SegmentExtreme(torch.autograd.Function):
    """`_extreme_of_full`; torch's own gradient of `scatter_reduce` takes twice the time."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lengths: Lengths, which: str) -> Tensor:
        ctx.lengths, found = lengths, _extreme_of_full(values, lengths, which)
        ctx.save_for_backward(values, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        values, found = ctx.saved_tensors
        ties = (values == expand_to_steps(found, ctx.lengths)).to(values.dtype)
        shares = gradients[0] / segment_sum(ties, ctx.lengths)
        return expand_to_steps(shares, ctx.lengths) * ties, None, None


def _loop_is_faster(values: Tensor, lengths: Lengths) -> bool:
    return values.device.type == "cpu" and 0 < len(lengths) <= REDUCTION_LOOP_LIMIT


def _as_rectangle(values: Tensor, lengths: Lengths) -> Tensor | None:
    """View the values as `(batch, steps, *features)` if all lengths are equal and not 0; else return None."""
    if not 0 < lengths.longest == lengths.shortest:
        return None
    return values.view(len(lengths), lengths.longest, *values.shape[1:])


def _per_row(numbers: Tensor, rows: Tensor) -> Tensor:
    """Add axes to a number per row, up to the dimensions of the rows."""
    return numbers.view(-1, *(1 for _ in rows.shape[1:]))


# -------------------------------------------------------------------------------------------------- the named functions


def _widen(values: Tensor) -> Tensor:
    """Convert to single precision at least, as PyTorch's own reductions accumulate."""
    if torch.finfo(values.dtype).bits >= 32:
        return values
    return values.to(torch.complex64 if values.is_complex() else torch.float32)


def _sum_in_own_dtype(values: Tensor, lengths: Lengths) -> Tensor:
    if not _is_inexact(values):
        return segment_sum(values.long(), lengths)
    return segment_sum(_widen(values), lengths).to(values.dtype)


def _mean(values: Tensor, lengths: Lengths) -> Tensor:
    counts = lengths.on(values.device).tensor.clamp(min=1)
    total = segment_sum(_widen(values), lengths)
    return (total / _per_row(counts, total)).to(values.dtype)


def _softmax(values: Tensor, lengths: Lengths) -> Tensor:
    wide = _widen(values)
    if (rectangle := _as_rectangle(wide, lengths)) is not None:
        shares = rectangle.softmax(1).flatten(0, 1)
    elif _loop_is_faster(wide, lengths):
        shares = torch.cat([sequence.softmax(0) for sequence in wide.split(lengths.counts)])
    else:
        # Shifting by a constant changes nothing in exact arithmetic, so no gradient is owed through the maximum.
        peaks = segment_extreme(wide.detach(), lengths, "amax")
        weights = (wide - expand_to_steps(peaks, lengths)).exp()
        shares = weights / expand_to_steps(segment_sum(weights, lengths), lengths)
    return shares.to(values.dtype)


def _rearrange_by(values: Tensor, lengths: Lengths, make_plan: Callable[..., Plan], *options: object) -> Tensor:
    return rearrange(values, lengths.plan(make_plan, *options, device=values.device))


def _is_inexact(values: Tensor) -> bool:
    return values.is_floating_point() or values.is_complex()


# Those whose result has a row for each step.
_STEPWISE: dict[str, Callable[[Tensor, Lengths], Tensor]] = {
    "reverse": partial(_rearrange_by, make_plan=reverse_plan),
    "softmax": _softmax,
}
REDUCTIONS: dict[str, Callable[[Tensor, Lengths], Tensor]] = {
    "first": lambda values, lengths: _rearrange_by(values, lengths, edge_plan, False),
    "last": lambda values, lengths: _rearrange_by(values, lengths, edge_plan, True),
    "max": partial(segment_extreme, which="amax"),
    "mean": _mean,
    "min": partial(segment_extreme, which="amin"),
    "sum": _sum_in_own_dtype,
    **_STEPWISE,
}


def _run_reduction(values: Tensor, lengths: Lengths, how: str) -> tuple[Tensor]:
    return (REDUCTIONS[how](values, lengths),)


def _fake_reduction(values: Tensor, lengths: Tensor, how: str) -> tuple[Tensor]:
    if how in _STEPWISE:
        return (torch.empty_like(values),)
    dtype = torch.int64 if how == "sum" and not _is_inexact(values) else values.dtype
    return (values.new_empty(lengths.shape[0], *values.shape[1:], dtype=dtype),)


operator = Operator("reduce", "str how", 1, _run_reduction, _fake_reduction)
