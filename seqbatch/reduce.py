"""Reductions per sequence: the methods of SequenceBatch that turn the steps of each sequence into one."""

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from seqbatch._checks import complaint
from seqbatch._lengths import CHUNK, Lengths
from seqbatch._modes import is_transformed
from seqbatch._plans import edge_plan
from seqbatch.errors import SeqbatchTypeError
from seqbatch.layouts import rearrange

# So many sequences take less time one by one, on the CPU, than by one call for all, which wakes other threads.
FEW = 32
# Longer sequences are added up in chunks, whose sums of two levels round off as much as so many steps in one go do.
IN_ONE_GO = 2 * CHUNK


class Reductions(ABC):
    """What a SequenceBatch can be reduced to.

    All give a new Tensor `(batch, *features)` through which gradients flow. A sequence of no steps gives zeros and
    takes no gradient: there is nothing to reduce, and a NaN would reach every other sequence through the loss.
    """

    __slots__ = ()
    values: Tensor
    _lengths: Lengths

    @abstractmethod
    def with_values(self, values: Tensor) -> Self:
        """Give the same structure other values."""

    def sum(self) -> Tensor:
        """Add up the steps of each sequence.

        Returns:
            `(batch, *features)`; integers and bools give int64, as `torch.sum`.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).sum()
        tensor([3, 3])
        """
        if not (self.values.is_floating_point() or self.values.is_complex()):
            return _add(self.values.long(), self._lengths)
        return _add(_widen(self.values), self._lengths).to(self.values.dtype)

    def mean(self) -> Tensor:
        """Average the steps of each sequence: real steps only, each sequence by its own length.

        Returns:
            `(batch, *features)`, the dtype of the values.

        Raises:
            SeqbatchTypeError: the dtype is neither floating nor complex.

        >>> SequenceBatch.from_sequences([torch.tensor([1.0, 2.0]), torch.tensor([3.0])]).mean()
        tensor([1.5000, 3.0000])
        """
        if not (self.values.is_floating_point() or self.values.is_complex()):
            raise _wrong_dtype("floating or complex to be averaged", self.values)
        counts = self._lengths.on("tensor", self.values.device).clamp(min=1)
        total = _add(_widen(self.values), self._lengths)
        return (total / counts.view(-1, *(1 for _ in total.shape[1:]))).to(self.values.dtype)

    def max(self) -> Tensor:
        """Take the largest step of each sequence, feature by feature, as `torch.amax`.

        Returns:
            `(batch, *features)`, the dtype of the values; steps that are equally large share the gradient.

        Raises:
            SeqbatchTypeError: the dtype is complex or uint64, of which PyTorch knows no largest.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).max()
        tensor([2, 3])
        """
        return _extreme(self.values, self._lengths, "amax")

    def min(self) -> Tensor:
        """Take the smallest step of each sequence, feature by feature, as `torch.amin`.

        Returns:
            `(batch, *features)`, the dtype of the values; steps that are equally small share the gradient.

        Raises:
            SeqbatchTypeError: the dtype is complex or uint64, of which PyTorch knows no smallest.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).min()
        tensor([1, 3])
        """
        return _extreme(self.values, self._lengths, "amin")

    def first(self) -> Tensor:
        """Take the first step of each sequence.

        Returns:
            `(batch, *features)`, any dtype.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).first()
        tensor([1, 3])
        """
        return rearrange(self.values, self._lengths.plan(edge_plan, False, device=self.values.device))

    def last(self) -> Tensor:
        """Take the last real step of each sequence, which is not the last of a padded tensor.

        Of the outputs of a two-way layer the backward half has seen one step there: what sums up the whole sequence
        is `state.last()`.

        Returns:
            `(batch, *features)`, any dtype.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).last()
        tensor([2, 3])
        """
        return rearrange(self.values, self._lengths.plan(edge_plan, True, device=self.values.device))

    def softmax(self) -> Self:
        """Normalize each sequence over its steps, feature by feature, as `torch.softmax` along the steps.

        Returns:
            a batch of the same structure and dtype; each sequence of one step or more adds up to 1.

        Raises:
            SeqbatchTypeError: the dtype is not floating.

        >>> SequenceBatch.from_sequences([torch.zeros(2), torch.zeros(1)]).softmax().values
        tensor([0.5000, 0.5000, 1.0000])
        """
        if not self.values.is_floating_point():
            raise _wrong_dtype("floating for a softmax", self.values)
        wide = _widen(self.values)
        if (together := _side_by_side(wide, self._lengths)) is not None:
            shares = together.softmax(1).flatten(0, 1)
        elif _are_few(wide, self._lengths):
            shares = torch.cat([one.softmax(0) for one in wide.split(self._lengths.counts)])
        else:
            # Shifting by a constant changes nothing in exact arithmetic, so no gradient is owed through the maximum.
            peaks = _extreme(wide.detach(), self._lengths, "amax")
            weights = (wide - _spread(peaks, self._lengths)).exp()
            shares = weights / _spread(_add(weights, self._lengths), self._lengths)
        return self.with_values(shares.to(self.values.dtype))


