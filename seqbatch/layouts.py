"""Flat values to padded, packed and nested tensors and back: each an index from `_lengths` and one gather."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.utils.rnn import PackedSequence

from seqbatch._checks import PaddingSide
from seqbatch._lengths import Lengths, Plan, masked_plan, packed_plan, padded_plan, window_plan


class _Rearrange(torch.autograd.Function):
    """One gather whose backward pass is the gather that undoes it, in place of torch's scatter into zeros."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, plan: Plan, fill: complex) -> Tensor:
        ctx.plan = plan  # type: ignore[attr-defined]  # a context takes any attribute
        return _gather(values, plan, fill)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return rearrange(gradients[0], ctx.plan.inverse), None, None


def rearrange(values: Tensor, plan: Plan, fill: complex = 0) -> Tensor:
    """Gather rows by a plan; a new tensor, through which gradients of every order flow.

    Args:
        values: `(rows_in, *features)`, any dtype.
        plan: the plan, on the device of the values.
        fill: what stands in output rows that take no source row.

    Returns:
        `(rows_out, *features)`.
    """
    if plan.give is None or not values.requires_grad:
        return _gather(values, plan, fill)
    return _Rearrange.apply(values, plan, fill)  # type: ignore[no-any-return, no-untyped-call]  # torch leaves it untyped


def _gather(values: Tensor, plan: Plan, fill: complex) -> Tensor:
    if plan.take_fills:
        # A copy with one row more is cheaper than filling the output and scattering into it.
        values = torch.cat([values, values.new_full((1, *values.shape[1:]), fill)])
    return values.index_select(0, plan.take)


def to_padded(
    values: Tensor, lengths: Lengths, batch_first: bool, side: PaddingSide, time: int, fill: complex
) -> Tensor:
    """Turn flat values into `(batch, time, *features)` or `(time, batch, *features)`."""
    plan = lengths.plan(padded_plan, batch_first, side, time, device=values.device)
    shape = (len(lengths), time) if batch_first else (time, len(lengths))
    return rearrange(values, plan, fill).reshape(*shape, *values.shape[1:])


def from_padded(padded: Tensor, lengths: Lengths, batch_first: bool, side: PaddingSide) -> Tensor:
    """Turn a padded tensor into flat values; what stands in its padding is never read."""
    time = padded.shape[1] if batch_first else padded.shape[0]
    plan = lengths.plan(padded_plan, batch_first, side, time, device=padded.device)
    return rearrange(padded.flatten(0, 1), plan.inverse)


def from_masked(padded: Tensor, mask: Tensor, batch_first: bool) -> Tensor:
    """Turn a padded tensor into flat values by its mask, a host tensor of the same layout without holes."""
    plan = masked_plan(mask, batch_first).to(padded.device)
    return rearrange(padded.flatten(0, 1), plan)


def to_packed(values: Tensor, lengths: Lengths) -> PackedSequence:
    """Turn flat values into PyTorch's packed form; no length may be 0."""
    data = rearrange(values, lengths.plan(packed_plan, device=values.device))
    return PackedSequence(data, lengths.batch_sizes, lengths.on("order", values.device))


def from_packed(data: Tensor, lengths: Lengths) -> Tensor:
    """Turn the data of a PackedSequence into flat values; the lengths hold its order."""
    return rearrange(data, lengths.plan(packed_plan, device=data.device).inverse)


def to_nested(values: Tensor, lengths: Lengths) -> Tensor:
    """Turn flat values into a nested tensor of jagged layout, a view of them."""
    nested: Tensor = torch.nested.nested_tensor_from_jagged(
        values,
        lengths.on("offsets", values.device),
        min_seqlen=min(lengths.counts, default=0),
        max_seqlen=lengths.longest,
    )
    return nested


def from_nested(nested: Tensor) -> tuple[Tensor, Lengths]:
    """Turn a nested tensor of jagged layout into flat values, a view of it unless it has holes, and their lengths."""
    jagged: Any = nested  # torch gives the methods of this layout no types
    values, offsets, counts = jagged.values(), jagged.offsets(), jagged.lengths()
    if counts is None:
        lengths = Lengths(tuple(offsets.diff().tolist()))
        lengths.adopt_offsets(offsets)
        return values, lengths
    lengths = Lengths(tuple(counts.tolist()))
    plan = window_plan(offsets[:-1].cpu(), lengths, len(values))
    return rearrange(values, plan.to(values.device)), lengths
