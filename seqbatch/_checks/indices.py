"""Indices of sequences, the same for batches and states, and of steps: what they may be, and which they mean."""

from collections.abc import Iterable, Sequence
from types import EllipsisType
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from seqbatch._checks.arguments import from_array, integer, integers, is_array, is_bool, require_numbers
from seqbatch._checks.grammar import complaint, counted, type_name
from seqbatch._checks.tracing import refuse_in_a_graph
from seqbatch._torch import STOCK_TENSORS, check_tensor
from seqbatch.errors import SeqbatchIndexError, SeqbatchTypeError, SeqbatchValueError


class Scalar(Protocol):
    """A number as those of NumPy: an integer or a bool."""

    def item(self) -> int: ...


class Array(Protocol):
    """An array as those of NumPy."""

    @property
    def dtype(self) -> Any: ...
    def __len__(self) -> int: ...
    def tolist(self) -> Any: ...


# Lists are invariant: a list of integers of NumPy is not a list of `Scalar`.
AnyScalar = TypeVar("AnyScalar", bound=Scalar)
Several: TypeAlias = slice | list[int] | list[bool] | list[AnyScalar] | Tensor | Array
Index: TypeAlias = int | Several[AnyScalar] | Scalar
# One step of each sequence.
Step: TypeAlias = int | Tensor | Scalar
# Larger numbers mean the same, and sums of these and of lengths are int64.
_MOST_STEPS = 2**60
# Types of integers that are taken as they are, because `operator.index` would specialize a SymInt.
_INTEGERS = (int, torch.SymInt)


class StepSlice(NamedTuple):  # because a slice has no hash before Python 3.12
    """A slice of the steps of each sequence; `start` and `stop` count from the end if they are negative."""

    start: int
    stop: int | None
    step: int


def as_index(subject: str, value: Any) -> Any:
    """Return a NumPy array with an axis as a Tensor; return any other index as it is."""
    return from_array(subject, value) if is_array(value) and value.ndim else value


def is_one_index(value: object) -> bool:
    """Return True if an index names one sequence (an integer) and not several."""
    if isinstance(value, Tensor):
        return value.dim() == 0
    return not isinstance(value, (slice, list))


def one_position(subject: str, value: object, size: int) -> int:
    """Return an index of one sequence counted from the front, else raise."""
    if isinstance(value, tuple):
        remedy = "The first axis of a batch or a state is its sequences; index the tensors inside for others."
        raise complaint(SeqbatchTypeError, subject, "be one index", f"a tuple of {len(value)}", remedy)
    index = integer(subject, value)
    if not -size <= index < size:
        must = (
            f"be from {-size} to {size - 1}, for {counted(size, 'sequence')}"
            if size
            else "name a sequence, of which there are none"
        )
        raise complaint(SeqbatchIndexError, subject, must, index)
    return index % size


