"""Functions of each sequence, such as sum, maximum and softmax; a row copied to all steps; and their operators."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqbatch._ops.custom_operator import Gradients, Operator
from seqbatch._ops.layouts import (
    call_autograd_function,
    call_linear,
    flat_to_padded,
    needs_own_backward,
    padded_to_flat,
    rearrange,
)
from seqbatch._structure.plans import Plan, edge_plan, reverse_plan
from seqbatch._structure.sequence_lengths import SUMMATION_CHUNK, Lengths
from seqbatch._torch import is_transformed

# Up to this many sequences, a loop on the CPU is faster than one call for all, because that wakes other threads.
REDUCTION_LOOP_LIMIT = 32
# Longer sequences are added in chunks. Two levels of sums round as much as this many steps in one loop do.
UNCHUNKED_SUM_LIMIT = 2 * SUMMATION_CHUNK
# Integers up to this one are exact in single precision.
EXACT_IN_SINGLE_LIMIT = 2**24

# -------------------------------------------------------------------------------- sums, copies and extremes by sequence


def segment_sum(values: Tensor, lengths: Lengths) -> Tensor:
    """Sum the steps of each sequence: `(batch, *features)`, through which gradients of every order flow."""
    if (rectangle := _as_rectangle(values, lengths)) is not None:
        return rectangle.sum(1)
    if needs_own_backward(values):
        return call_linear(values, partial(segment_sum, lengths=lengths), partial(expand_to_steps, lengths=lengths))
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
        return call_linear(rows, partial(expand_to_steps, lengths=lengths), partial(_sum, lengths=lengths))
    return rearrange(rows, Plan.copy(lengths.on(rows.device).segment_ids))


def segment_extreme(values: Tensor, lengths: Lengths, which: str) -> Tensor:
    """Compute the largest or smallest step of each sequence: `(batch, *features)`; zeros for an empty one.

    Args:
        values: `(total_steps, *features)`.
        lengths: the lengths.
        which: "amax" or "amin".
    """
    found = _extreme_of_full(_comparable(values), lengths.without_empty, which)
    return _with_empty_rows(found, lengths).to(values.dtype)


def segment_position(values: Tensor, lengths: Lengths, which: str) -> Tensor:
    """Compute the index of the first largest or smallest step of each sequence, or of its first NaN; 0 if empty.

    Args:
        values: `(total_steps, *features)`.
        lengths: the lengths.
        which: "max" or "min".
    """
    return _with_empty_rows(_position_in_full(_comparable(values), lengths.without_empty, which), lengths)


def segment_cumsum(values: Tensor, lengths: Lengths) -> Tensor:
    """Add up the steps of each sequence, one after another: `(total_steps, *features)`.

    Gradients of every order flow. Values are int64 or at least single precision.
    """
    if (rectangle := _as_rectangle(values, lengths)) is not None:
        return rectangle.cumsum(1).flatten(0, 1)
    if needs_own_backward(values):
        return call_linear(values, partial(segment_cumsum, lengths=lengths), partial(_cumsum_from_end, lengths=lengths))
    if _loop_is_faster(values, lengths):
        return torch.cat([sequence.cumsum(0) for sequence in values.split(lengths.counts)])
    # Each chunk by itself, then each from the sum of those before it, because padding would grow with the longest.
    chunks, numbers = lengths.summation_chunks
    sums = flat_to_padded(values, chunks, True, "right", chunks.longest, 0).cumsum(1)
    if numbers.longest > 1:
        is_first = _per_row(numbers.on(values.device).positions == 0, values)
        before = segment_cumsum(sums[:, -1].roll(1, 0).masked_fill(is_first, 0), numbers)
        sums = sums + before[:, None]
    return padded_to_flat(sums, chunks, True, "right")


def _cumsum_from_end(values: Tensor, lengths: Lengths) -> Tensor:
    return _reversed(segment_cumsum(_reversed(values, lengths), lengths), lengths)


def _reversed(values: Tensor, lengths: Lengths) -> Tensor:
    return _rearrange_by(values, lengths, reverse_plan)


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


def _position_in_full(values: Tensor, lengths: Lengths, which: str) -> Tensor:
    """Compute the index of the first largest or smallest step of each sequence, none of which is empty."""
    if (rectangle := _as_rectangle(values, lengths)) is not None:
        found: Tensor = getattr(torch, f"arg{which}")(rectangle, 1)
        return found
    if _loop_is_faster(values, lengths):
        return torch.stack([getattr(torch, f"arg{which}")(sequence, 0) for sequence in values.split(lengths.counts)])
    values = values.detach()
    extremes = expand_to_steps(_extreme_of_full(values, lengths, f"a{which}"), lengths)
    is_extreme = (values == extremes) | (values != values)  # the extreme of a sequence with a NaN is NaN
    # As floating numbers where these are exact, because PyTorch reduces integers by a slow path.
    dtype = torch.float32 if lengths.longest <= EXACT_IN_SINGLE_LIMIT else torch.int64
    positions = _per_row(lengths.on(values.device).positions, values).to(dtype)
    return _extreme_of_full(torch.where(is_extreme, positions, lengths.longest), lengths, "amin").long()


def _with_empty_rows(rows: Tensor, lengths: Lengths) -> Tensor:
    """Insert a row of zeros for each empty sequence into rows of the others."""
    if lengths.without_empty is lengths:
        return rows
    start = rows.new_zeros(len(lengths), *rows.shape[1:])
    return start.index_copy(0, lengths.on(rows.device).not_empty, rows)


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


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return single precision at least, in which PyTorch's own reductions accumulate."""
    if torch.finfo(dtype).bits >= 32:
        return dtype
    return torch.complex64 if dtype.is_complex else torch.float32


