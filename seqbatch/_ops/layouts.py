"""Flat values to padded, packed and nested tensors and back: one copy by a kernel, or an index and one gather."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_sequence

from seqbatch import _kernels
from seqbatch._checks.layout_arguments import PaddingSide, require_packed
from seqbatch._kernels import row_copies
from seqbatch._structure.cached import outside_inference_mode
from seqbatch._structure.plans import Plan, packed_plan, padded_plan, ranges
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import is_dense, is_transformed

Linear = Callable[[Tensor], Tensor]

# Without kernels: up to this many sequences, copying one by one is faster than planning a gather.
COPY_LOOP_LIMIT = 64
# Dtypes that PyTorch cannot gather on the CPU, and those of the same size that it can.
_GATHERABLE = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


class _PaddedLayout(NamedTuple):
    """The layout of a padded tensor, which flat values are copied to or from."""

    lengths: Lengths
    batch_first: bool
    side: PaddingSide
    time: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The axes before those of features."""
        return (len(self.lengths), self.time) if self.batch_first else (self.time, len(self.lengths))

    def plan(self, device: torch.device) -> Plan:
        """Return the plan from flat values to the rows of this layout, its axes as one."""
        return self.lengths.plan(padded_plan, self.batch_first, self.side, self.time, device=device)

    def copy(self, flat: Tensor, other: Tensor, into_flat: bool, fill: complex) -> None:
        """Copy rows by the kernels."""
        # Compared as text, because -0.0 == 0.
        value = None if str(fill) in ("0", "0.0") else other.new_full((), fill)
        rows = row_copies.rows_of(flat, other, self.lengths.tensor, into_flat)
        strides = [stride * other.element_size() for stride in other.stride()[:2]]
        rows.sequence_stride, rows.step_stride = strides if self.batch_first else reversed(strides)
        rows.time, rows.is_left = self.time, self.side == "left"
        rows.fill = None if value is None else value.data_ptr()
        _kernels.copy(rows)


class _PackedLayout(NamedTuple):
    """The layout of the data of a PackedSequence, which flat values are copied to or from."""

    lengths: Lengths

    @property
    def shape(self) -> tuple[int, ...]:
        """The axes before those of features."""
        return (self.lengths.total,)

    def plan(self, device: torch.device) -> Plan:
        """Return the plan from flat values to the rows of this layout."""
        return self.lengths.plan(packed_plan, device=device)

    def copy(self, flat: Tensor, other: Tensor, into_flat: bool, fill: complex) -> None:
        """Copy rows by the kernels; `fill` is unused, because packed data has no padding."""
        places, sizes = self.lengths.rank, self.lengths.batch_sizes
        rows = row_copies.rows_of(flat, other, self.lengths.tensor, into_flat)
        rows.time, rows.places, rows.sizes = sizes.shape[0], places.data_ptr(), sizes.data_ptr()
        _kernels.copy(rows)


class _LinearFunction(torch.autograd.Function):
    """A linear function of a tensor whose backward pass is another such function, its transpose."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, function: Linear, transpose: Linear) -> Tensor:
        ctx.transpose = transpose
        return function(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transpose(gradients[0]), None, None


def call_linear(values: Tensor, function: Linear, transpose: Linear) -> Tensor:
    """Call a linear function, with its transpose as the backward pass, through which gradients of every order flow."""
    return call_autograd_function(_LinearFunction, values, function, transpose)


def _inference_mode_of(tensor: Tensor) -> Any:
    """Leave `torch.inference_mode` for a tensor from outside it, because it can have no nested view inside."""
    if not torch.is_inference_mode_enabled():
        return nullcontext()
    return torch.inference_mode(tensor.is_inference())


def call_autograd_function(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """Call a function with a backward pass of its own."""
    apply: Any = function.apply  # because torch does not annotate it
    result: Tensor = apply(*arguments)
    return result


def needs_own_backward(values: Tensor) -> bool:
    """Return True if autograd records what is computed from values.

    False within the forward pass of an autograd function; and within transforms, which differentiate PyTorch's own
    functions.
    """
    return values.requires_grad and torch.is_grad_enabled() and not is_transformed()


def rearrange(values: Tensor, plan: Plan, fill: complex = 0) -> Tensor:
    """Gather rows by a plan, into a new tensor, through which gradients of every order flow.

    Args:
        values: `(rows_in, *features)`, any dtype.
        plan: the plan, on the device of the values.
        fill: the value of output rows that take no source row.

    Returns:
        `(rows_out, *features)`.
    """
    if plan.give is not None and needs_own_backward(values):
        # The gather that undoes it, because it is faster than torch's scatter into zeros.
        return call_linear(values, partial(rearrange, plan=plan, fill=fill), partial(rearrange, plan=plan.inverse))
    if plan.take_fills:
        # Copying with one extra row is cheaper than filling the output and scattering into it.
        values = torch.cat([values, values.new_full((1, *values.shape[1:]), fill)])
    if values.dtype in _GATHERABLE:  # a view of other bits drops gradients, which integers do not have
        return values.view(_GATHERABLE[values.dtype]).index_select(0, plan.take).view(values.dtype)
    return values.index_select(0, plan.take)


def _convert(source: Tensor, layout: _PaddedLayout | _PackedLayout, into_flat: bool, fill: complex = 0) -> Tensor:
    """Convert flat values to another layout, or that to flat values; a copy, through which gradients flow."""
    if row_copies.can_read(source, layout.lengths.tensor):
        copy = partial(_copy_by_kernels, layout=layout, into_flat=into_flat, fill=fill)
        if needs_own_backward(source):
            return call_linear(source, copy, partial(_convert, layout=layout, into_flat=not into_flat))
        return copy(source)
    plan = layout.plan(source.device)
    if into_flat:
        return rearrange(source.reshape(len(plan.take), *source.shape[len(layout.shape) :]), plan.inverse)
    return rearrange(source, plan, fill).reshape(*layout.shape, *source.shape[1:])


def _copy_by_kernels(source: Tensor, layout: _PaddedLayout | _PackedLayout, into_flat: bool, fill: complex) -> Tensor:
    """Copy by the kernels, which must support the source."""
    if not into_flat:
        source = source.contiguous()
        result = source.new_empty((*layout.shape, *source.shape[1:]))
        layout.copy(source, result, into_flat, fill)
        return result
    axes = len(layout.shape)
    if not source.is_contiguous() and not (axes == 2 and source.transpose(0, 1).is_contiguous()):
        source = source.contiguous()
    result = source.new_empty((layout.lengths.total, *source.shape[axes:]))
    layout.copy(result, source, into_flat, fill)
    return result


def flat_to_padded(
    values: Tensor, lengths: Lengths, batch_first: bool, side: PaddingSide, time: int, fill: complex
) -> Tensor:
    """Convert flat values to `(batch, time, *features)` or `(time, batch, *features)`."""
    if fill == 0 and time == lengths.longest and _copy_loop_is_faster(values, lengths):
        return pad_sequence(list(values.split(lengths.counts)), batch_first, 0, side)
    return _convert(values, _PaddedLayout(lengths, batch_first, side, time), False, fill)


def _copy_loop_is_faster(values: Tensor, lengths: Lengths) -> bool:
    """Return True if copying sequence by sequence is faster than planning a gather: few of them, on the CPU.

    False if a backward pass may follow, because that would fill one tensor of full size for each sequence.
    """
    if _kernels.IS_THERE or not is_dense(values) or not lengths.total or values.requires_grad or is_transformed():
        return False
    return len(lengths) <= COPY_LOOP_LIMIT


def padded_to_flat(padded: Tensor, lengths: Lengths, batch_first: bool, side: PaddingSide) -> Tensor:
    """Convert a padded tensor to flat values; its padding is never read."""
    if side == "right" and _copy_loop_is_faster(padded, lengths):
        sequences = zip(padded.unbind(0 if batch_first else 1), lengths.counts, strict=True)
        return torch.cat([sequence[:count] for sequence, count in sequences])
    return _convert(padded, _PaddedLayout(lengths, batch_first, side, padded.shape[1 if batch_first else 0]), True)


def flat_to_packed(values: Tensor, lengths: Lengths) -> PackedSequence:
    """Convert flat values to PyTorch's packed form; no length may be 0."""
    data = _convert(values, _PackedLayout(lengths), False)
    # Copies, because callers may modify the result, and the originals are cached.
    on_device = lengths.on(values.device)
    return PackedSequence(data, lengths.batch_sizes.clone(), on_device.order.clone(), on_device.rank.clone())


