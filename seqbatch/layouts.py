"""Flat values to padded, packed and nested tensors and back: each an index from `_lengths` and one gather."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_sequence

from seqbatch._layout_checks import PaddingSide
from seqbatch._lengths import Lengths
from seqbatch._modes import is_transformed
from seqbatch._plans import Plan, masked_plan, packed_plan, padded_plan, window_plan

# So many sequences are copied one by one in less time than it takes to plan a gather.
FEW = 64
# Dtypes of which PyTorch gathers nothing on the CPU, and others of the same size.
_BITS = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


class _Rearrange(torch.autograd.Function):
    """One gather whose backward pass is the gather that undoes it, in place of torch's scatter into zeros."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, plan: Plan, fill: complex) -> Tensor:
        ctx.plan = plan
        return _gather(values, plan, fill)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return rearrange(gradients[0], ctx.plan.inverse), None, None


class _ToNested(torch.autograd.Function):
    """A nested tensor over values; torch's own has no derivatives of second order and none of complex values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lengths: Lengths) -> Tensor:
        ctx.lengths = lengths
        return _nest(values.detach(), lengths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _apply(_FromNested, gradients[0], ctx.lengths), None


class _FromNested(torch.autograd.Function):
    """The values of a nested tensor without holes: the way back of `_ToNested`, and its backward pass."""

    @staticmethod
    def forward(ctx: Any, nested: Any, lengths: Lengths) -> Tensor:
        ctx.lengths = lengths
        return _values(nested)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _apply(_ToNested, gradients[0], ctx.lengths), None


def _mode_for(tensor: Tensor) -> Any:
    """Leave `torch.inference_mode`, in which PyTorch makes no nested view of a tensor that is from outside it."""
    if not torch.is_inference_mode_enabled():
        return nullcontext()
    return torch.inference_mode(tensor.is_inference())


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    apply: Any = function.apply  # torch gives it no types
    result: Tensor = apply(*arguments)
    return result


def rearrange(values: Tensor, plan: Plan, fill: complex = 0) -> Tensor:
    """Gather rows by a plan; a new tensor, through which gradients of every order flow.

    Args:
        values: `(rows_in, *features)`, any dtype.
        plan: the plan, on the device of the values.
        fill: what stands in output rows that take no source row.

    Returns:
        `(rows_out, *features)`.
    """
    if plan.give is None or not values.requires_grad or is_transformed():
        return _gather(values, plan, fill)
    return _apply(_Rearrange, values, plan, fill)


def _gather(values: Tensor, plan: Plan, fill: complex) -> Tensor:
    if plan.take_fills:
        # A copy with one row more is cheaper than filling the output and scattering into it.
        values = torch.cat([values, values.new_full((1, *values.shape[1:]), fill)])
    if values.dtype in _BITS:  # no gradient flows through such a view, nor through integers
        return values.view(_BITS[values.dtype]).index_select(0, plan.take).view(values.dtype)
    return values.index_select(0, plan.take)


def to_padded(
    values: Tensor, lengths: Lengths, batch_first: bool, side: PaddingSide, time: int, fill: complex
) -> Tensor:
    """Turn flat values into `(batch, time, *features)` or `(time, batch, *features)`."""
    if fill == 0 and time == lengths.longest and _copies_fast(values, lengths):
        return pad_sequence(list(values.split(lengths.counts)), batch_first, 0, side)
    plan = lengths.plan(padded_plan, batch_first, side, time, device=values.device)
    shape = (len(lengths), time) if batch_first else (time, len(lengths))
    return rearrange(values, plan, fill).reshape(*shape, *values.shape[1:])


def _copies_fast(values: Tensor, lengths: Lengths) -> bool:
    """Tell whether to copy sequence by sequence takes less time than to plan a gather: few of them, on the CPU.

    Not where a backward pass may follow, which would fill as many tensors of the size of all.
    """
    if not values.is_cpu or not lengths.total or values.requires_grad or is_transformed():
        return False
    return len(lengths) <= FEW


def from_padded(padded: Tensor, lengths: Lengths, batch_first: bool, side: PaddingSide) -> Tensor:
    """Turn a padded tensor into flat values; what stands in its padding is never read."""
    time = padded.shape[1] if batch_first else padded.shape[0]
    if side == "right" and _copies_fast(padded, lengths):
        sequences = zip(padded.unbind(0 if batch_first else 1), lengths.counts, strict=True)
        return torch.cat([sequence[:count] for sequence, count in sequences])
    plan = lengths.plan(padded_plan, batch_first, side, time, device=padded.device)
    return rearrange(padded.flatten(0, 1), plan.inverse)


def from_masked(padded: Tensor, mask: Tensor, batch_first: bool) -> Tensor:
    """Turn a padded tensor into flat values by its mask, a host tensor of the same layout without holes."""
    plan = masked_plan(mask, batch_first).to(padded.device)
    return rearrange(padded.flatten(0, 1), plan)


def to_packed(values: Tensor, lengths: Lengths) -> PackedSequence:
    """Turn flat values into PyTorch's packed form; no length may be 0."""
    data = rearrange(values, lengths.plan(packed_plan, device=values.device))
    # Copies, for what is kept is of use later, and the caller may write to what he is given.
    orders = [lengths.on(name, values.device).clone() for name in ("order", "rank")]
    return PackedSequence(data, lengths.batch_sizes.clone(), *orders)


def from_packed(data: Tensor, lengths: Lengths) -> Tensor:
    """Turn the data of a PackedSequence into flat values; the lengths hold its order."""
    return rearrange(data, lengths.plan(packed_plan, device=data.device).inverse)


def to_nested(values: Tensor, lengths: Lengths) -> Tensor:
    """Turn flat values into a nested tensor of jagged layout, a view of them."""
    return _apply(_ToNested, values, lengths) if values.requires_grad else _nest(values, lengths)


def _nest(values: Tensor, lengths: Lengths) -> Tensor:
    with _mode_for(values):
        nested: Tensor = torch.nested.nested_tensor_from_jagged(
            values,
            lengths.jagged(values.device),
            min_seqlen=min(lengths.counts, default=0),
            max_seqlen=lengths.longest,
        )
    return nested


def _values(nested: Any) -> Tensor:
    with _mode_for(nested):
        values: Tensor = nested.detach().values()
    return values


def from_nested(nested: Tensor) -> tuple[Tensor, Lengths]:
    """Turn a nested tensor of jagged layout into flat values, a view of it unless it has holes, and their lengths."""
    jagged: Any = nested  # torch gives the methods of this layout no types
    offsets, counts, rows = jagged.offsets(), jagged.lengths(), len(_values(nested))
    lengths = Lengths(tuple((offsets.diff() if counts is None else counts).tolist()))
    starts = offsets.cpu()
    if counts is None and starts[0] == 0 and starts[-1] == rows:
        lengths.adopt_offsets(offsets)
        return _apply(_FromNested, nested, lengths), lengths
    values = jagged.values()
    plan = window_plan(starts[:-1], lengths, rows)
    return rearrange(values, plan.to(values.device)), lengths