class _AddOrSpread(torch.autograd.Function):
    """The sum of each sequence, or its converse, a row of each sequence at all its steps; each is the other's gradient.

    Torch's own gradient of `embedding_bag` is slow and has none of its own.
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
    apply: Any = function.apply  # torch gives it no types
    result: Tensor = apply(*arguments)
    return result


def _owes_gradient(values: Tensor) -> bool:
    return values.requires_grad and not is_transformed()


def _are_few(values: Tensor, lengths: Lengths) -> bool:
    return values.device.type == "cpu" and 0 < len(lengths) <= FEW


def _side_by_side(values: Tensor, lengths: Lengths) -> Tensor | None:
    """View the values as `(batch, steps, *features)` where all lengths are equal; else give None."""
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
    return start.index_add_(0, lengths.on("rows", values.device), values)


def _spread(values: Tensor, lengths: Lengths) -> Tensor:
    """Give the row of each sequence at all its steps."""
    return _apply(_AddOrSpread, values, lengths, False) if _owes_gradient(values) else _copies(values, lengths)


def _copies(values: Tensor, lengths: Lengths) -> Tensor:
    return values.index_select(0, lengths.on("rows", values.device))


def _extreme(values: Tensor, lengths: Lengths, which: str) -> Tensor:
    if values.is_complex() or values.dtype is torch.uint64:
        raise _wrong_dtype("of an order that PyTorch knows", values)
    wide, there = _widen(values) if values.is_floating_point() else values.long(), lengths.running
    if (together := _side_by_side(wide, there)) is not None:
        found: Tensor = getattr(torch, which)(together, 1)
    else:
        found = _apply(_Extreme, wide, there, which) if _owes_gradient(wide) else _extremes(wide, there, which)
    if there is not lengths:
        start = found.new_zeros(len(lengths), *values.shape[1:])
        found = start.index_copy(0, lengths.on("not_empty", values.device), found)
    return found.to(values.dtype)


def _extremes(values: Tensor, lengths: Lengths, which: str) -> Tensor:
    """Find the largest or smallest step of each sequence, none of which is empty."""
    if _are_few(values, lengths):
        return torch.stack([getattr(torch, which)(one, 0) for one in values.split(lengths.counts)])
    index = lengths.on("rows", values.device).view(-1, *(1 for _ in values.shape[1:])).expand_as(values)
    # Torch's own gradient is shared with a start that equals the extreme, and NaN equals nothing.
    start = values.new_full((len(lengths), *values.shape[1:]), float("nan") if values.is_floating_point() else 0)
    return start.scatter_reduce(0, index, values, which, include_self=False)


def _widen(values: Tensor) -> Tensor:
    """Compute in single precision at least, as PyTorch's own reductions do inside."""
    if torch.finfo(values.dtype).bits >= 32:
        return values
    return values.to(torch.complex64 if values.is_complex() else torch.float32)


def _wrong_dtype(must: str, values: Tensor) -> SeqbatchTypeError:
    return complaint(SeqbatchTypeError, "values", f"have a dtype {must}", values.dtype)
