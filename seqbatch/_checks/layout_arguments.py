"""Checks of arguments that describe a layout: padded, masked, packed, nested, offsets."""

import math
import numbers
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from seqbatch._checks.arguments import integer, integers, require_numbers, require_steps, require_tensor
from seqbatch._checks.grammar import complaint, counted, shown, type_name
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

PaddingSide = Literal["right", "left"]


class PaddedForm(NamedTuple):  # not an attrs class, because torch.compile cannot trace the __init__ of one
    """The form of a padded tensor that is made of flat values.

    Args:
        batch_first: which of its first two axes is the batch.
        side: the side on which shorter sequences are padded.
        total_length: the size of the time axis; None for the steps of the longest sequence.
    """

    batch_first: bool
    side: PaddingSide
    total_length: int | None


def require_bool(subject: str, value: object) -> bool:
    """Return the value if it is a bool, else raise, because a truthy value must not choose an axis."""
    if not isinstance(value, bool):
        raise complaint(SeqbatchTypeError, subject, "be True or False", shown(value))
    return value


def require_side(value: object) -> PaddingSide:
    """Return the padding side if it is "right" or "left", else raise."""
    if isinstance(value, str):  # because arrays compare element by element
        if value == "right":
            return "right"
        if value == "left":
            return "left"
    raise complaint(SeqbatchValueError, "padding_side", "be 'right' or 'left'", shown(value))


def require_form(batch_first: object, padding_side: object, total_length: int | None) -> PaddedForm:
    """Return the form of a padded tensor, else raise; its length is checked by the lengths of a batch."""
    return PaddedForm(require_bool("batch_first", batch_first), require_side(padding_side), total_length)


def require_total_length(total_length: int | None, longest: int) -> int:
    """Return the number of steps to pad to: the longest sequence, or the given number if it is large enough."""
    if total_length is None:
        return longest
    total = integer("total_length", total_length)
    if total < longest:
        raise complaint(SeqbatchValueError, "total_length", f"be at least {longest}, the longest sequence", total)
    return total


def require_padding_value(padding_value: complex, dtype: torch.dtype) -> complex:
    """Return the padding value as a number of Python if the dtype can represent it, else raise."""
    if type(padding_value) in (int, float) and padding_value == 0:
        return padding_value  # because every dtype has zero
    if not isinstance(padding_value, numbers.Complex):
        raise complaint(SeqbatchTypeError, "padding_value", "be a number", type_name(padding_value))
    to_python = getattr(padding_value, "item", None)  # for scalars of NumPy
    number: complex = padding_value if to_python is None else to_python()
    try:
        written = torch.full((), number, dtype=dtype, device="cpu").item()
        kept = written == number
        if dtype.is_floating_point or dtype.is_complex:  # because rounding is fine, and overflow is not
            parts = ((written.real, number.real), (written.imag, number.imag))
            kept = all(_is_kept_up_to_rounding(found, wanted, torch.finfo(dtype).max) for found, wanted in parts)
    except (RuntimeError, TypeError, ValueError, OverflowError):  # which one torch raises depends on dtype and value
        kept = False
    if not kept:
        raise complaint(SeqbatchValueError, "padding_value", f"be a value of {dtype}", shown(padding_value))
    return number


def _is_kept_up_to_rounding(found: float, wanted: float, largest: float) -> bool:
    """Return True if storing a number only rounded it. A dtype without infinity stores NaN for it: False."""
    return found == wanted or (math.isnan(found) and math.isnan(wanted)) or abs(wanted) <= largest


def require_padded(subject: str, value: object, batch_first: bool) -> None:
    """Raise unless the value is a padded tensor, and batch_first a bool."""
    require_bool("batch_first", batch_first)
    padded = require_tensor(subject, value)
    if padded.dim() < 2:
        axes = "(batch, time, *features)" if batch_first else "(time, batch, *features)"
        raise complaint(SeqbatchValueError, subject, f"have shape {axes}", tuple(padded.shape))


def require_mask(subject: str, value: object, shape: tuple[int, ...], batch_first: bool) -> Tensor:
    """Return a mask, copied to the host, or raise.

    It must be a bool Tensor of the shape, and the True steps of each sequence must be contiguous.
    """
    mask = require_tensor(subject, value)
    require_bools(subject, mask)
    if tuple(mask.shape) != shape:
        raise complaint(SeqbatchValueError, subject, f"have shape {shape}, as `padded`", tuple(mask.shape))
    require_numbers(subject, mask)
    mask = mask.cpu()
    rows = mask if batch_first else mask.T
    before = torch.nn.functional.pad(rows, (1, 0))[:, :-1]
    starts = (rows & ~before).sum(1)
    if (starts > 1).any():
        i = int((starts > 1).nonzero()[0])
        must = "have its True steps side by side in each sequence"
        raise complaint(SeqbatchValueError, subject, must, f"a hole in sequence {i}")
    return mask


