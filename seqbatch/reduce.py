"""Reductions per sequence: the methods of SequenceBatch that turn the steps of each sequence into one."""

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from seqbatch._checks import complaint
from seqbatch._lengths import Lengths
from seqbatch._reduce import reduce
from seqbatch.errors import SeqbatchTypeError


class Reductions(ABC):
    """The reductions of a SequenceBatch.

    All return a new Tensor `(batch, *features)` through which gradients flow. An empty sequence yields zeros and gets
    no gradient, because a NaN would reach every other sequence through the loss.
    """

    __slots__ = ()
    values: Tensor
    _lengths: Lengths

    @abstractmethod
    def with_values(self, values: Tensor) -> Self:
        """Build a batch of the same structure and other values."""

    def sum(self) -> Tensor:
        """Sum the steps of each sequence.

        Returns:
            `(batch, *features)`; int64 for integers and bools, as `torch.sum`.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).sum()
        tensor([3, 3])
        """
        return reduce(self.values, self._lengths, "sum")

    def mean(self) -> Tensor:
        """Average the steps of each sequence, over its own length.

        Returns:
            `(batch, *features)`, the dtype of the values.

        Raises:
            SeqbatchTypeError: the dtype is neither floating nor complex.

        >>> SequenceBatch.from_sequences([torch.tensor([1.0, 2.0]), torch.tensor([3.0])]).mean()
        tensor([1.5000, 3.0000])
        """
        if not (self.values.is_floating_point() or self.values.is_complex()):
            raise _wrong_dtype("floating or complex to be averaged", self.values)
        return reduce(self.values, self._lengths, "mean")

    def max(self) -> Tensor:
        """Return the largest step of each sequence, feature by feature, as `torch.amax`.

        Returns:
            `(batch, *features)`, the dtype of the values; steps that are equally large share the gradient.

        Raises:
            SeqbatchTypeError: the dtype is complex or uint64, for which PyTorch has no maximum.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).max()
        tensor([2, 3])
        """
        _require_order(self.values)
        return reduce(self.values, self._lengths, "max")

    def min(self) -> Tensor:
        """Return the smallest step of each sequence, feature by feature, as `torch.amin`.

        Returns:
            `(batch, *features)`, the dtype of the values; steps that are equally small share the gradient.

        Raises:
            SeqbatchTypeError: the dtype is complex or uint64, for which PyTorch has no minimum.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).min()
        tensor([1, 3])
        """
        _require_order(self.values)
        return reduce(self.values, self._lengths, "min")

    def first(self) -> Tensor:
        """Return the first step of each sequence.

        Returns:
            `(batch, *features)`, any dtype.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).first()
        tensor([1, 3])
        """
        return reduce(self.values, self._lengths, "first")

    def last(self) -> Tensor:
        """Return the last real step of each sequence, which is not the last of a padded tensor.

        In the outputs of a bidirectional layer, the backward half has seen only one step there. The summary of the
        whole sequence is `state.last()`.

        Returns:
            `(batch, *features)`, any dtype.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).last()
        tensor([2, 3])
        """
        return reduce(self.values, self._lengths, "last")

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
        return self.with_values(reduce(self.values, self._lengths, "softmax"))


def _require_order(values: Tensor) -> None:
    if values.is_complex() or values.dtype is torch.uint64:
        raise _wrong_dtype("of an order that PyTorch knows", values)


def _wrong_dtype(must: str, values: Tensor) -> SeqbatchTypeError:
    return complaint(SeqbatchTypeError, "values", f"have a dtype {must}", values.dtype)
