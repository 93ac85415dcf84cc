"""SequenceBatch: several sequences of unequal length as one tensor of flat values and their lengths."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self, TypeAlias, overload

import attrs
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from seqbatch import _ops
from seqbatch._checks.arguments import integer, require_alike, require_steps, require_tensor, sequences_of
from seqbatch._checks.exporters import refuse_exporters
from seqbatch._checks.gathering import require_gatherable
from seqbatch._checks.grammar import complaint, traits, type_name
from seqbatch._checks.indices import (
    AnyScalar,
    Index,
    Scalar,
    Several,
    Step,
    StepSlice,
    as_index,
    is_full_slice,
    is_one_index,
    one_position,
    positions_in,
    require_step,
    several_positions,
    step_index,
    two_indices,
)
from seqbatch._checks.layout_arguments import (
    PaddingSide,
    require_bool,
    require_form,
    require_nested,
    require_padded,
    require_side,
)
from seqbatch._checks.not_a_tensor import NotAnArray
from seqbatch._checks.per_sample_gradients import require_no_samples, samples_refused
from seqbatch._checks.stacked import remember_iterated, require_not_stacked
from seqbatch._checks.step_functions import require_steps_apart
from seqbatch._checks.tracing import refuse_in_a_graph
from seqbatch._ops.layouts import flat_to_nested, flat_to_packed, nested_to_flat, read_packed, rearrange
from seqbatch._structure.plans import select_plan
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import in_a_graph, known_or_false, register_pytree
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

# With a name, because `torch.jit.script` cannot read the type itself in a method, and raises before it names the class.
SequenceFunction: TypeAlias = Callable[[Tensor], Tensor]

# PyTorch's errors for Tensors of different numbers of rows: in arithmetic, in `expand_as`, in `cat` and in `stack`.
_MISMATCH = re.compile(
    r"The size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\) at non-singleton dimension 0"
    r"|The expanded size of the tensor \((\d+)\) must match the existing size \((\d+)\) at non-singleton dimension 0"
    r"|Sizes of tensors must match except in dimension [1-9]\d*. Expected size (\d+) but got size (\d+) for tensor"
    r"|stack expects each tensor to be equal size, but got \[(\d+)[],].* at entry \d+ and \[(\d+)[],]"
)


@attrs.frozen(eq=False, repr=False, init=False)
class SequenceBatch(NotAnArray, Sequence[Tensor]):
    """Several sequences of unequal length, of equal feature shape, dtype and device.

    It is a `collections.abc.Sequence[Tensor]`, is immutable, and is compared by identity. Arithmetic goes through
    `map`: `batch.map(torch.add, other)`. A `DataLoader` builds batches with
    `collate_fn=SequenceBatch.from_sequences`.

    Layers of PyTorch and functions of torch or NumPy raise if they are called with it, because they do not know the
    lengths. The error says to call `encode(layer, batch)` or `batch.map(function)`. Two calls do not raise, because
    PyTorch reads any Sequence of Tensors there: `tensor[batch]` and `torch.tensor([batch])`.

    Other libraries may take a step for a sample without an error: Lightning if `self.log` is called without
    `batch_size=len(batch)`, and opacus if a layer is called on `batch.values`. See docs/with_other_libraries.md.

    Args:
        values: `(total_steps, *features)`: all steps of the first sequence, then all of the second, and so on. Without
            lengths, the sequences one by one, as for `from_sequences`: libraries that rebuild a Sequence from its
            elements call it so.
        lengths: `(batch,)`, integers, in steps; 0 is allowed. A Tensor on a device is copied to the host, which
            synchronizes; later calls do not. The `structure` of another batch is taken as it is.

    Attributes:
        values: as given.
        structure: the lengths and what is computed from them on first use: offsets, orders, plans. All batches of the
            same lengths that come from one batch share it. For authors of encoders, who pass it on:
            `SequenceBatch(values, batch.structure)`.

    Raises:
        SeqbatchTypeError: there are lengths, but they are not integers, or the values are not a Tensor; or there are no
            lengths, and the values are not several Tensors.
        SeqbatchValueError: the lengths are negative or do not add up to the steps; the values or a sequence have no
            dimension of steps; or a sequence differs from the first, or is the stack of sequences of several batches,
            as by `torch.utils.data.default_collate`.
        SeqbatchError: `torch.jit.trace` or `torch.onnx.export` runs the call.

    >>> SequenceBatch(torch.zeros(17, 5), [10, 7])
    SequenceBatch(2 sequences of 7 to 10 steps, features (5,), torch.float32, cpu)
    """

    __module__ = "seqbatch"  # so that a pickle does not hold the layout of files
    _instead = (
        "Call encode(layer, batch) for a layer, batch.map(function) for a function that treats every step by itself."
    )
    _contents = "Its steps are batch.values, and padded batch.to_padded(batch_first=True)."
    _sizes = "Its sizes are len(batch), batch.lengths and batch.feature_shape."
    _in_a_loss = "Pass batch.values, which holds all steps without padding."
    values: Tensor
    structure: Lengths

    @overload
    def __init__(self, values: Tensor, lengths: Sequence[int] | Tensor | Lengths) -> None: ...
    @overload
    def __init__(self, values: Sequence[Tensor] | Iterator[Tensor], lengths: None = None) -> None: ...
    def __init__(
        self,
        values: Tensor | Sequence[Tensor] | Iterator[Tensor],
        lengths: Sequence[int] | Tensor | Lengths | None = None,
    ) -> None:
        if lengths is None:
            self._rebuild(values)
            return
        remedy = "For a list of sequences call SequenceBatch.from_sequences."
        flat = require_steps("values", values, remedy_for_tensors=remedy)
        structure = lengths if isinstance(lengths, Lengths) else _ops.lengths_from("lengths", lengths)
        _ops.require_total(structure, flat.shape)
        self._set(flat, structure)

    def _rebuild(self, sequences: Tensor | Sequence[Tensor] | Iterator[Tensor]) -> None:
        """Set the values and lengths as `from_sequences` does, but refuse stacked sequences."""
        if isinstance(sequences, Tensor):
            one, padded = "SequenceBatch.from_sequences([values])", "SequenceBatch.from_padded"
            remedy = f"For one sequence call {one}, for a padded Tensor {padded}."
            raise complaint(SeqbatchTypeError, "lengths", "be given with a Tensor of flat values", None, remedy)
        if isinstance(sequences, list):  # because the libraries that stack pass a list
            require_not_stacked(sequences)
        made = self._joined("values", sequences)
        self._set(made.values, made.structure)

    @classmethod
    def _joined(cls, subject: str, sequences: object) -> Self:
        """Join sequences as `from_sequences`; `subject` names them in errors."""
        tensors = sequences_of(subject, sequences)
        if not tensors:
            return cls._of(torch.empty(0), Lengths(()))
        return cls._of(torch.cat(tensors), _ops.lengths_of_sizes(tuple([tensor.shape[0] for tensor in tensors])))

    @classmethod
    def _of(cls, values: Tensor, structure: Lengths) -> Self:
        """Build a batch without checks of its values and lengths."""
        batch = cls.__new__(cls)
        batch._set(values, structure)
        return batch

    def _set(self, values: Tensor, structure: Lengths) -> None:
        refuse_exporters()
        # As attrs does it, but in a form that `torch.compile` can trace.
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "structure", structure)

    # ------------------------------------------------------------------------------------------------------- properties

    @property
    def lengths(self) -> tuple[int, ...]:
        """`(batch,)`: the steps of each sequence, on the host."""
        return self.structure.counts

    @property
    def offsets(self) -> Tensor:
        """`(batch + 1,)`, int64, on the device of the values: where each sequence starts in them; a copy."""
        return _ops.offsets(self.structure, self.device)

    @property
    def batch_size(self) -> int:
        """The number of sequences."""
        return self.structure.tensor.shape[0]

    @property
    def total_steps(self) -> int:
        """The steps of all sequences together."""
        return self.values.shape[0]

    @property
    def max_length(self) -> int:
        """The steps of the longest sequence; 0 if there is none."""
        return self.structure.longest

    @property
    def feature_shape(self) -> torch.Size:
        """The shape of one step."""
        return self.values.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """The device of the values."""
        return self.values.device

    @property
    def segment_ids(self) -> Tensor:
        """`(total_steps,)`, int64, on the device of the values: the sequence of each step; a copy.

        >>> SequenceBatch(torch.zeros(5), [2, 0, 3]).segment_ids
        tensor([0, 0, 2, 2, 2])
        """
        return _ops.segment_ids(self.structure, self.total_steps, self.device)

    @property
    def positions(self) -> Tensor:
        """`(total_steps,)`, int64, on the device of the values: the index of each step in its sequence; a copy.

        >>> SequenceBatch(torch.zeros(5), [2, 0, 3]).positions
        tensor([0, 1, 0, 1, 2])
        """
        return _ops.positions(self.structure, self.total_steps, self.device)

    # ----------------------------------------------------------------------------------------------- from other layouts

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
        return cls._joined("sequences", sequences)

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
        require_padded("padded", padded, batch_first)
        side = require_side(padding_side)
        structure = _ops.lengths_from("lengths", lengths)
        return cls._of(_ops.from_padded(padded, structure, batch_first, side), structure)

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
        require_padded("padded", padded, batch_first)
        return cls._of(*_ops.from_mask(padded, mask, batch_first))

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
        return cls._of(*read_packed(packed))

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
        return cls._of(*nested_to_flat(require_nested("nested", nested)))

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
        steps = require_steps("values", values).shape[0]
        return cls._of(values, _ops.lengths_from_offsets("offsets", offsets, steps))

    # ------------------------------------------------------------------------------------------------- to other layouts

    def to_sequences(self) -> list[Tensor]:
        """Return the sequences one by one.

        Returns:
            Tensors `(steps, *features)` in the caller's order, views of the values through which gradients flow.

        >>> SequenceBatch(torch.tensor([1, 2, 3]), [2, 1]).to_sequences()
        [tensor([1, 2]), tensor([3])]
        """
        return list(torch.split(self.values, list(self.structure.traced_sizes or self.structure.counts)))

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
        form = require_form(batch_first, padding_side, total_length)
        return _ops.to_padded(self.values, self.structure, form, padding_value)

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
        refuse_in_a_graph("lengths")
        if self.structure.shortest == 0 and len(self):
            where = f"sequences[{self.lengths.index(0)}]"
            remedy = "PyTorch's packed form cannot hold an empty sequence: leave it out, by batch[indices]."
            raise complaint(SeqbatchValueError, where, "have a step to be packed", "0 steps", remedy)
        return flat_to_packed(self.values, self.structure)

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
        return flat_to_nested(self.values, self.structure)

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
        return _ops.mask(self.structure, require_form(batch_first, padding_side, total_length), self.device)

    # -------------------------------------------------------------------------------------------- a Sequence of Tensors

    def __repr__(self) -> str:
        features = tuple(self.feature_shape)
        return f"{type(self).__name__}({self.structure.summary()}, features {features}, {traits(self.values)})"

    def __reduce__(self) -> tuple[type[Self], tuple[Tensor, Lengths]]:
        require_gatherable(self)
        return type(self), (self.values, self.structure)

    def __len__(self) -> int:
        return self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        remember_iterated(self)
        return iter(self.to_sequences())

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: Several[AnyScalar]) -> Self: ...
    @overload
    def __getitem__(self, index: Scalar) -> Tensor: ...
    @overload
    def __getitem__(self, index: tuple[int, Step | slice]) -> Tensor: ...
    @overload
    def __getitem__(self, index: tuple[Several[AnyScalar], slice]) -> Self: ...
    @overload
    def __getitem__(self, index: tuple[Several[AnyScalar], Step]) -> Tensor: ...
    @overload
    def __getitem__(self, index: tuple[Scalar, Step | slice]) -> Tensor: ...
    def __getitem__(self, index: Index[Any] | tuple[Index[Any], Step | slice]) -> Tensor | Self:
        """Return one sequence for an integer (a view), or several for any other index (a batch of copies).

        With a second index, of steps, return those steps of each sequence: `batch[:, 1:]` is a batch of all sequences
        without their first step, and `batch[:, -1]` a Tensor of all last steps. Gradients flow through all of these.

        Args:
            index: an integer, also as a Tensor or NumPy array of no dimension; or a slice, a list of integers or
                bools, or an integer or bool Tensor or NumPy array `(number,)`. Negative integers count from the end.
                Or two: such an index of sequences, and an integer or a slice of steps.

        Returns:
            for two indices: a batch of copies for a slice of steps, which are cut at the ends of each sequence as
            Python cuts a list; a copy `(number, *features)` for a step of each sequence; a view of one sequence.

        Raises:
            SeqbatchIndexError: an index is out of range, a mask has another length, or a sequence is too short for the
                index of a step.
            SeqbatchTypeError: this is not an index, or a slice of steps has a step below 1.

        >>> batch = SequenceBatch(torch.tensor([1, 2, 3]), [2, 1])
        >>> batch[0], batch[[1, 0]].values
        (tensor([1, 2]), tensor([3, 1, 2]))
        >>> batch[:, 1:].to_sequences(), batch[:, -1], batch[0, 1]
        ([tensor([2]), tensor([], dtype=torch.int64)], tensor([2, 3]), tensor(2))
        """
        if isinstance(index, tuple):
            return self._steps_at(*two_indices("index", index))
        refuse_in_a_graph("lengths")
        index = as_index("index", index)
        if is_one_index(index):
            return self._sequence_at(one_position("index", index, len(self)))
        chosen = several_positions("index", index, len(self))
        structure = Lengths(tuple(self.lengths[i] for i in chosen))
        return self._of(rearrange(self.values, select_plan(self.structure, chosen).to(self.device)), structure)

    def _sequence_at(self, i: int) -> Tensor:
        start = int(self.structure.offsets[i])
        return self.values[start : start + self.lengths[i]]

    def _steps_at(self, rows: Any, time: Any) -> Tensor | Self:
        steps, chosen = step_index("index[1]", time), None
        if not is_full_slice(rows):
            refuse_in_a_graph("lengths")
            rows = as_index("index[0]", rows)
            if is_one_index(rows):
                i = one_position("index[0]", rows, len(self))
                if isinstance(steps, StepSlice):
                    return self._sequence_at(i)[steps.start : steps.stop : steps.step]
                require_step("index[1]", steps, [(i, self.lengths[i])])
                return self._sequence_at(i)[steps]
            chosen = tuple(several_positions("index[0]", rows, len(self)))
        if isinstance(steps, StepSlice):  # and not by int, because a step may be a SymInt
            return self._of(*_ops.slice_steps(self.values, self.structure, steps, chosen))
        return _ops.pick_steps(self.values, self.structure, steps, chosen)

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

    @classmethod
    def concat(cls, batches: "Iterable[SequenceBatch]") -> Self:
        """Join batches into one batch of all their sequences.

        Args:
            batches: any iterable of batches of equal features, dtype and device.

        Returns:
            a batch of copies, through which gradients flow.

        Raises:
            SeqbatchTypeError: this is not an iterable, or something in it is not a SequenceBatch.
            SeqbatchValueError: a batch differs from the first in features, dtype or device. A batch made of an empty
                list has no features of its own, so it may be joined to any other.

        >>> SequenceBatch.concat([SequenceBatch(torch.zeros(2), [2]), SequenceBatch(torch.zeros(3), [1, 2])]).lengths
        (2, 1, 2)
        """
        parts, values = _alike_batches(batches)
        if not parts:
            return cls.from_sequences([])
        return cls._of(values, _ops.joined_lengths([part.structure for part in parts]))

    @classmethod
    def concat_steps(cls, batches: "Iterable[SequenceBatch]") -> Self:
        """Join batches end to end, sequence by sequence: the i-th sequence is those of all batches at i, in order.

        Args:
            batches: any iterable of one or more batches of as many sequences, of equal features, dtype and device.

        Returns:
            a batch of copies, through which gradients flow.

        Raises:
            SeqbatchTypeError: this is not an iterable, or something in it is not a SequenceBatch.
            SeqbatchValueError: `batches` is empty, or a batch differs from the first in its number of sequences, in
                features, dtype or device. A batch made of an empty list may be joined to any other without sequences.

        Source: `torch.cat`, for each sequence.

        >>> words, ends = SequenceBatch(torch.tensor([1, 2, 3]), [2, 1]), SequenceBatch(torch.tensor([0, 0]), [1, 1])
        >>> SequenceBatch.concat_steps([words, ends]).to_sequences()
        [tensor([1, 2, 0]), tensor([3, 0])]
        """
        parts, values = _alike_batches(batches)
        if not parts:
            must = "hold a batch, because the number of sequences is unknown without one"
            raise complaint(SeqbatchValueError, "batches", must, "none")
        for i, part in enumerate(parts):
            _ops.require_batch_size(f"batches[{i}]", part.structure, parts[0].structure, "batches[0]")
        return cls._of(*_ops.join_steps(values, [part.structure for part in parts]))

    def merge(self, sizes: Sequence[int] | Tensor | Lengths) -> Self:
        """Join groups of adjacent sequences into one sequence each: words into sentences, sentences into documents.

        Args:
            sizes: `(groups,)`, integers, in sequences: how many each group has; 0 makes an empty sequence. A Tensor on
                a device is copied to the host, which synchronizes. The `structure` of a batch is taken as it is: that
                of a batch which has a step for each sequence of this one.

        Returns:
            a batch of these very values. `split` undoes it.

        Raises:
            SeqbatchTypeError: the sizes are not integers.
            SeqbatchValueError: a size is negative, or they do not add up to the number of sequences.

        >>> letters = SequenceBatch(torch.arange(6), [2, 1, 3])
        >>> letters.merge([2, 1]).to_sequences()
        [tensor([0, 1, 2]), tensor([3, 4, 5])]
        """
        return self._of(self.values, _ops.merged_lengths(self.structure, _structure_of("sizes", sizes)))

    def split(self, lengths: Sequence[int] | Tensor | Lengths) -> Self:
        """Cut each sequence into shorter ones of these lengths: the inverse of `merge`.

        Args:
            lengths: `(number,)`, integers, in steps: those of all shorter sequences, in order. One must end where a
                sequence of this batch ends. A Tensor on a device is copied to the host, which synchronizes. The
                `structure` of a batch is taken as it is, that of the batch before `merge` for instance.

        Returns:
            a batch of these very values.

        Raises:
            SeqbatchTypeError: the lengths are not integers.
            SeqbatchValueError: a length is negative, they do not add up to the steps, or a sequence of this batch ends
                where none of them does.

        >>> words = SequenceBatch(torch.arange(6), [3, 3])
        >>> words.split([2, 1, 3]).to_sequences()
        [tensor([0, 1]), tensor([2]), tensor([3, 4, 5])]
        """
        parts = _structure_of("lengths", lengths)
        return self._of(self.values, _ops.split_lengths(self.structure, parts, self.total_steps))

    # ----------------------------------------------------------------------------------------------- functions of steps

    def map(self, function: Callable[..., Tensor], *others: "SequenceBatch") -> Self:
        """Apply a function that treats every step by itself.

        The function sees the steps of all sequences, one after another. If it captures a Tensor of one row for each
        sequence, that is paired with steps, not with sequences. Where the numbers agree, the result is wrong without
        an error. Pass such a Tensor as a batch: `batch.map(function, batch.expand(tensor))`.

        Args:
            function: from flat values `(total_steps, *features)`, one Tensor for this batch and each other, to flat
                values of the same number of steps. It must not mix steps, because sequences are adjacent.
            others: batches of the same lengths.

        Returns:
            a batch of the same structure, of the very Tensor that the function returns. A batch made of an empty list
            has no features that a function could use. If the function raises an IndexError or a RuntimeError because
            of that, the result is such a batch again.

        Raises:
            SeqbatchTypeError: another is not a SequenceBatch, or the function does not return a Tensor.
            UnsupportedLayerError: the function is or holds a recurrent layer or attention, and steps have one axis of
                features, so that it would take all sequences for one; or it is or calls a layer for which gradients per
                sample are computed, as by opacus, which would take each step for a sample.
            SeqbatchValueError: another has other lengths or is on another device, or the function changes the number
                of steps or drops their dimension.

        >>> SequenceBatch(torch.tensor([1.0, -2.0]), [1, 1]).map(torch.relu).values
        tensor([1., 0.])
        """
        require_no_samples("function", function)
        require_steps_apart(function, self.values)
        for i, other in enumerate(others):
            if not isinstance(other, SequenceBatch):
                remedy = ""
                if isinstance(other, Tensor):
                    remedy = "For a row for each step pass batch.with_values(tensor), "
                    remedy += "for each sequence batch.expand(tensor)."
                found = type_name(other)
                raise complaint(SeqbatchTypeError, f"others[{i}]", "be a SequenceBatch", found, remedy)
            _ops.require_same_lengths(f"others[{i}]", other.structure, self.structure)
            if other.device != self.device:
                raise complaint(SeqbatchValueError, f"others[{i}]", f"be on {self.device}, as this batch", other.device)
        flat = [self.values, *(other.values for other in others)]
        if in_a_graph():  # which cannot hold what an error does below
            for i, other in enumerate(others):  # because it does not know that equal lengths have equal sums
                _ops.require_steps_of_batch(f"others[{i}]", other.total_steps, self.total_steps)
            return self._same_steps("function(values)", function(*flat))
        batches: list[SequenceBatch] = [self, *others]
        nothing = next((batch.values for batch in batches if is_nothing(batch)), None)
        try:
            with samples_refused("function"):
                result = function(*flat)
        except (IndexError, RuntimeError) as error:
            # Exactly these two, because PyTorch raises them, and not a subclass, for a missing dimension.
            if nothing is not None and type(error) in (IndexError, RuntimeError):
                return self.with_values(nothing)
            mismatch = _MISMATCH.match(str(error))
            if mismatch and {int(size) for size in mismatch.groups() if size} == {self.total_steps, len(self)}:
                error.add_note(
                    "A Tensor of one row for each sequence must be passed as a batch: "
                    "batch.map(function, batch.expand(tensor))."
                )
            raise
        if nothing is not None and isinstance(result, Tensor) and result.shape[:1] != nothing.shape:
            return self.with_values(nothing)  # because the function took the steps for the last feature
        return self._same_steps("function(values)", result)

    def with_values(self, values: Tensor) -> Self:
        """Build a batch of the same structure and other values.

        Args:
            values: `(total_steps, *features)`, any features, dtype and device.

        Returns:
            a batch of these very values.

        Raises:
            SeqbatchTypeError: the values are not a Tensor.
            SeqbatchValueError: they have another number of steps, or no dimension of steps.

        >>> SequenceBatch(torch.zeros(3), [2, 1]).with_values(torch.zeros(3, 8)).feature_shape
        torch.Size([8])
        """
        return self._same_steps("values", values)

    def expand(self, tensor: Tensor) -> Self:
        """Build a batch of the same structure, whose every step holds the row of its sequence.

        So what there is once for each sequence (a speaker, a context, a state) meets what there is for each step:
        `batch.map(torch.mul, batch.expand(weights))`.

        Args:
            tensor: `(batch, *features)`, a row for each sequence; any features and dtype, on the device of the values.

        Returns:
            a batch of copies `(total_steps, *features)`. Gradients flow: those of the steps of a sequence are summed
            to that of its row, which is 0 for an empty sequence.

        Raises:
            SeqbatchTypeError: this is not a Tensor.
            SeqbatchValueError: it does not have a row for each sequence, has no dimension of rows, or is on another
                device.

        Source: `torch.repeat_interleave`.

        >>> batch = SequenceBatch(torch.zeros(3, 2), [2, 1])
        >>> batch.expand(torch.tensor([7, 8])).to_sequences()
        [tensor([7, 7]), tensor([8])]
        """
        if require_tensor("tensor", tensor).dim() == 0:
            raise complaint(SeqbatchValueError, "tensor", "have shape (batch, *features)", "a Tensor of no dimension")
        if tensor.device != self.device:
            raise complaint(SeqbatchValueError, "tensor", f"be on {self.device}, as this batch", tensor.device)
        return self._of(_ops.expand(tensor, self.structure, self.total_steps), self.structure)

    def _same_steps(self, subject: str, values: Tensor) -> Self:
        flat = require_steps(subject, values, remedy_for_tensors="To run a layer call encode(layer, batch).")
        _ops.require_steps_of_batch(subject, flat.shape[0], self.total_steps)
        return self._of(values, self.structure)

    def reverse(self) -> Self:
        """Reverse every sequence.

        Returns:
            a batch of copies, through which gradients flow.

        >>> SequenceBatch(torch.tensor([1, 2, 3]), [2, 1]).reverse().values
        tensor([2, 1, 3])
        """
        return self.with_values(_ops.reduce(self.values, self.structure, "reverse"))

    def take(self, indices: "SequenceBatch") -> Self:
        """Gather steps of each sequence by their positions in it.

        On a GPU the positions are checked without synchronizing: a wrong one stops the program later, as a wrong index
        of `torch.index_select` does.

        Args:
            indices: a batch of as many sequences, on the same device: integers without features, from 0 to before the
                length of the sequence. A position may occur any number of times. Negative ones are refused, because
                -1 and -100 are marks of padding. For a batch of none it may be made of an empty list.

        Returns:
            a batch of the structure of `indices`: copies, through which gradients flow.

        Raises:
            SeqbatchTypeError: `indices` is not a SequenceBatch, or its dtype is not an integer one, or is uint8, which
                may be a mask.
            SeqbatchValueError: it has another number of sequences, features, or another device, or `torch.func.vmap`
                maps over it.
            SeqbatchIndexError: a position is not that of a step of its sequence.

        Source: `torch.take_along_dim`, for each sequence.

        >>> batch = SequenceBatch(torch.tensor([5, 6, 7]), [2, 1])
        >>> batch.take(SequenceBatch(torch.tensor([1, 1, 0, 0]), [3, 1])).to_sequences()
        [tensor([6, 6, 5]), tensor([7])]
        """
        if not isinstance(indices, SequenceBatch):
            remedy = "For a position of each sequence, pass SequenceBatch(positions, [1] * len(positions))."
            remedy = remedy if isinstance(indices, Tensor) else ""
            raise complaint(SeqbatchTypeError, "indices", "be a SequenceBatch", type_name(indices), remedy)
        _ops.require_batch_size("indices", indices.structure, self.structure, "this batch")
        if is_nothing(indices):  # so their dtype and device are unknown
            indices = indices.to(self.device, torch.int64)
        positions = positions_in("indices", indices.values)
        if indices.device != self.device:
            raise complaint(SeqbatchValueError, "indices", f"be on {self.device}, as this batch", indices.device)
        return self._of(_ops.take_steps(self.values, self.structure, positions, indices.structure), indices.structure)

    def map_sequences(self, function: SequenceFunction) -> Self:
        """Apply a function to one sequence after another, which may change the number of steps.

        This is for what must see one sequence at a time. `map`, reductions and layers run all sequences at once, and
        are faster.

        Args:
            function: from a sequence `(steps, *features)`, a view, empty ones too, to a Tensor
                `(new steps, *new features)`, of equal features, dtype and device for all sequences. For a batch of none
                it is called once, with an empty sequence, to learn the features and dtype of the results. If it raises
                a ValueError, IndexError or RuntimeError there, those of this batch are kept.

        Returns:
            a batch of copies of the results, through which gradients flow.

        Raises:
            SeqbatchTypeError: the function does not return a Tensor.
            UnsupportedLayerError: the function is or calls a layer for which gradients per sample are computed, as by
                opacus, which would take each step for a sample.
            SeqbatchValueError: a result has no dimension of steps, or differs from the first in features, dtype or
                device.

        >>> batch = SequenceBatch(torch.tensor([3, 3, 5, 4]), [3, 1])
        >>> batch.map_sequences(torch.unique).to_sequences()
        [tensor([3, 5]), tensor([4])]
        """
        refuse_in_a_graph("one sequence at a time")
        require_no_samples("function", function)
        sequences = self.to_sequences()
        with samples_refused("function"):
            if not sequences:
                return self._of(_call_on_nothing(function, self.values), self.structure)
            results = [_call_on_sequence(function, i, sequence) for i, sequence in enumerate(sequences)]
        for i, result in enumerate(results):
            require_alike(f"function(batch[{i}])", result, "function(batch[0])", results[0])
        return self.from_sequences(results)

    # ------------------------------------------------------------------------------------------- functions of sequences
    # An empty sequence yields 0 (`all` yields True) and gets no gradient, because a NaN would reach every other one
    # through the loss.

    def sum(self) -> Tensor:
        """Sum the steps of each sequence.

        Returns:
            `(batch, *features)`; int64 for integers and bools, as `torch.sum`; zeros for an empty sequence. Gradients
            flow.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).sum()
        tensor([3, 3])
        """
        return _ops.reduce(self.values, self.structure, "sum")

    def mean(self) -> Tensor:
        """Average the steps of each sequence, over its own length.

        Returns:
            `(batch, *features)`, the dtype of the values; zeros for an empty sequence. Gradients flow.

        Raises:
            SeqbatchTypeError: the dtype is neither floating nor complex.

        >>> SequenceBatch.from_sequences([torch.tensor([1.0, 2.0]), torch.tensor([3.0])]).mean()
        tensor([1.5000, 3.0000])
        """
        _require_inexact(self.values)
        return _ops.reduce(self.values, self.structure, "mean")

    def var(self, *, correction: int = 1) -> Tensor:
        """Compute the variance of the steps of each sequence, feature by feature, as `torch.var`.

        Args:
            correction: what is subtracted from the number of steps: 1 for the estimate from a sample, and 0 for the
                mean of the squared distances from the mean.

        Returns:
            `(batch, *features)`, the dtype of the values, or of their real part; zeros for an empty sequence. It is NaN
            for a sequence of `correction` steps, as in PyTorch, but without its warning. Gradients flow.

        Raises:
            SeqbatchTypeError: the dtype is neither floating nor complex, or the correction is not an integer.

        >>> SequenceBatch.from_sequences([torch.tensor([1.0, 3.0]), torch.tensor([3.0])]).var(correction=0)
        tensor([1., 0.])
        """
        return self._narrowed(self._variance(correction))

    def std(self, *, correction: int = 1) -> Tensor:
        """Compute the standard deviation of the steps of each sequence, feature by feature, as `torch.std`.

        Args:
            correction: what is subtracted from the number of steps, as in `var`.

        Returns:
            `(batch, *features)`, the dtype of the values, or of their real part; zeros for an empty sequence, and NaN
            for one of `correction` steps, as in `var`. Gradients flow; that of a deviation of 0 is 0.

        Raises:
            SeqbatchTypeError: the dtype is neither floating nor complex, or the correction is not an integer.

        >>> SequenceBatch.from_sequences([torch.tensor([1.0, 5.0]), torch.tensor([3.0])]).std(correction=0)
        tensor([2., 0.])
        """
        variance = self._variance(correction)
        is_zero = variance == 0  # where the slope of the root is infinite
        return self._narrowed(variance.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0))

    def _variance(self, correction: int) -> Tensor:
        """Compute the variance of each sequence in single precision at least."""
        _require_inexact(self.values)
        lost = integer("correction", correction)
        squares = _ops.reduce(self.values, self.structure, "squared_deviations")
        counts = self.offsets.diff().view(-1, *(1 for _ in self.feature_shape)).to(squares.dtype)
        return squares / (counts - lost).clamp(min=0).masked_fill(counts == 0, 1)

    def _narrowed(self, spread: Tensor) -> Tensor:
        """Convert a variance or standard deviation to the dtype of the values, or of their real part."""
        if self.dtype is torch.complex32:  # not by `dtype.to_real`, because `torch.compile` cannot trace that
            return spread.half()
        return spread.to(self.dtype) if self.values.is_floating_point() else spread

    def max(self) -> Tensor:
        """Return the largest step of each sequence, feature by feature, as `torch.amax`.

        Returns:
            `(batch, *features)`, the dtype of the values; zeros for an empty sequence. Gradients flow;
            steps that are equally large share theirs.

        Raises:
            SeqbatchTypeError: the dtype is complex or uint64, whose values PyTorch does not compare.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).max()
        tensor([2, 3])
        """
        _require_order(self.values)
        return _ops.reduce(self.values, self.structure, "max")

    def min(self) -> Tensor:
        """Return the smallest step of each sequence, feature by feature, as `torch.amin`.

        Returns:
            `(batch, *features)`, the dtype of the values; zeros for an empty sequence. Gradients flow;
            steps that are equally small share theirs.

        Raises:
            SeqbatchTypeError: the dtype is complex or uint64, whose values PyTorch does not compare.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).min()
        tensor([1, 3])
        """
        _require_order(self.values)
        return _ops.reduce(self.values, self.structure, "min")

    def argmax(self) -> Tensor:
        """Return the index of the largest step of each sequence in it, feature by feature, as `torch.argmax`.

        Returns:
            `(batch, *features)`, int64; the first of equally large steps, and of NaNs if there are any; 0 for an empty
            sequence, which has no step of this index. No gradients flow.

        Raises:
            SeqbatchTypeError: the dtype is complex or uint64, whose values PyTorch does not compare.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).argmax()
        tensor([1, 0])
        """
        _require_order(self.values)
        return _ops.reduce(self.values, self.structure, "argmax")

    def argmin(self) -> Tensor:
        """Return the index of the smallest step of each sequence in it, feature by feature, as `torch.argmin`.

        Returns:
            `(batch, *features)`, int64; the first of equally small steps, and of NaNs if there are any; 0 for an empty
            sequence, which has no step of this index. No gradients flow.

        Raises:
            SeqbatchTypeError: the dtype is complex or uint64, whose values PyTorch does not compare.

        >>> SequenceBatch.from_sequences([torch.tensor([2, 1]), torch.tensor([3])]).argmin()
        tensor([1, 0])
        """
        _require_order(self.values)
        return _ops.reduce(self.values, self.structure, "argmin")

    def all(self) -> Tensor:
        """Return True where all steps of a sequence are True or not 0, feature by feature, as `torch.all`.

        Returns:
            `(batch, *features)`, bool, also for uint8; True for an empty sequence. No gradients flow.

        >>> SequenceBatch.from_sequences([torch.tensor([True, False]), torch.tensor([True])]).all()
        tensor([False,  True])
        """
        return _ops.reduce(self.values, self.structure, "all")

    def any(self) -> Tensor:
        """Return True where any step of a sequence is True or not 0, feature by feature, as `torch.any`.

        Returns:
            `(batch, *features)`, bool, also for uint8; False for an empty sequence. No gradients flow.

        >>> SequenceBatch.from_sequences([torch.tensor([True, False]), torch.tensor([False])]).any()
        tensor([ True, False])
        """
        return _ops.reduce(self.values, self.structure, "any")

    def logsumexp(self) -> Tensor:
        """Compute the logarithm of the summed exponentials of the steps of each sequence, as `torch.logsumexp`.

        Returns:
            `(batch, *features)`, the dtype of the values; zeros for an empty sequence, where PyTorch has -inf.
            Gradients flow.

        Raises:
            SeqbatchTypeError: the dtype is not floating.

        >>> SequenceBatch.from_sequences([torch.zeros(2), torch.zeros(1)]).logsumexp()
        tensor([0.6931, 0.0000])
        """
        _require_floating(self.values, "for a logsumexp")
        return _ops.reduce(self.values, self.structure, "logsumexp")

    def first(self) -> Tensor:
        """Return the first step of each sequence.

        Returns:
            `(batch, *features)`, any dtype; zeros for an empty sequence. Gradients flow.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).first()
        tensor([1, 3])
        """
        return _ops.reduce(self.values, self.structure, "first")

    def last(self) -> Tensor:
        """Return the last real step of each sequence, which is not the last of a padded tensor.

        In the outputs of a bidirectional layer, the backward half has seen only one step there. The summary of the
        whole sequence is `state.last()`.

        Returns:
            `(batch, *features)`, any dtype; zeros for an empty sequence. Gradients flow.

        >>> SequenceBatch.from_sequences([torch.tensor([1, 2]), torch.tensor([3])]).last()
        tensor([2, 3])
        """
        return _ops.reduce(self.values, self.structure, "last")

    def softmax(self) -> Self:
        """Normalize each sequence over its steps, feature by feature, as `torch.softmax` along the steps.

        Returns:
            a batch of the same structure and dtype; each sequence of one step or more adds up to 1.

        Raises:
            SeqbatchTypeError: the dtype is not floating.

        >>> SequenceBatch.from_sequences([torch.zeros(2), torch.zeros(1)]).softmax().values
        tensor([0.5000, 0.5000, 1.0000])
        """
        _require_floating(self.values, "for a softmax")
        return self.with_values(_ops.reduce(self.values, self.structure, "softmax"))

    def log_softmax(self) -> Self:
        """Compute the logarithm of `softmax`, feature by feature, as `torch.log_softmax` along the steps.

        It is exact where the logarithm of `softmax` would be that of a number rounded to 0.

        Returns:
            a batch of the same structure and dtype, through which gradients flow.

        Raises:
            SeqbatchTypeError: the dtype is not floating.

        >>> SequenceBatch.from_sequences([torch.zeros(2), torch.zeros(1)]).log_softmax().values
        tensor([-0.6931, -0.6931,  0.0000])
        """
        _require_floating(self.values, "for a softmax")
        return self.with_values(_ops.reduce(self.values, self.structure, "log_softmax"))

    def cumsum(self, *, reverse: bool = False) -> Self:
        """Add up the steps of each sequence from its start to each step, as `torch.cumsum` along the steps.

        Args:
            reverse: whether to add up from each step to the end of its sequence, as returns of rewards are.

        Returns:
            a batch of the same structure; int64 for integers and bools, as `torch.cumsum`. Gradients flow.

        Raises:
            SeqbatchTypeError: `reverse` is not a bool.

        >>> batch = SequenceBatch.from_sequences([torch.tensor([1, 2, 4]), torch.tensor([3])])
        >>> batch.cumsum().values, batch.cumsum(reverse=True).values
        (tensor([1, 3, 7, 3]), tensor([7, 6, 4, 3]))
        """
        if require_bool("reverse", reverse):
            return self.reverse().cumsum().reverse()
        return self.with_values(_ops.reduce(self.values, self.structure, "cumsum"))

    # --------------------------------------------------------------------------------------------------- as on a Tensor

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Convert dtype or device, with the arguments of `torch.Tensor.to`; the lengths stay on the host.

        Returns:
            a batch of a copy, or of these very values where they are as asked; gradients flow.

        >>> SequenceBatch(torch.zeros(3), [2, 1]).to(torch.float64).dtype
        torch.float64
        """
        return self.with_values(self.values.to(*args, **kwargs))

    def float(self) -> Self:
        """Convert to float32, as `torch.Tensor.float`; integers too.

        Returns:
            a batch of a copy, or of these very values where they are float32; gradients flow.

        >>> SequenceBatch(torch.zeros(3).double(), [2, 1]).float().dtype
        torch.float32
        """
        return self.with_values(self.values.float())

    def double(self) -> Self:
        """Convert to float64, as `torch.Tensor.double`; integers too.

        Returns:
            a batch of a copy, or of these very values where they are float64; gradients flow.

        >>> SequenceBatch(torch.zeros(3), [2, 1]).double().dtype
        torch.float64
        """
        return self.with_values(self.values.double())

    def half(self) -> Self:
        """Convert to float16, as `torch.Tensor.half`; integers too.

        Returns:
            a batch of a copy, or of these very values where they are float16; gradients flow.

        >>> SequenceBatch(torch.zeros(3), [2, 1]).half().dtype
        torch.float16
        """
        return self.with_values(self.values.half())

    def bfloat16(self) -> Self:
        """Convert to bfloat16, as `torch.Tensor.bfloat16`; integers too.

        Returns:
            a batch of a copy, or of these very values where they are bfloat16; gradients flow.

        >>> SequenceBatch(torch.zeros(3), [2, 1]).bfloat16().dtype
        torch.bfloat16
        """
        return self.with_values(self.values.bfloat16())

    def cpu(self) -> Self:
        """Copy to the host, as `torch.Tensor.cpu`.

        Returns:
            a batch of a copy, or of these very values where they are there; gradients flow.

        >>> SequenceBatch(torch.zeros(3), [2, 1]).cpu().device
        device(type='cpu')
        """
        return self.with_values(self.values.cpu())

    def cuda(self, device: int | str | torch.device | None = None, *, non_blocking: bool = False) -> Self:
        """Copy to a CUDA device, as `torch.Tensor.cuda`.

        Args:
            device: the device; None for the current one.
            non_blocking: whether to copy asynchronously, which needs values in pinned memory.

        Returns:
            a batch of a copy, or of these very values where they are there; gradients flow.
        """
        return self.with_values(self.values.cuda(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copy into page-locked memory, as `torch.Tensor.pin_memory`; `torch.utils.data.DataLoader` calls this.

        Returns:
            a batch of a copy, or of these very values where they are pinned.

        >>> batch = SequenceBatch(torch.zeros(3), [2, 1])
        >>> pinned = batch.pin_memory() if torch.cuda.is_available() else batch
        >>> pinned.lengths
        (2, 1)
        """
        refuse_in_a_graph("page-locked memory")
        return self.with_values(self.values.pin_memory())

    def detach(self) -> Self:
        """Share the values without their gradient graph, as `torch.Tensor.detach`.

        Returns:
            a batch that is a view of this one, through which no gradients flow.

        >>> SequenceBatch(torch.zeros(3, requires_grad=True), [2, 1]).detach().values.requires_grad
        False
        """
        return self.with_values(self.values.detach())

    def clone(self) -> Self:
        """Copy the values, as `torch.Tensor.clone`.

        Returns:
            a batch of a copy, through which gradients flow.

        >>> batch = SequenceBatch(torch.zeros(3), [2, 1])
        >>> batch.clone().values.add_(1), batch.values
        (tensor([1., 1., 1.]), tensor([0., 0., 0.]))
        """
        return self.with_values(self.values.clone())


def joined(subject: str, sequences: object) -> SequenceBatch:
    """Join sequences into a batch; `subject` names them in errors."""
    return SequenceBatch._joined(subject, sequences)


def is_nothing(batch: SequenceBatch) -> bool:
    """Return True if a batch may come from an empty list, which has no features that a layer could take."""
    # The batch size last, because it may be unknown while tracing.
    return batch.values.dim() == 1 and batch.dtype.is_floating_point and known_or_false(batch.batch_size == 0)


def _structure_of(subject: str, value: Sequence[int] | Tensor | Lengths) -> Lengths:
    return value if isinstance(value, Lengths) else _ops.lengths_from(subject, value)


def _alike_batches(batches: object) -> tuple[list[SequenceBatch], Tensor]:
    """Return batches of equal features, dtype and device as a list, and their values one after another, else raise."""
    if not isinstance(batches, Iterable):
        raise complaint(SeqbatchTypeError, "batches", "be an iterable of batches", type_name(batches))
    parts = list(batches)
    for i, part in enumerate(parts):
        if not isinstance(part, SequenceBatch):
            raise complaint(SeqbatchTypeError, f"batches[{i}]", "be a SequenceBatch", type_name(part))
    known = [(i, part) for i, part in enumerate(parts) if not is_nothing(part)]
    for i, part in known:
        require_alike(f"batches[{i}]", part.values, f"batches[{known[0][0]}]", known[0][1].values)
    values = [part.values for _, part in known or enumerate(parts)]
    return parts, torch.cat(values) if values else torch.empty(0)


def _call_on_sequence(function: SequenceFunction, i: int, sequence: Tensor) -> Tensor:
    try:
        result = function(sequence)
    except Exception as error:
        error.add_note(f"The function was called with sequence {i}, of shape {tuple(sequence.shape)}.")
        raise
    return require_steps(f"function(batch[{i}])", result)


def _call_on_nothing(function: SequenceFunction, values: Tensor) -> Tensor:
    """Return no steps with the features and dtype of what a function returns for an empty sequence, if it takes one."""
    try:
        result = function(values)
    except (IndexError, RuntimeError, ValueError):
        return values
    return require_steps("function(empty)", result)[:0]


def _equal(one: Tensor, other: object) -> bool:
    """Return True if an object is a Tensor with the same shape, dtype, device and values as another."""
    if not isinstance(other, Tensor) or other.is_nested or other.layout is not torch.strided:
        return False
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device) and torch.equal(one, other)


def _require_inexact(values: Tensor) -> None:
    if not (values.is_floating_point() or values.is_complex()):
        raise _wrong_dtype("floating or complex to be averaged", values)


def _require_floating(values: Tensor, what_for: str) -> None:
    if not values.is_floating_point():
        raise _wrong_dtype(f"floating {what_for}", values)


def _require_order(values: Tensor) -> None:
    if values.is_complex() or values.dtype is torch.uint64:
        raise _wrong_dtype("of an order that PyTorch knows", values)


def _wrong_dtype(must: str, values: Tensor) -> SeqbatchTypeError:
    return complaint(SeqbatchTypeError, "values", f"have a dtype {must}", values.dtype)


def _unflatten(values: Any, lengths: Any) -> SequenceBatch:
    # Only plain Tensors have values to check: while PyTorch traces or transforms, other objects stand for them.
    if type(values) in (Tensor, torch.nn.Parameter) and type(lengths) is Tensor:
        return SequenceBatch(values, lengths)
    return SequenceBatch._of(values, Lengths(lengths))


register_pytree(SequenceBatch, ["values", "lengths"], lambda batch: [batch.values, batch.structure.tensor], _unflatten)
