"""The methods that convert a SequenceBatch to other layouts."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from seqbatch import _layout_checks, graphs, layouts
from seqbatch._checks import complaint
from seqbatch._layout_checks import PaddingSide
from seqbatch._lengths import Lengths, to_device
from seqbatch._modes import refuse_in_a_graph
from seqbatch._plans import mask
from seqbatch._tracing import in_a_graph
from seqbatch.errors import SeqbatchValueError


class ToLayouts:
    """The methods that convert a SequenceBatch to other layouts."""

    __slots__ = ()
    values: Tensor
    _lengths: Lengths

    def to_sequences(self) -> list[Tensor]:
        """Return the sequences one by one.

        Returns:
            Tensors `(steps, *features)` in the caller's order, views of the values through which gradients flow.

        >>> SequenceBatch(torch.tensor([1, 2, 3]), [2, 1]).to_sequences()
        [tensor([1, 2]), tensor([3])]
        """
        return list(torch.split(self.values, list(self._lengths.sizes or self._lengths.counts)))

    def to_padded(
        self,
        *,
        batch_first: bool,
        padding_value: complex = 0.0,
        padding_side: PaddingSide = "right",
        total_length: int | None = None,
    ) -> Tensor:
        """Pad all sequences to one length.

        Args:
            batch_first: which of the first two axes of the result is the batch.
            padding_value: the value of the padding, which the dtype must be able to represent.
            padding_side: the side on which shorter sequences are padded.
            total_length: steps to pad to, at least those of the longest sequence, which is the default.

        Returns:
            `(batch, time, *features)` if batch_first, else `(time, batch, *features)`, a copy through which
            gradients flow.

        Raises:
            SeqbatchTypeError: batch_first is not a bool, padding_value is not a number, or total_length is not an
                integer.
            SeqbatchValueError: padding_value is not a value of the dtype, padding_side is neither "right" nor "left",
                or total_length is too short.

        Source: `torch.nn.utils.rnn.pad_sequence`.

        >>> SequenceBatch(torch.tensor([1, 2, 3]), [2, 1]).to_padded(batch_first=True)
        tensor([[1, 2],
                [3, 0]])
        """
        _layout_checks.require_bool("batch_first", batch_first)
        side = _layout_checks.require_side(padding_side)
        time = self._time(total_length)
        if in_a_graph():
            fill = graphs.require_fill(padding_value, self.values.dtype)
            return graphs.to_padded(self.values, self._lengths.tensor, batch_first, side, time, fill)
        fill = _layout_checks.require_padding_value(padding_value, self.values.dtype)
        return layouts.to_padded(self.values, self._lengths, batch_first, side, time, fill)

    def to_packed(self) -> PackedSequence:
        """Pack the sequences as PyTorch's recurrent layers take them.

        Returns:
            a PackedSequence that remembers the caller's order, a copy through which gradients flow.

        Raises:
            SeqbatchValueError: a sequence is empty, which the packed form cannot hold.

        Source: `torch.nn.utils.rnn.pack_sequence(..., enforce_sorted=False)`.

        >>> SequenceBatch(torch.tensor([1, 2, 3]), [1, 2]).to_packed().data
        tensor([2, 1, 3])
        """
        if self._lengths.shortest == 0 and len(self._lengths):
            where = f"sequences[{self._lengths.counts.index(0)}]"
            remedy = "PyTorch's packed form cannot hold an empty sequence: leave it out, by batch[indices]."
            raise complaint(SeqbatchValueError, where, "have a step to be packed", "0 steps", remedy)
        return layouts.to_packed(self.values, self._lengths)

    def to_nested(self) -> Tensor:
        """Convert to a nested tensor of jagged layout.

        Returns:
            `(batch, steps, *features)`, whose second axis is ragged, a view of the values through which gradients
            flow. Nested tensors of batches of the same structure can be added and multiplied.

        Source: `torch.nested.nested_tensor_from_jagged`.

        >>> SequenceBatch(torch.zeros(3, 5), [2, 1]).to_nested().is_nested
        True
        """
        refuse_in_a_graph("the lengths of a nested tensor")
        return layouts.to_nested(self.values, self._lengths)

    def mask(
        self, *, batch_first: bool, padding_side: PaddingSide = "right", total_length: int | None = None
    ) -> Tensor:
        """Compute the mask of real steps in what `to_padded` returns for the same arguments.

        Args:
            batch_first: which of the two axes of the result is the batch.
            padding_side: the side on which shorter sequences are padded.
            total_length: steps to pad to, at least those of the longest sequence, which is the default.

        Returns:
            `(batch, time)` if batch_first, else `(time, batch)`, bool, True on real steps; a new Tensor.

        Raises:
            SeqbatchTypeError: batch_first is not a bool, or total_length is not an integer.
            SeqbatchValueError: padding_side is neither "right" nor "left", or total_length is too short.

        >>> SequenceBatch(torch.tensor([1, 2, 3]), [2, 1]).mask(batch_first=True)
        tensor([[ True,  True],
                [ True, False]])
        """
        _layout_checks.require_bool("batch_first", batch_first)
        side = _layout_checks.require_side(padding_side)
        time = self._time(total_length)
        if in_a_graph():
            return graphs.mask(self._lengths.tensor, batch_first, side, time).to(self.values.device)
        return to_device(mask(self._lengths, batch_first, side, time), self.values.device)

    def _time(self, total_length: int | None) -> int:
        """Return the number of steps to pad to, or raise; while tracing, add the check to the graph."""
        if not in_a_graph():
            return _layout_checks.require_total_length(total_length, self._lengths.longest)
        return graphs.longest(self._lengths.tensor) if total_length is None else graphs.require_integer(total_length)
