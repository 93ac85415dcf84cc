"""The class methods that build a SequenceBatch from other layouts."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from seqbatch import _checks, _layout_checks, _rows, graphs, layouts
from seqbatch._checks import complaint
from seqbatch._kept import outside_inference_mode
from seqbatch._layout_checks import PaddingSide
from seqbatch._lengths import Lengths
from seqbatch._modes import refuse_in_a_graph
from seqbatch._structures import structure_of, structure_of_sizes
from seqbatch._tracing import in_a_graph
from seqbatch.errors import SeqbatchValueError


class FromLayouts(ABC):
    """The methods that build a SequenceBatch from other layouts. Padding never affects a value or a gradient."""

    __slots__ = ()

    @classmethod
    @abstractmethod
    def _of(cls, values: Tensor, lengths: Lengths) -> Self:
        """Build a batch from `Lengths`, without checks."""

    @classmethod
    def from_sequences(cls, sequences: Iterable[Tensor]) -> Self:
        """Join sequences of unequal length into a batch.

        Args:
            sequences: any iterable of Tensors `(steps, *features)` of equal features, dtype and device. If it is
                empty, features and dtype are unknown. The batch then has size 0 and features `()`; every layer takes
                it, and `concat` joins it to any other. `batch[[]]` keeps the features and dtype of a batch.

        Returns:
            a batch of copies, through which gradients flow.

        Raises:
            SeqbatchTypeError: `sequences` is not an iterable of Tensors, or is a Tensor or a PackedSequence itself.
            SeqbatchValueError: a sequence has no dimension of steps, or differs from the first.

        >>> SequenceBatch.from_sequences([torch.zeros(10, 5), torch.zeros(7, 5)])
        SequenceBatch(2 sequences of 7 to 10 steps, features (5,), torch.float32, cpu)
        """
        tensors = _checks.sequences_of("sequences", sequences)
        if not tensors:
            return cls._of(torch.empty(0), Lengths(()))
        return cls._of(torch.cat(tensors), structure_of_sizes(tuple([tensor.shape[0] for tensor in tensors])))

    @classmethod
    def from_padded(
        cls,
        padded: Tensor,
        lengths: Sequence[int] | Tensor,
        *,
        batch_first: bool,
        padding_side: PaddingSide = "right",
    ) -> Self:
        """Read the real steps out of a padded tensor.

        Args:
            padded: `(batch, time, *features)` if batch_first, else `(time, batch, *features)`.
            lengths: `(batch,)`, integers, in steps; a Tensor on a device is copied to the host, which synchronizes.
            batch_first: which of the first two axes of `padded` is the batch.
            padding_side: the side on which shorter sequences are padded.

        Returns:
            a batch of copies, through which gradients flow; those of padding are 0.

        Raises:
            SeqbatchTypeError: `padded` is not a Tensor, the lengths are not integers, or batch_first is not a bool.
            SeqbatchValueError: `padded` has fewer than two axes, there are not as many lengths as sequences, a length
                is negative or above the time axis, or padding_side is neither "right" nor "left".

        Source: the inverse of `torch.nn.utils.rnn.pad_sequence`.

        >>> batch = SequenceBatch.from_padded(torch.tensor([[1, 2], [3, 0]]), [2, 1], batch_first=True)
        >>> batch.values
        tensor([1, 2, 3])
        """
        size, time = _layout_checks.padded_shape("padded", padded, batch_first)
        side = _layout_checks.require_side(padding_side)
        structure = structure_of("lengths", lengths)
        if in_a_graph():
            return cls._of(graphs.from_padded(padded, structure.tensor, batch_first, side), structure)
        if len(structure) != size:
            raise complaint(SeqbatchValueError, "lengths", f"have shape ({size},), as the batch", (len(structure),))
        if structure.longest > time:
            i, count = next((i, count) for i, count in enumerate(structure.counts) if count > time)
            raise complaint(SeqbatchValueError, f"lengths[{i}]", f"be at most {time}, the time axis", count)
        return cls._of(layouts.from_padded(padded, structure, batch_first, side), structure)

    @classmethod
    def from_mask(cls, padded: Tensor, mask: Tensor, *, batch_first: bool) -> Self:
        """Read the steps of a padded tensor where a mask is True; padding may be on the right, left or both sides.

        Args:
            padded: `(batch, time, *features)` if batch_first, else `(time, batch, *features)`.
            mask: the first two axes of `padded`, bool, True on real steps; on a device it is copied to the host,
                which synchronizes.
            batch_first: which of the first two axes of `padded` and `mask` is the batch.

        Returns:
            a batch of copies, through which gradients flow; those of padding are 0.

        Raises:
            SeqbatchTypeError: `padded` is not a Tensor, the mask is not a bool Tensor, or batch_first is not a bool.
            SeqbatchValueError: `padded` has fewer than two axes, the mask has another shape, or it has a hole: a False
                between two True.

        >>> mask = torch.tensor([[False, True], [True, True]])
        >>> SequenceBatch.from_mask(torch.tensor([[0, 1], [2, 3]]), mask, batch_first=True).values
        tensor([1, 2, 3])
        """
        _layout_checks.padded_shape("padded", padded, batch_first)
        if in_a_graph():
            values, lengths = graphs.from_mask(padded, _checks.require_tensor("mask", mask), batch_first)
            return cls._of(values, Lengths.from_tensor(lengths))
        real = _layout_checks.require_mask("mask", mask, tuple(padded.shape[:2]), batch_first)
        counts = real.sum(1 if batch_first else 0)
        return cls._of(layouts.from_masked(padded, real, batch_first), Lengths(tuple(counts.tolist())))

    @classmethod
    def from_packed(cls, packed: PackedSequence) -> Self:
        """Unpack PyTorch's packed form, into the order the sequences had before packing.

        Args:
            packed: its data `(total_steps, *features)`; indices on a device are copied to the host, which synchronizes.

        Returns:
            a batch of copies, through which gradients flow.

        Raises:
            SeqbatchTypeError: this is not a PackedSequence, its data are not a Tensor, or its batch sizes or indices
                are not integer Tensors of one axis.
            SeqbatchValueError: its data have no dimension of steps; its batch sizes rise, are below 1, or do not add up
                to its data; or its sorted and unsorted indices are not both there (or both None), do not name each
                sequence once, or do not undo each other.

        Source: the inverse of `torch.nn.utils.rnn.pack_sequence`.

        >>> packed = nn.utils.rnn.pack_sequence([torch.tensor([1, 2]), torch.tensor([3])])
        >>> SequenceBatch.from_packed(packed).values
        tensor([1, 2, 3])
        """
        refuse_in_a_graph("the sizes of a PackedSequence")
        unpacked = outside_inference_mode(lambda: _rows.unpack(packed))
        if unpacked is None:  # because the kernels do not support it, or it is invalid
            lengths = Lengths.from_batch_sizes(*_layout_checks.require_packed("packed", packed))
        else:
            lengths = Lengths.from_packed(*unpacked, packed.data.shape[0])
        return cls._of(layouts.from_packed(packed.data, lengths), lengths)

    @classmethod
    def from_nested(cls, nested: Tensor) -> Self:
        """Convert a nested tensor of jagged layout.

        Args:
            nested: `(batch, steps, *features)`, whose second axis is ragged; offsets on a device are copied to the
                host, which synchronizes.

        Returns:
            a batch that is a view of it (a copy if some of its values are in no sequence), through which gradients
            flow.

        Raises:
            SeqbatchTypeError: this is not a nested Tensor of jagged layout.
            SeqbatchValueError: its ragged axis is not the second.

        Source: `torch.nested`.

        >>> nested = torch.nested.nested_tensor([torch.zeros(2, 5), torch.zeros(3, 5)], layout=torch.jagged)
        >>> SequenceBatch.from_nested(nested).lengths
        (2, 3)
        """
        refuse_in_a_graph("the lengths of a nested tensor")
        values, lengths = layouts.from_nested(_layout_checks.require_nested("nested", nested))
        return cls._of(values, lengths)

    @classmethod
    def from_offsets(cls, values: Tensor, offsets: Sequence[int] | Tensor) -> Self:
        """Build a batch from flat values and the offset of each sequence, as ragged attention takes (`cu_seqlens`).

        Args:
            values: `(total_steps, *features)`.
            offsets: `(batch + 1,)`, integers, in steps: non-decreasing, from 0 to total_steps; a Tensor on a device
                is copied to the host, which synchronizes.

        Returns:
            a batch of these very values.

        Raises:
            SeqbatchTypeError: the values are not a Tensor, or the offsets are not integers.
            SeqbatchValueError: the values have no dimension of steps, or the offsets do not start at 0, decrease
                somewhere, or do not end at total_steps.

        >>> SequenceBatch.from_offsets(torch.zeros(9, 5), [0, 2, 2, 9]).lengths
        (2, 0, 7)
        """
        steps = _checks.require_steps("values", values).shape[0]
        if in_a_graph():
            numbers = structure_of("offsets", offsets).tensor
            return cls._of(values, Lengths.from_tensor(graphs.lengths_between(numbers, steps)))
        return cls._of(values, Lengths(_layout_checks.lengths_of_offsets("offsets", offsets, steps)))
