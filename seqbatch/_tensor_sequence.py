"""The methods of `collections.abc.Sequence` that compare what is in it, as Tensors are compared: by `torch.equal`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seqbatch._checks import complaint, type_name
from seqbatch.errors import SeqbatchValueError


class TensorSequence(Sequence[Tensor]):
    """What a SequenceBatch can do as a Sequence of Tensors, where `==` would give a Tensor and not an answer."""

    __slots__ = ()

    def __contains__(self, sequence: object) -> bool:
        return self.count(sequence) > 0

    def count(self, sequence: object) -> int:
        """Count the sequences that equal a Tensor, as `torch.equal`.

        Args:
            sequence: `(steps, *features)`; only a Tensor of the same dtype and device can be equal.

        >>> SequenceBatch(torch.tensor([1, 2, 1]), [1, 1, 1]).count(torch.tensor([1]))
        2
        """
        return sum(_equal(one, sequence) for one in self)

    def index(self, sequence: object, start: int = 0, stop: int | None = None) -> int:
        """Return the position of the first sequence that equals a Tensor, as `torch.equal`.

        Args:
            sequence: `(steps, *features)`; only a Tensor of the same dtype and device can be equal.
            start: the first position to look at; a negative one counts from the end, as in a slice.
            stop: the position before which to stop, in the same way; None to look at all.

        Raises:
            SeqbatchValueError: no sequence from `start` on, before `stop`, does.

        >>> SequenceBatch(torch.tensor([1, 2, 1]), [1, 1, 1]).index(torch.tensor([1]), 1)
        2
        """
        for i in range(len(self))[start:stop]:
            if _equal(self[i], sequence):
                return i
        raise complaint(SeqbatchValueError, "sequence", "equal one of the batch", type_name(sequence))


def _equal(one: Tensor, other: object) -> bool:
    """Return True if an object is a Tensor with the same shape, dtype, device and values as another."""
    if not isinstance(other, Tensor) or other.is_nested or other.layout is not torch.strided:
        return False
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device) and torch.equal(one, other)
