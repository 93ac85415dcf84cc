"""Reductions per sequence: the methods of SequenceBatch that turn the steps of each sequence into one."""

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from seqbatch._checks import complaint
from seqbatch._lengths import CHUNK, Lengths
from seqbatch._plans import edge_plan
from seqbatch.errors import SeqbatchTypeError
from seqbatch.layouts import rearrange


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
        rows = self._lengths.on("rows", self.values.device)
        wide = _widen(self.values)
        # Shifting by a constant changes nothing in exact arithmetic, so no gradient is owed through the maximum.
        peaks = _extreme(wide.detach(), self._lengths, "amax")
        weights = (wide - peaks.index_select(0, rows)).exp()
        shares = weights / _add(weights, self._lengths).index_select(0, rows)
        return self.with_values(shares.to(self.values.dtype))


def _add(values: Tensor, lengths: Lengths) -> Tensor:
    if lengths.longest > CHUNK:
        chunks, numbers = lengths.chunks
        return _add(_add(values, chunks), numbers)
    start = values.new_zeros(len(lengths), *values.shape[1:])
    return start.index_add_(0, lengths.on("rows", values.device), values)


def _extreme(values: Tensor, lengths: Lengths, which: str) -> Tensor:
    if values.is_complex() or values.dtype is torch.uint64:
        raise _wrong_dtype("of an order that PyTorch knows", values)
    wide = _widen(values) if values.is_floating_point() else values.long()
    rows = lengths.on("rows", values.device)
    index = rows.view(-1, *(1 for _ in values.shape[1:])).expand_as(values)
    start = wide.new_zeros(len(lengths), *values.shape[1:])
    if values.is_floating_point():
        # The backward pass of torch shares the gradient with a start that equals the extreme, and NaN equals nothing.
        start.index_fill_(0, lengths.on("not_empty", values.device), float("nan"))
    return start.scatter_reduce(0, index, wide, which, include_self=False).to(values.dtype)


def _widen(values: Tensor) -> Tensor:
    """Compute in single precision at least, as PyTorch's own reductions do inside."""
    if torch.finfo(values.dtype).bits >= 32:
        return values
    return values.to(torch.complex64 if values.is_complex() else torch.float32)


def _wrong_dtype(must: str, values: Tensor) -> SeqbatchTypeError:
    return complaint(SeqbatchTypeError, "values", f"have a dtype {must}", values.dtype)