def packed_to_flat(data: Tensor, lengths: Lengths) -> Tensor:
    """Convert the data of a PackedSequence to flat values; the lengths hold its order."""
    return _convert(data, _PackedLayout(lengths), True)


def read_packed(packed: PackedSequence) -> tuple[Tensor, Lengths]:
    """Convert a PackedSequence to flat values and lengths, or raise if its parts do not fit each other."""
    unpacked = outside_inference_mode(lambda: row_copies.unpack_lengths(packed))
    if unpacked is None:  # because the kernels do not support it, or it is invalid
        lengths = Lengths.from_batch_sizes(*require_packed("packed", packed))
    else:
        lengths = Lengths.from_packed(*unpacked, packed.data.shape[0])
    return packed_to_flat(packed.data, lengths), lengths


def flat_to_nested(values: Tensor, lengths: Lengths) -> Tensor:
    """Convert flat values to a nested tensor of jagged layout, a view of them."""
    if not values.requires_grad:
        return _nested_view(values, lengths)
    # PyTorch's own backward pass has no gradients of gradients, and none of complex values.
    return call_linear(
        values, lambda one: _nested_view(one.detach(), lengths), partial(_values_of_full, lengths=lengths)
    )


def _values_of_full(nested: Any, lengths: Lengths) -> Tensor:
    """Return the values of a nested tensor without holes: the inverse of `flat_to_nested`, and its backward pass."""
    if not nested.requires_grad:
        return _nested_values(nested)
    return call_linear(nested, _nested_values, partial(flat_to_nested, lengths=lengths))


def _nested_view(values: Tensor, lengths: Lengths) -> Tensor:
    with _inference_mode_of(values):
        nested: Tensor = torch.nested.nested_tensor_from_jagged(
            values,
            lengths.nested_offsets(values.device),
            min_seqlen=lengths.shortest,
            max_seqlen=lengths.longest,
        )
    return nested


def _nested_values(nested: Any) -> Tensor:
    with _inference_mode_of(nested):
        values: Tensor = (nested.detach() if nested.requires_grad else nested).values()
    return values


def nested_to_flat(nested: Tensor) -> tuple[Tensor, Lengths]:
    """Convert a nested tensor of jagged layout to flat values, a view of it unless it has holes, and lengths."""
    jagged: Any = nested  # because torch does not annotate the methods of this layout
    offsets, counts, values = jagged.offsets(), jagged.lengths(), _nested_values(nested)
    lengths = Lengths(tuple((offsets.diff() if counts is None else counts).tolist()))
    starts = offsets.cpu()
    if counts is None and starts[0] == 0 and starts[-1] == len(values):
        lengths.adopt_nested_offsets(offsets)
        return _values_of_full(nested, lengths), lengths
    values = jagged.values()
    plan = Plan.gather(ranges(starts[:-1], lengths.tensor, lengths.total), len(values))  # because it has holes
    return rearrange(values, plan.to(values.device)), lengths
