"""SequenceBatch: several sequences of unequal length as one tensor of flat values and their lengths."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self, overload

import attrs
import torch
from torch import Tensor

from seqbatch import _checks, _indices, graphs
from seqbatch._checks import complaint
from seqbatch._exporters import refuse_exporters
from seqbatch._gathering import require_gatherable
from seqbatch._hooks import require_no_samples, samples_refused
from seqbatch._indices import AnyScalar, Array, Index, Scalar, as_index
from seqbatch._lengths import Lengths
from seqbatch._modes import refuse_in_a_graph
from seqbatch._not_a_tensor import NotAnArray
from seqbatch._plans import select_plan
from seqbatch._reduce import reduce
from seqbatch._stacked import remember_iterated, require_not_stacked
from seqbatch._structures import require_same, require_total, structure_of
from seqbatch._tensor_like import TensorLike
from seqbatch._tensor_sequence import TensorSequence
from seqbatch._tracing import in_a_graph
from seqbatch.conversions import FromLayouts, ToLayouts
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError
from seqbatch.layouts import rearrange
from seqbatch.reduce import Reductions

# How a Tensor of one row for each sequence becomes a batch.
_SPREAD = "batch.with_values(tensor.repeat_interleave(batch.offsets.diff(), 0))"

# PyTorch's error for Tensors of different numbers of rows.
_MISMATCH = re.compile(
    r"The size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\) at non-singleton dimension 0"
)


@attrs.frozen(eq=False, repr=False, init=False)
class SequenceBatch(FromLayouts, ToLayouts, Reductions, TensorLike, NotAnArray, TensorSequence):
    """Several sequences of unequal length, of equal feature shape, dtype and device.

    It is a `collections.abc.Sequence[Tensor]`, is immutable, and is compared by identity. Arithmetic goes through
    `map`: `batch.map(torch.add, other)`. A `DataLoader` builds batches with
    `collate_fn=SequenceBatch.from_sequences`. For a data set of batches pass `batch_size=None` and
    `collate_fn=lambda batch: batch`, which copies nothing. Lightning takes the steps of the first sequence for the
    batch size, which makes means of an epoch wrong: log with `self.log(name, value, batch_size=len(batch))`.

    Layers of PyTorch and functions of torch or NumPy raise if they are called with it, because they do not know the
    lengths. The error says to call `encode(layer, batch)` or `batch.map(function)`. Two calls do not raise, because
    PyTorch reads any Sequence of Tensors there: `tensor[batch]` and `torch.tensor([batch])`.

    Args:
        values: `(total_steps, *features)`: all steps of the first sequence, then all of the second, and so on. Without
            lengths: several Tensors `(steps, *features)`, as for `from_sequences`. Libraries that rebuild a Sequence
            from its elements, as Lightning does to convert dtypes, call it so. Where opacus computes gradients per
            sample, do not call a layer on `batch.values`: each step would count as a sample, without an error.
        lengths: `(batch,)`, integers, in steps; 0 is allowed. A Tensor on a device is copied to the host, which
            synchronizes; later calls do not.

    Raises:
        SeqbatchTypeError: the values are not a Tensor, or the lengths not integers. Without lengths: the values are a
            Tensor, or not several Tensors.
        SeqbatchValueError: the values have no dimension of steps, or the lengths are negative or do not add up to them.
            Without lengths: a sequence has no dimension of steps or differs from the first, or the values are the
            sequences of several batches stacked, as by `torch.utils.data.default_collate`.
        SeqbatchError: `torch.jit.trace` or `torch.onnx.export` runs the call.

    >>> SequenceBatch(torch.zeros(17, 5), [10, 7])
    SequenceBatch(2 sequences of 7 to 10 steps, features (5,), torch.float32, cpu)
    """

    _instead = (
        "Call encode(layer, batch) for a layer, batch.map(function) for a function that treats every step by itself."
    )
    _contents = "Its steps are batch.values, and padded batch.to_padded(batch_first=True)."
    values: Tensor
    _lengths: Lengths

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
        flat = _checks.require_steps("values", values)
        # A `Lengths` comes from pickled batches, and from encoders that change the lengths.
        structure = lengths if isinstance(lengths, Lengths) else structure_of("lengths", lengths)
        require_total(structure, flat.shape[0])
        self._set(flat, structure)

    def _rebuild(self, sequences: Tensor | Sequence[Tensor] | Iterator[Tensor]) -> None:
        """Set the values and lengths as `from_sequences` does, but refuse stacked sequences."""
        if isinstance(sequences, Tensor):
            remedy = "For one sequence call SequenceBatch.from_sequences([values])."
            raise complaint(SeqbatchTypeError, "lengths", "be given with a Tensor of flat values", None, remedy)
        if isinstance(sequences, list) and not in_a_graph():  # because the libraries that stack pass a list
            require_not_stacked(sequences)
        made = self.from_sequences(_checks.sequences_of("values", sequences))
        self._set(made.values, made._lengths)

    @classmethod
    def _of(cls, values: Tensor, lengths: Lengths) -> Self:
        batch = cls.__new__(cls)
        batch._set(values, lengths)
        return batch

    def _set(self, values: Tensor, lengths: Lengths) -> None:
        refuse_exporters()
        # As attrs does it, but in a form that `torch.compile` can trace.
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "_lengths", lengths)

    @property
    def lengths(self) -> tuple[int, ...]:
        """`(batch,)`: the steps of each sequence, on the host."""
        return self._lengths.counts

    @property
    def offsets(self) -> Tensor:
        """`(batch + 1,)`, int64, on the device of the values: where each sequence starts in them; a copy."""
        if in_a_graph():
            return graphs.offsets(self._lengths.tensor).to(self.values.device)
        return self._lengths.on("offsets", self.values.device).clone()

    @property
    def batch_size(self) -> int:
        """The number of sequences."""
        return self._lengths.tensor.shape[0]

    @property
    def total_steps(self) -> int:
        """The steps of all sequences together."""
        return self.values.shape[0]

    @property
    def max_length(self) -> int:
        """The steps of the longest sequence; 0 if there is none."""
        return self._lengths.longest

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

    def _rows(self) -> Tensor:
        """Return the index of the sequence that each step belongs to, on the device of the values."""
        if in_a_graph():
            return graphs.rows(self._lengths.tensor, self.total_steps).to(self.device)
        return self._lengths.on("rows", self.device)

    def __repr__(self) -> str:
        number, steps = _checks.counted(self.batch_size, "sequence"), _checks.counted(self.max_length, "step")
        shortest = min(self.lengths, default=0)
        span = "" if shortest == self.max_length else f"{shortest} to "
        features = f"features {tuple(self.feature_shape)}"
        return f"{type(self).__name__}({number} of {span}{steps}, {features}, {self.dtype}, {self.device})"

    def __reduce__(self) -> tuple[type[Self], tuple[Tensor, Lengths]]:
        require_gatherable(self)
        return type(self), (self.values, self._lengths)

    def __len__(self) -> int:
        return self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        if not in_a_graph():
            remember_iterated(self)
        return iter(self.to_sequences())

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice | list[int] | list[bool] | list[AnyScalar] | Tensor | Array) -> Self: ...
    @overload
    def __getitem__(self, index: Scalar) -> Tensor: ...
    def __getitem__(self, index: Index[Any]) -> Tensor | Self:
        """Return one sequence for an integer (a view), or several for any other index (a batch of copies).

        Gradients flow through both.

        Args:
            index: an integer, also as a Tensor or NumPy array of no dimension; or a slice, a list of integers or
                bools, or an integer or bool Tensor or NumPy array `(number,)`. Negative integers count from the end.

        Raises:
            SeqbatchIndexError: an index is out of range, or a mask has another length.
            SeqbatchTypeError: this is not an index.

        >>> batch = SequenceBatch(torch.tensor([1, 2, 3]), [2, 1])
        >>> batch[0], batch[[1, 0]].values
        (tensor([1, 2]), tensor([3, 1, 2]))
        """
        refuse_in_a_graph("lengths")
        index = as_index("index", index)
        if _indices.is_one_index(index):
            i = _indices.position("index", index, len(self))
            start = int(self._lengths.offsets[i])
            return self.values[start : start + self.lengths[i]]
        chosen = _indices.positions("index", index, len(self))
        lengths = Lengths(tuple(self.lengths[i] for i in chosen))
        return self._of(rearrange(self.values, select_plan(self._lengths, chosen).to(self.device)), lengths)

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
        if not isinstance(batches, Iterable):
            raise complaint(SeqbatchTypeError, "batches", "be an iterable of batches", _checks.type_name(batches))
        parts = list(batches)
        for i, part in enumerate(parts):
            if not isinstance(part, SequenceBatch):
                raise complaint(SeqbatchTypeError, f"batches[{i}]", "be a SequenceBatch", _checks.type_name(part))
        known = [(i, part) for i, part in enumerate(parts) if in_a_graph() or not is_nothing(part)]
        for i, part in known:
            _checks.same_kind(f"batches[{i}]", part.values, f"batches[{known[0][0]}]", known[0][1].values)
        if not parts:
            return cls.from_sequences([])
        values = torch.cat([part.values for _, part in known or enumerate(parts)])
        if in_a_graph():
            return cls._of(values, Lengths.from_tensor(torch.cat([part._lengths.tensor for part in parts])))
        return cls._of(values, Lengths(tuple(count for part in parts for count in part.lengths)))

    def map(self, function: Callable[..., Tensor], *others: "SequenceBatch") -> Self:
        """Apply a function that treats every step by itself.

        The function sees the steps of all sequences, one after another. If it captures a Tensor of one row for each
        sequence, that is paired with steps, not with sequences. Where the numbers agree, the result is wrong without
        an error. Spread such a Tensor over the steps, and pass the batch: `batch.map(function, spread)`, where `spread`
        is `batch.with_values(tensor.repeat_interleave(batch.offsets.diff(), 0))`.

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
            UnsupportedLayerError: the function is or calls a layer for which gradients per sample are computed, as by
                opacus, which would take each step for a sample.
            SeqbatchValueError: another has other lengths or is on another device, or the function changes the number
                of steps or drops their dimension.

        >>> SequenceBatch(torch.tensor([1.0, -2.0]), [1, 1]).map(torch.relu).values
        tensor([1., 0.])
        """
        require_no_samples("function", function)
        for i, other in enumerate(others):
            if not isinstance(other, SequenceBatch):
                remedy = ""
                if isinstance(other, Tensor):
                    remedy = f"For a row for each step pass batch.with_values(tensor), for each sequence {_SPREAD}."
                found = _checks.type_name(other)
                raise complaint(SeqbatchTypeError, f"others[{i}]", "be a SequenceBatch", found, remedy)
            require_same(f"others[{i}]", other._lengths, self._lengths)
            if other.device != self.device:
                raise complaint(SeqbatchValueError, f"others[{i}]", f"be on {self.device}, as this batch", other.device)
        flat = [self.values, *(other.values for other in others)]
        if in_a_graph():
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
            if mismatch and {*map(int, mismatch.groups())} == {self.total_steps, len(self)}:
                error.add_note(
                    "A Tensor of one row for each sequence must be spread over the steps, and passed as a batch: "
                    f"batch.map(function, {_SPREAD})."
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

    def _same_steps(self, subject: str, values: Tensor) -> Self:
        steps = _checks.require_steps(subject, values).shape[0]
        if steps != self.total_steps:
            raise complaint(SeqbatchValueError, subject, f"have the {self.total_steps} steps of this batch", steps)
        return self._of(values, self._lengths)

    def reverse(self) -> Self:
        """Reverse every sequence.

        Returns:
            a batch of copies, through which gradients flow.

        >>> SequenceBatch(torch.tensor([1, 2, 3]), [2, 1]).reverse().values
        tensor([2, 1, 3])
        """
        return self.with_values(reduce(self.values, self._lengths, "reverse"))


def is_nothing(batch: SequenceBatch) -> bool:
    """Return True if a batch may come from an empty list, which has no features that a layer could take."""
    # The batch size last, because it is not known while tracing.
    return batch.values.dim() == 1 and batch.dtype.is_floating_point and batch.batch_size == 0
