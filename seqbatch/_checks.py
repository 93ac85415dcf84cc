"""Argument checks, and the one grammar of their messages: what must hold; what was found; the remedy."""

import math
import numbers
import operator
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from seqbatch.errors import SeqbatchError, SeqbatchTypeError, SeqbatchValueError

PaddingSide = Literal["right", "left"]
Kind = TypeVar("Kind", bound=SeqbatchError)


def complaint(kind: type[Kind], subject: str, must: str, found: object, remedy: str = "") -> Kind:
    """Make the error "`subject` must ...; got ... Remedy." of the given kind."""
    ending = f" {remedy}" if remedy else ""
    return kind(f"`{subject}` must {must}; got {found}.{ending}")


def type_name(value: object) -> str:
    """Name the type of a value, with an article and its module."""
    if value is None:
        return "None"
    kind = type(value)
    where = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    name = f"{where}{kind.__qualname__}"
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def counted(number: int, what: str) -> str:
    """Say how many there are of something: "1 sequence", "2 sequences"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def describe(layer: nn.Module) -> str:
    """Name a layer with its sizes, in one line."""
    try:
        sizes = layer.extra_repr()
    except Exception:  # what a layer cannot say of itself must not stand in for the error that is to be told
        sizes = "..."
    return f"{type(layer).__name__}({sizes})"


def require_tensor(subject: str, value: object) -> Tensor:
    """Return the value if it is a dense Tensor, else raise."""
    if not isinstance(value, Tensor):
        remedy = (
            "Make it one by torch.as_tensor." if isinstance(value, (list, tuple)) or hasattr(value, "shape") else ""
        )
        raise complaint(SeqbatchTypeError, subject, "be a Tensor", type_name(value), remedy)
    if value.is_nested or value.layout is not torch.strided:
        found = "a nested Tensor" if value.is_nested else f"layout {value.layout}"
        raise complaint(SeqbatchTypeError, subject, "be a dense Tensor", found)
    return value


def require_steps(subject: str, value: object) -> Tensor:
    """Return the value if it is a Tensor with a dimension of steps, `(steps, *features)`, else raise."""
    tensor = require_tensor(subject, value)
    if tensor.dim() == 0:
        raise complaint(SeqbatchValueError, subject, "have shape (steps, *features)", "a Tensor of no dimension")
    return tensor


def require_bool(subject: str, value: object) -> bool:
    """Return the value if it is a bool, else raise: an axis is never guessed from something truthy."""
    if not isinstance(value, bool):
        raise complaint(SeqbatchTypeError, subject, "be True or False", repr(value))
    return value


def require_side(value: object) -> PaddingSide:
    """Return the padding side if it is one, else raise."""
    if value == "right":
        return "right"
    if value == "left":
        return "left"
    raise complaint(SeqbatchValueError, "padding_side", "be 'right' or 'left'", repr(value))


def require_total_length(total_length: int | None, longest: int) -> int:
    """Return the number of steps to pad to: the longest sequence, or the given number if that holds it."""
    if total_length is None:
        return longest
    total = integer("total_length", total_length)
    if total < longest:
        raise complaint(SeqbatchValueError, "total_length", f"be at least {longest}, the longest sequence", total)
    return total


def require_padding_value(padding_value: complex, dtype: torch.dtype) -> complex:
    """Return the padding value as a number of Python if the dtype can hold it without making it another, else raise."""
    if not isinstance(padding_value, numbers.Complex):
        raise complaint(SeqbatchTypeError, "padding_value", "be a number", type_name(padding_value))
    to_python = getattr(padding_value, "item", None)  # which numbers of NumPy have
    number: complex = padding_value if to_python is None else to_python()
    try:
        written = torch.full((), number, dtype=dtype, device="cpu").item()
        kept = written == number
        if dtype.is_floating_point or dtype.is_complex:  # rounding is expected, but no other size
            parts = ((written.real, number.real), (written.imag, number.imag))
            kept = all(_rounded(found, wanted, torch.finfo(dtype).max) for found, wanted in parts)
    except (RuntimeError, TypeError, ValueError, OverflowError):  # torch raises one or another, by dtype and value
        kept = False
    if not kept:
        raise complaint(SeqbatchValueError, "padding_value", f"be a value of {dtype}", repr(padding_value))
    return number


def _rounded(found: float, wanted: float, largest: float) -> bool:
    """Tell whether a number became another by rounding alone: some dtypes have no infinity, and make NaN of it."""
    return found == wanted or (math.isnan(found) and math.isnan(wanted)) or abs(wanted) <= largest


def same_kind(subject: str, tensor: Tensor, first: str, like: Tensor) -> None:
    """Raise unless both sequences have the same features, dtype and device."""
    for what, found, wanted in (
        ("features", tuple(tensor.shape[1:]), tuple(like.shape[1:])),
        ("dtype", tensor.dtype, like.dtype),
        ("device", str(tensor.device), str(like.device)),
    ):
        if found != wanted:
            raise complaint(SeqbatchValueError, subject, f"have {what} {wanted}, as {first}", found)


def sequences_of(subject: str, value: object) -> list[Tensor]:
    """Return an iterable of Tensors `(steps, *features)` of one kind as a list, else raise."""
    remedies = {
        Tensor: "Call from_padded for a padded Tensor, or give [x] for one sequence.",
        PackedSequence: "Call from_packed.",
    }
    for kind, remedy in remedies.items():
        if isinstance(value, kind):
            raise complaint(SeqbatchTypeError, subject, "be several Tensors", type_name(value), remedy)
    if not isinstance(value, Iterable):
        raise complaint(SeqbatchTypeError, subject, "be an iterable of Tensors", type_name(value))
    tensors = list(value)
    for i, tensor in enumerate(tensors):
        if i and _is_alike(tensor, tensors[0]):
            continue
        require_steps(f"{subject}[{i}]", tensor)
        same_kind(f"{subject}[{i}]", tensor, f"{subject}[0]", tensors[0])
    return tensors


def _is_alike(tensor: object, like: Tensor) -> bool:
    """Tell quickly whether nothing is wrong: this is asked of every sequence of every batch."""
    return (
        type(tensor) is type(like)
        and tensor.layout is torch.strided
        and tensor.dtype is like.dtype
        and tensor.device == like.device
        and tensor.shape[1:] == like.shape[1:]
        and tensor.dim() > 0
        and not tensor.is_nested
    )


def padded_shape(subject: str, value: object, batch_first: bool) -> tuple[int, int]:
    """Return the batch and the time of a padded tensor, else raise."""
    require_bool("batch_first", batch_first)
    padded = require_tensor(subject, value)
    if padded.dim() < 2:
        axes = "(batch, time, *features)" if batch_first else "(time, batch, *features)"
        raise complaint(SeqbatchValueError, subject, f"have shape {axes}", tuple(padded.shape))
    return (padded.shape[0], padded.shape[1]) if batch_first else (padded.shape[1], padded.shape[0])


def require_mask(subject: str, value: object, shape: tuple[int, ...], batch_first: bool) -> Tensor:
    """Return a mask on the host if it is one of the shape and has no holes, else raise."""
    mask = require_tensor(subject, value)
    if mask.dtype is not torch.bool:
        raise complaint(SeqbatchTypeError, subject, "be a bool Tensor, True on real steps", mask.dtype)
    if tuple(mask.shape) != shape:
        raise complaint(SeqbatchValueError, subject, f"have shape {shape}, as `padded`", tuple(mask.shape))
    mask = mask.cpu()
    rows = mask if batch_first else mask.T
    before = torch.nn.functional.pad(rows, (1, 0))[:, :-1]
    starts = (rows & ~before).sum(1)
    if (starts > 1).any():
        i = int((starts > 1).nonzero()[0])
        must = "have its True steps side by side in each sequence"
        raise complaint(SeqbatchValueError, subject, must, f"a hole in sequence {i}")
    return mask


def require_packed(subject: str, value: object) -> None:
    """Raise unless the value is a PackedSequence whose parts fit each other."""
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
    _require_orders(subject, value, sizes[0] if sizes else 0)


def _require_orders(subject: str, packed: PackedSequence, batch: int) -> None:
    """Raise unless the two orders of a PackedSequence are there and undo each other, or neither is there."""
    orders = packed.sorted_indices, packed.unsorted_indices
    if orders == (None, None):
        return
    for name, order in zip(("sorted_indices", "unsorted_indices"), orders, strict=True):
        found = [] if order is None else integers(f"{subject}.{name}", require_tensor(f"{subject}.{name}", order))
        if sorted(found) != list(range(batch)):
            must = f"name each of {counted(batch, 'sequence')} once"
            raise complaint(SeqbatchValueError, f"{subject}.{name}", must, None if order is None else found)
    first, back = (order.tolist() for order in orders if order is not None)
    if [first[i] for i in back] != list(range(batch)):
        must = f"undo its sorted_indices, {first}"
        raise complaint(SeqbatchValueError, f"{subject}.unsorted_indices", must, back)


def require_nested(subject: str, value: object) -> Tensor:
    """Return the value if it is a nested Tensor of jagged layout whose second axis is the unequal one, else raise."""
    if not isinstance(value, Tensor) or not value.is_nested:
        raise complaint(SeqbatchTypeError, subject, "be a nested Tensor", type_name(value))
    if value.layout is not torch.jagged:
        remedy = "Make it with layout=torch.jagged."
        raise complaint(SeqbatchTypeError, subject, "have layout torch.jagged", value.layout, remedy)
    if not isinstance(value.shape[1], torch.SymInt):
        raise complaint(SeqbatchValueError, subject, "be of unequal length in its second axis", tuple(value.shape))
    return value


def same_lengths(subject: str, lengths: tuple[int, ...], like: tuple[int, ...]) -> None:
    """Raise unless the lengths of another batch are those of this one."""
    if len(lengths) != len(like):
        raise complaint(
            SeqbatchValueError, subject, f"have {counted(len(like), 'sequence')}, as this batch", len(lengths)
        )
    for i, (found, wanted) in enumerate(zip(lengths, like, strict=True)):
        if found != wanted:
            must = f"have the lengths of this batch, {counted(wanted, 'step')} in sequence {i}"
            raise complaint(SeqbatchValueError, subject, must, found)


def integer(subject: str, value: object) -> int:
    """Return the value as an int if it is an integer of any library, and no bool, else raise."""
    try:
        if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype is torch.bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]  # that it may not be one is what is asked
    except TypeError:
        raise complaint(SeqbatchTypeError, subject, "be an integer", repr(value)) from None


def integers(subject: str, value: object) -> list[int]:
    """Return a sequence of integers, or a one-dimensional integer Tensor, as a list of ints, else raise.

    A Tensor on a device is copied to the host, which waits for the device.
    """
    if isinstance(value, Tensor):
        if value.dim() != 1 or value.is_floating_point() or value.is_complex() or value.dtype is torch.bool:
            must = "be integers, as a Tensor of one axis and an integer dtype"
            raise complaint(SeqbatchTypeError, subject, must, f"shape {tuple(value.shape)} and {value.dtype}")
        return [int(number) for number in value.tolist()]
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        remedy = "Call its tolist." if hasattr(value, "tolist") else ""
        must = "be a sequence of integers or an integer Tensor"
        raise complaint(SeqbatchTypeError, subject, must, type_name(value), remedy)
    if all(type(number) is int for number in value):
        return list(value)
    return [integer(f"{subject}[{i}]", number) for i, number in enumerate(value)]


def lengths_of(subject: str, value: object) -> tuple[int, ...]:
    """Return lengths as a tuple of ints, none negative, else raise."""
    lengths = tuple(integers(subject, value))
    if lengths and min(lengths) < 0:
        i = next(i for i, length in enumerate(lengths) if length < 0)
        raise complaint(SeqbatchValueError, f"{subject}[{i}]", "be at least 0", lengths[i])
    return lengths


def lengths_of_offsets(subject: str, value: object, steps: int) -> tuple[int, ...]:
    """Return the lengths between offsets that go from 0 to `steps` and never fall, else raise."""
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