def require_bools(subject: str, mask: Tensor) -> None:
    """Raise unless a mask is of bools."""
    if mask.dtype is not torch.bool:
        remedy = f"If 1 marks a step and 0 padding, pass {subject}.bool()."
        if mask.is_floating_point():  # which `bool` would invert if it is one that attention adds to scores
            remedy += f" If it is 0 on steps and negative on padding, pass {subject} == 0."
        raise complaint(SeqbatchTypeError, subject, "be a bool Tensor, True on real steps", mask.dtype, remedy)


def require_packed(subject: str, value: object) -> tuple[list[int], list[int]]:
    """Return the batch sizes of a PackedSequence and the caller's index of each sequence in it, else raise.

    It raises unless its parts agree with each other.
    """
    if not isinstance(value, PackedSequence):
        raise complaint(SeqbatchTypeError, subject, "be a PackedSequence", type_name(value))
    require_steps(f"{subject}.data", value.data)
    name = f"{subject}.batch_sizes"
    sizes = integers(name, require_tensor(name, value.batch_sizes))
    if any(size <= 0 for size in sizes):
        raise complaint(SeqbatchValueError, name, "be at least 1 each", sizes)
    if any(size > before for before, size in pairwise(sizes)):
        raise complaint(SeqbatchValueError, name, "never rise", sizes)
    if sum(sizes) != len(value.data):
        must = f"add up to {len(value.data)}, the steps of its data"
        raise complaint(SeqbatchValueError, name, must, sum(sizes))
    return sizes, _order_of(subject, value, sizes[0] if sizes else 0)


def _order_of(subject: str, packed: PackedSequence, batch: int) -> list[int]:
    """Return the sorted indices of a PackedSequence if the unsorted ones undo them, or both are None, else raise."""
    identity = list(range(batch))
    if packed.sorted_indices is None and packed.unsorted_indices is None:
        return identity
    orders = []
    for part in ("sorted_indices", "unsorted_indices"):
        name, order = f"{subject}.{part}", getattr(packed, part)
        orders.append([] if order is None else integers(name, require_tensor(name, order)))
        if sorted(orders[-1]) != identity:
            must = f"name each of {counted(batch, 'sequence')} once"
            raise complaint(SeqbatchValueError, name, must, None if order is None else orders[-1])
    first, back = orders
    if [first[i] for i in back] != identity:
        must = f"undo its sorted_indices, {first}"
        raise complaint(SeqbatchValueError, f"{subject}.unsorted_indices", must, back)
    return first


def require_nested(subject: str, value: object) -> Tensor:
    """Return the value if it is a nested Tensor of jagged layout whose second axis is ragged, else raise."""
    if not isinstance(value, Tensor) or not value.is_nested:
        raise complaint(SeqbatchTypeError, subject, "be a nested Tensor", type_name(value))
    if value.layout is not torch.jagged:
        remedy = "Make it with layout=torch.jagged."
        raise complaint(SeqbatchTypeError, subject, "have layout torch.jagged", value.layout, remedy)
    if not isinstance(value.shape[1], torch.SymInt):
        raise complaint(SeqbatchValueError, subject, "be of unequal length in its second axis", tuple(value.shape))
    return value


def lengths_of_offsets(subject: str, value: object, steps: int) -> tuple[int, ...]:
    """Return the lengths between offsets that go from 0 to `steps` and are non-decreasing, else raise."""
    offsets = integers(subject, value)
    if not offsets or offsets[0] != 0:
        raise complaint(SeqbatchValueError, subject, "start with 0", offsets[0] if offsets else "no offsets")
    if offsets[-1] != steps:
        raise complaint(SeqbatchValueError, subject, f"end with {steps}, the steps of `values`", offsets[-1])
    lengths = tuple(end - start for start, end in pairwise(offsets))
    if lengths and min(lengths) < 0:
        i = next(i for i, length in enumerate(lengths) if length < 0)
        raise complaint(SeqbatchValueError, f"{subject}[{i + 1}]", f"be at least {offsets[i]}", offsets[i + 1])
    return lengths
