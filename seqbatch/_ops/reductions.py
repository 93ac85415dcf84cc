"""What each reduction computes, on flat values and lengths, and the operator that computes it in graphs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqbatch._ops.custom_operator import Operator
from seqbatch._ops.layouts import rearrange
from seqbatch._structure.lengths import CHUNK, Lengths
from seqbatch._structure.plans import edge_plan, reverse_plan
from seqbatch._torch import is_transformed

# Up to this many sequences, a loop on the CPU is faster than one call for all, because that wakes other threads.
FEW = 32
# Longer sequences are added in chunks. Two levels of sums round as much as this many steps in one loop do.
IN_ONE_GO = 2 * CHUNK


class _AddOrSpread(torch.autograd.Function):
    """The sum of each sequence, or its converse, the row of each sequence copied to all its steps.

    Each is the gradient of the other. Torch's own gradient of `embedding_bag` is slow and cannot be differentiated.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, lengths: Lengths, adds: bool) -> Tensor:
        ctx.lengths, ctx.adds = lengths, adds
        return (_sums if adds else _copies)(values, lengths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return (_spread if ctx.adds else _add)(gradients[0], ctx.lengths), None, None


class _Extreme(torch.autograd.Function):
    """The largest or smallest step of each sequence; torch's own gradient of `scatter_reduce` takes twice the time."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lengths: Lengths, which: str) -> Tensor:
        ctx.lengths, found = lengths, _extremes(values, lengths, which)
        ctx.save_for_backward(values, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        values, found = ctx.saved_tensors
        ties = (values == _spread(found, ctx.lengths)).to(values.dtype)
        return _spread(gradients[0] / _add(ties, ctx.lengths), ctx.lengths) * ties, None, None


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    apply: Any = function.apply  # because torch does not annotate it
    result: Tensor = apply(*arguments)
    return result


def _owes_gradient(values: Tensor) -> bool:
    return values.requires_grad and not is_transformed()


def _are_few(values: Tensor, lengths: Lengths) -> bool:
    return values.device.type == "cpu" and 0 < len(lengths) <= FEW


def _side_by_side(values: Tensor, lengths: Lengths) -> Tensor | None:
    """View the values as `(batch, steps, *features)` if all lengths are equal; else return None."""
    if not 0 < lengths.longest == min(lengths.counts):
        return None
    return values.view(len(lengths), lengths.longest, *values.shape[1:])


def _add(values: Tensor, lengths: Lengths) -> Tensor:
    if (together := _side_by_side(values, lengths)) is not None:
        return together.sum(1)
    return _apply(_AddOrSpread, values, lengths, True) if _owes_gradient(values) else _sums(values, lengths)


def _sums(values: Tensor, lengths: Lengths) -> Tensor:
    if _are_few(values, lengths):
        return torch.stack([one.sum(0) for one in values.split(lengths.counts)])
    if lengths.longest > IN_ONE_GO:
        chunks, numbers = lengths.chunks
        return _sums(_sums(values, chunks), numbers)
    if values.device.type == "cpu" and values.is_floating_point() and values.numel() and not is_transformed():
        flat, steps = values.reshape(len(values), -1), torch.arange(len(values), device="cpu")
        sums = functional.embedding_bag(steps, flat, lengths.offsets, mode="sum", include_last_offset=True)
        return sums.reshape(-1, *values.shape[1:])
    start = values.new_zeros(len(lengths), *values.shape[1:])
    return start.index_add_(0, lengths.on(values.device).segment_ids, values)


def _spread(values: Tensor, lengths: Lengths) -> Tensor:
    """Copy the row of each sequence to all its steps."""
    return _apply(_AddOrSpread, values, lengths, False) if _owes_gradient(values) else _copies(values, lengths)


def _copies(values: Tensor, lengths: Lengths) -> Tensor:
    return values.index_select(0, lengths.on(values.device).segment_ids)


def _extreme(values: Tensor, lengths: Lengths, which: str) -> Tensor:
    wide, there = _widen(values) if values.is_floating_point() else values.long(), lengths.running
    if (together := _side_by_side(wide, there)) is not None:
        found: Tensor = getattr(torch, which)(together, 1)
    else:
        found = _apply(_Extreme, wide, there, which) if _owes_gradient(wide) else _extremes(wide, there, which)
    if there is not lengths:
        start = found.new_zeros(len(lengths), *values.shape[1:])
        found = start.index_copy(0, lengths.on(values.device).not_empty, found)
    return found.to(values.dtype)


def _extremes(values: Tensor, lengths: Lengths, which: str) -> Tensor:
    """Compute the largest or smallest step of each sequence, none of which is empty."""
    if _are_few(values, lengths):
        return torch.stack([getattr(torch, which)(one, 0) for one in values.split(lengths.counts)])
    index = lengths.on(values.device).segment_ids.view(-1, *(1 for _ in values.shape[1:])).expand_as(values)
    # NaN, because torch shares the gradient with a start that equals the extreme, and NaN equals nothing.
    start = values.new_full((len(lengths), *values.shape[1:]), float("nan") if values.is_floating_point() else 0)
    return start.scatter_reduce(0, index, values, which, include_self=False)


def _widen(values: Tensor) -> Tensor:
    """Convert to single precision at least, as PyTorch's own reductions accumulate."""
    if torch.finfo(values.dtype).bits >= 32:
        return values
    return values.to(torch.complex64 if values.is_complex() else torch.float32)


def _sum(values: Tensor, lengths: Lengths) -> Tensor:
    if not _is_inexact(values):
        return _add(values.long(), lengths)
    return _add(_widen(values), lengths).to(values.dtype)


def _mean(values: Tensor, lengths: Lengths) -> Tensor:
    counts = lengths.on(values.device).tensor.clamp(min=1)
    total = _add(_widen(values), lengths)
    return (total / counts.view(-1, *(1 for _ in total.shape[1:]))).to(values.dtype)


def _softmax(values: Tensor, lengths: Lengths) -> Tensor:
    wide = _widen(values)
    if (together := _side_by_side(wide, lengths)) is not None:
        shares = together.softmax(1).flatten(0, 1)
    elif _are_few(wide, lengths):
        shares = torch.cat([one.softmax(0) for one in wide.split(lengths.counts)])
    else:
        # Shifting by a constant changes nothing in exact arithmetic, so no gradient is owed through the maximum.
        peaks = _extreme(wide.detach(), lengths, "amax")
        weights = (wide - _spread(peaks, lengths)).exp()
        shares = weights / _spread(_add(weights, lengths), lengths)
    return shares.to(values.dtype)


def _gather(values: Tensor, lengths: Lengths, plan: Callable[..., Any], *options: object) -> Tensor:
    return rearrange(values, lengths.plan(plan, *options, device=values.device))


def _is_inexact(values: Tensor) -> bool:
    return values.is_floating_point() or values.is_complex()


_KEEP_STEPS: dict[str, Callable[[Tensor, Lengths], Tensor]] = {
    "reverse": partial(_gather, plan=reverse_plan),
    "softmax": _softmax,
}
FUNCTIONS: dict[str, Callable[[Tensor, Lengths], Tensor]] = {
    "first": lambda values, lengths: _gather(values, lengths, edge_plan, False),
    "last": lambda values, lengths: _gather(values, lengths, edge_plan, True),
    "max": partial(_extreme, which="amax"),
    "mean": _mean,
    "min": partial(_extreme, which="amin"),
    "sum": _sum,
    **_KEEP_STEPS,
}


def _function(values: Tensor, lengths: Lengths, how: str) -> tuple[Tensor]:
    return (FUNCTIONS[how](values, lengths),)


def _fake(values: Tensor, lengths: Tensor, how: str) -> tuple[Tensor]:
    if how in _KEEP_STEPS:
        return (torch.empty_like(values),)
    dtype = torch.int64 if how == "sum" and not _is_inexact(values) else values.dtype
    return (values.new_empty(lengths.shape[0], *values.shape[1:], dtype=dtype),)


operator = Operator("reduce", "str how", 1, _function, _fake)