def two_indices(subject: str, index: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return an index of sequences and one of steps, else raise."""
    # By type, because `part is Ellipsis` would specialize a SymInt in a slice.
    if len(index) != 2 or any(isinstance(part, EllipsisType) for part in index):
        must = "be one index, of sequences, or two, of sequences and of steps"
        found = f"a tuple of {len(index)}" if len(index) != 2 else "an Ellipsis in a tuple"
        remedy = "For features call batch.map(function)."
        raise complaint(SeqbatchTypeError, subject, must, found, remedy)
    return index[0], index[1]


def is_full_slice(index: object) -> bool:
    """Return True if an index is `:`, written without bounds."""
    return isinstance(index, slice) and index.start is None and index.stop is None and index.step is None


def step_index(subject: str, value: Any) -> int | StepSlice:
    """Return an index of steps as an int, which may be negative, or as a slice, else raise."""
    if isinstance(value, slice):
        return _step_slice(subject, value)
    # Not asked of an integer, because it may be a SymInt.
    axes = 0 if type(value) in _INTEGERS else getattr(value, "ndim", 0)
    if axes or value is None or (isinstance(value, Sequence) and not isinstance(value, str)):
        found = f"{type_name(value)} with {counted(axes, 'dimension')}" if axes else type_name(value)
        remedy = "For other steps of each sequence call batch.take(indices)."
        raise complaint(SeqbatchTypeError, subject, "be an integer or a slice, of steps", found, remedy)
    return _position(subject, value)


def _step_slice(subject: str, value: slice) -> StepSlice:
    must = "be a slice of integers, its step at least 1"
    try:
        parts = (value.start, value.stop, value.step)
        start, stop, step = [None if part is None else _position(subject, part) for part in parts]
    except TypeError:
        raise complaint(SeqbatchTypeError, subject, must, value) from None
    step = 1 if step is None else step
    if step < 1:
        raise complaint(SeqbatchTypeError, subject, must, value, "For steps back to front call reverse().")
    return StepSlice(0 if start is None else start, stop, step)


def _position(subject: str, value: Any) -> int:
    """Return an index of a step as an int, which may be negative, else raise; one beyond all steps is reduced."""
    if isinstance(value, Tensor):
        refuse_in_a_graph("the value of a Tensor as an index")
        require_numbers(subject, value)
    position: Any = value if type(value) in _INTEGERS else integer(subject, value)
    limited: int = max(min(position, _MOST_STEPS), -_MOST_STEPS)
    return limited


def require_step(subject: str, position: int, lengths: Iterable[tuple[int, int]]) -> None:
    """Raise unless every sequence has a step; `lengths` are pairs of a sequence and its number of steps."""
    for i, length in lengths:
        if not -length <= position < length:
            steps = f"be from {-length} to {length - 1}, for the {counted(length, 'step')} of sequence {i}"
            must = steps if length else f"name a step of sequence {i}, which is empty"
            raise complaint(SeqbatchIndexError, subject, must, position)


def positions_in(subject: str, values: Tensor) -> Tensor:
    """Return positions of steps as int64 if they are integers without features, else raise."""
    if values.dim() != 1:
        raise complaint(SeqbatchValueError, subject, "have no features", tuple(values.shape[1:]))
    if values.dtype in (torch.bool, torch.uint8) or values.is_floating_point() or values.is_complex():
        remedy = "For positions, and not a mask, call .to(torch.int64)." if values.dtype is torch.uint8 else ""
        raise complaint(SeqbatchTypeError, subject, "have an integer dtype other than uint8", values.dtype, remedy)
    require_numbers(subject, values)
    return values.long()


def require_positions(subject: str, positions: Tensor, limits: Tensor, segment_ids: Tensor) -> None:
    """Raise unless every position is that of a step of its sequence, counted from the front.

    On another device than the CPU the check is asynchronous, as that of `torch.index_select`.

    Args:
        subject: what errors are about.
        positions: `(number,)`, int64.
        limits: `(number,)`, int64: the steps of the sequence that each position is in.
        segment_ids: `(number,)`, int64: that sequence.
    """
    wrong = (positions < 0) | (positions >= limits)
    if not positions.is_cpu or type(positions) not in STOCK_TENSORS:  # a fake tensor has no values to read
        check_tensor(~wrong.any(), f"`{subject}` must be positions of steps of their sequences, counted from 0")
    elif wrong.any():
        first = int(wrong.nonzero()[0])
        i, found, steps = (int(one[first]) for one in (segment_ids, positions, limits))
        where = f"{subject}[{i}][{int((segment_ids[:first] == i).sum())}]"
        must = f"be from 0 to {steps - 1}, for the {counted(steps, 'step')} of sequence {i}"
        must = must if steps else f"be left out, because sequence {i} is empty"
        remedy = "Positions count from the front; leave out marks of padding." if found < 0 else ""
        raise complaint(SeqbatchIndexError, where, must, found, remedy)


def several_positions(subject: str, value: Any, size: int) -> list[int]:
    """Return an index of several sequences as a list of positions counted from the front, else raise."""
    if isinstance(value, slice):
        try:
            return list(range(size)[value])
        except (TypeError, ValueError):
            raise complaint(SeqbatchTypeError, subject, "be a slice of integers, its step not 0", value) from None
    refuse_bytes(subject, value)
    if isinstance(value, Tensor):
        require_numbers(subject, value)
    if _is_mask(value):
        mask = value.tolist() if isinstance(value, Tensor) else list(value)
        if len(mask) != size or (isinstance(value, Tensor) and value.dim() != 1):
            found = tuple(value.shape) if isinstance(value, Tensor) else (len(mask),)
            raise complaint(SeqbatchIndexError, subject, f"have shape ({size},), as it is a mask", found)
        return [i for i, wanted in enumerate(mask) if wanted]
    chosen = integers(subject, value)
    return [one_position(f"{subject}[{i}]", index, size) for i, index in enumerate(chosen)]


def refuse_bytes(subject: str, value: object) -> None:
    """Raise if an index is a Tensor of uint8, because torch takes it for a mask, and NumPy for indices."""
    if isinstance(value, Tensor) and value.dtype is torch.uint8:
        remedy = "Call .bool() for a mask, .long() for indices."
        raise complaint(SeqbatchTypeError, subject, "say whether it is a mask", "torch.uint8", remedy)


def _is_mask(value: object) -> bool:
    """Return True if an index is a mask: a bool Tensor, or a list of bools only."""
    if isinstance(value, Tensor):
        return value.dtype == torch.bool
    return isinstance(value, list) and bool(value) and all(map(is_bool, value))
