"""Indices of sequences, the same for batches and states: what they may be, and which sequences they mean."""

from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from seqbatch._checks.arguments import from_array, integer, integers, is_array, is_bool, require_numbers
from seqbatch._checks.grammar import complaint, counted
from seqbatch.errors import SeqbatchIndexError, SeqbatchTypeError


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
Index: TypeAlias = int | slice | list[int] | list[bool] | list[AnyScalar] | Tensor | Array | Scalar


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