def _widen(values: Tensor) -> Tensor:
    return values.to(_wide_dtype(values.dtype))


def _comparable(values: Tensor) -> Tensor:
    """Convert to a dtype that PyTorch can compare, of the same order."""
    return _widen(values) if values.is_floating_point() else values.long()


def _in_own_dtype(add: Callable[[Tensor, Lengths], Tensor], values: Tensor, lengths: Lengths) -> Tensor:
    """Add floating and complex numbers in single precision at least, rounded once; and others as int64."""
    if not _is_inexact(values.dtype):
        return add(values.long(), lengths)
    return add(_widen(values), lengths).to(values.dtype)


def _sum(values: Tensor, lengths: Lengths) -> Tensor:
    return _in_own_dtype(segment_sum, values, lengths)


def _mean(values: Tensor, lengths: Lengths) -> Tensor:
    counts = lengths.on(values.device).tensor.clamp(min=1)
    total = segment_sum(_widen(values), lengths)
    return (total / _per_row(counts, total)).to(values.dtype)


def _squared_deviations(values: Tensor, lengths: Lengths) -> Tensor:
    """Sum the squared distances of the steps of each sequence from their mean, in single precision at least."""
    wide = _widen(values)
    if needs_own_backward(wide):
        return call_autograd_function(_SquaredDeviations, wide, lengths)
    return _sum_of_squares(_deviations(wide, lengths), lengths)


def _deviations(values: Tensor, lengths: Lengths) -> Tensor:
    """Subtract from each step the mean of its sequence."""
    # A shift changes nothing in exact arithmetic, so no gradient is owed through it. It makes what is far from zero
    # exact, and what is constant 0.
    starts = _rearrange_by(values.detach(), lengths, edge_plan, False)
    shifted = values - expand_to_steps(starts, lengths)
    return shifted - expand_to_steps(_mean(shifted, lengths), lengths)


def _sum_of_squares(values: Tensor, lengths: Lengths) -> Tensor:
    squares = values.real.square() + values.imag.square() if values.is_complex() else values.square()
    return segment_sum(squares, lengths)


class _SquaredDeviations(torch.autograd.Function):
    """`_squared_deviations`; no gradient flows through the means, because it is 0: they minimize the squares."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lengths: Lengths) -> Tensor:
        deviations = _deviations(values, lengths)
        ctx.lengths = lengths
        ctx.save_for_backward(values, deviations)
        return _sum_of_squares(deviations, lengths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        values, deviations = ctx.saved_tensors
        if torch.is_grad_enabled():  # so that gradients of gradients flow through them
            deviations = _deviations(values, ctx.lengths)
        slopes: Tensor = 2 * deviations
        return slopes * expand_to_steps(gradients[0], ctx.lengths), None


def _any(values: Tensor, lengths: Lengths) -> Tensor:
    return segment_sum(values.bool().float(), lengths) > 0


def _all(values: Tensor, lengths: Lengths) -> Tensor:
    return segment_sum(values.bool().logical_not().float(), lengths) == 0


def _softmax(values: Tensor, lengths: Lengths, which: str) -> Tensor:
    """Compute "softmax" or "log_softmax" along the steps of each sequence."""
    wide = _widen(values)
    shares: Tensor
    if (rectangle := _as_rectangle(wide, lengths)) is not None:
        shares = getattr(torch, which)(rectangle, 1).flatten(0, 1)
    elif _loop_is_faster(wide, lengths):
        shares = torch.cat([getattr(torch, which)(sequence, 0) for sequence in wide.split(lengths.counts)])
    else:
        # Shifting by a constant changes nothing in exact arithmetic, so no gradient is owed through the maximum.
        peaks = segment_extreme(wide.detach(), lengths, "amax")
        shifted = wide - expand_to_steps(peaks, lengths)
        weights = shifted.exp()
        totals = segment_sum(weights, lengths)
        if which == "softmax":
            shares = weights / expand_to_steps(totals, lengths)
        else:
            shares = shifted - expand_to_steps(totals.log(), lengths)
    return shares.to(values.dtype)


def _logsumexp(values: Tensor, lengths: Lengths) -> Tensor:
    wide, full = _widen(values), lengths.without_empty
    if (rectangle := _as_rectangle(wide, full)) is not None:
        found = rectangle.logsumexp(1)
    elif _loop_is_faster(wide, full):
        found = torch.stack([sequence.logsumexp(0) for sequence in wide.split(full.counts)])
    else:
        peaks = segment_extreme(wide.detach(), full, "amax")
        peaks = peaks.masked_fill(peaks.isinf(), 0)  # because inf - inf is NaN
        found = segment_sum((wide - expand_to_steps(peaks, full)).exp(), full).log() + peaks
    return _with_empty_rows(found, lengths).to(values.dtype)


def _rearrange_by(values: Tensor, lengths: Lengths, make_plan: Callable[..., Plan], *options: object) -> Tensor:
    return rearrange(values, lengths.plan(make_plan, *options, device=values.device))


def _is_inexact(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


# Those whose result has a row for each step.
_STEPWISE: dict[str, Callable[[Tensor, Lengths], Tensor]] = {
    "cumsum": partial(_in_own_dtype, segment_cumsum),
    "log_softmax": partial(_softmax, which="log_softmax"),
    "reverse": _reversed,
    "softmax": partial(_softmax, which="softmax"),
}
REDUCTIONS: dict[str, Callable[[Tensor, Lengths], Tensor]] = {
    "all": _all,
    "any": _any,
    "argmax": partial(segment_position, which="max"),
    "argmin": partial(segment_position, which="min"),
    "first": lambda values, lengths: _rearrange_by(values, lengths, edge_plan, False),
    "last": lambda values, lengths: _rearrange_by(values, lengths, edge_plan, True),
    "logsumexp": _logsumexp,
    "max": partial(segment_extreme, which="amax"),
    "mean": _mean,
    "min": partial(segment_extreme, which="amin"),
    "squared_deviations": _squared_deviations,
    "sum": _sum,
    **_STEPWISE,
}


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if _is_inexact(dtype) else torch.int64


# The dtype of the result from that of the values, where they differ.
_DTYPES: dict[str, Callable[[torch.dtype], torch.dtype]] = {
    "all": lambda dtype: torch.bool,
    "any": lambda dtype: torch.bool,
    "argmax": lambda dtype: torch.int64,
    "argmin": lambda dtype: torch.int64,
    "cumsum": _sum_dtype,
    "squared_deviations": lambda dtype: _wide_dtype(dtype).to_real(),
    "sum": _sum_dtype,
}


def _run_reduction(values: Tensor, lengths: Lengths, how: str) -> tuple[Tensor]:
    return (REDUCTIONS[how](values, lengths),)


def _fake_reduction(values: Tensor, lengths: Tensor, how: str) -> tuple[Tensor]:
    rows = values.shape[0] if how in _STEPWISE else lengths.shape[0]
    dtype = _DTYPES[how](values.dtype) if how in _DTYPES else values.dtype
    return (values.new_empty(rows, *values.shape[1:], dtype=dtype),)


def _run_expansion(rows: Tensor, lengths: Lengths, steps: int) -> tuple[Tensor]:
    return (expand_to_steps(rows, lengths),)


def _expansion_backward(
    gradients: Gradients, saved: list[Tensor], wanted: list[bool], rows: Tensor, lengths: Lengths, steps: int
) -> Gradients | None:
    return None if gradients[0] is None else [_sum(gradients[0], lengths)]


def _fake_expansion(rows: Tensor, lengths: Tensor, steps: int) -> tuple[Tensor]:
    return (rows.new_empty(steps, *rows.shape[1:]),)


reduce_operator = Operator("reduce", "str how", 1, _run_reduction, _fake_reduction)
# Its values are a row for each sequence.
expand_operator = Operator(
    "expand",
    "SymInt steps",
    1,
    _run_expansion,
    _fake_expansion,
    backward=_expansion_backward,
    steps_of=lambda rows, steps: steps,
)
