"""Checks of arguments that are Tensors, sequences, integers or lengths."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from seqbatch._checks.grammar import complaint, counted, shown, type_name
from seqbatch._torch import is_mapped
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError


def require_tensor(subject: str, value: object, *, remedy_for_tensors: str = "") -> Tensor:
    """Return the value if it is a dense Tensor, else raise.

    `remedy_for_tensors` says what to do with a list or tuple that holds Tensors, which `torch.as_tensor` refuses.
    """
    if not isinstance(value, Tensor):
        # Batches and states name their own remedy.
        remedy = getattr(type(value), "_instead", "")
        if isinstance(value, (list, tuple)) and any(isinstance(one, Tensor) for one in value):
            remedy = remedy_for_tensors
        elif isinstance(value, (list, tuple)) or hasattr(value, "shape"):
            remedy = "Make it one by torch.as_tensor."
        raise complaint(SeqbatchTypeError, subject, "be a Tensor", type_name(value), remedy)
    if value.is_nested or value.layout is not torch.strided:
        found = "a nested Tensor" if value.is_nested else f"layout {value.layout}"
        raise complaint(SeqbatchTypeError, subject, "be a dense Tensor", found)
    return value


def require_function(subject: str, value: object) -> None:
    """Raise unless the value can be called."""
    if not callable(value):
        raise complaint(SeqbatchTypeError, subject, "be a function", type_name(value))


def require_layer(subject: str, value: object, remedy: str = "") -> nn.Module:
    """Return the value if it is a layer, else raise."""
    if not isinstance(value, nn.Module):
        remedy = "Pass a layer, not its class." if isinstance(value, type) else remedy
        raise complaint(SeqbatchTypeError, subject, "be an nn.Module", type_name(value), remedy)
    return value


def from_array(subject: str, value: Any) -> Tensor:
    """Return an array as a Tensor, which shares its memory if torch can, else raise."""
    if hasattr(value, "mask") and hasattr(value, "filled"):  # torch would read masked entries as data
        remedy = "Call its filled with a value of your choice, or drop what is masked."
        raise complaint(SeqbatchTypeError, subject, "be an array without a mask", type_name(value), remedy)
    array = value.__array__()
    try:
        if not array.flags.writeable:  # torch would warn of sharing its memory
            return torch.from_numpy(array.copy())
        try:
            return torch.from_numpy(array)
        except ValueError:
            return torch.from_numpy(array.copy())  # because torch refuses negative strides, as a flip has
    except (TypeError, ValueError):
        must = "have a dtype that torch has"
        raise complaint(SeqbatchTypeError, subject, must, array.dtype, "Call its astype.") from None


def require_steps(subject: str, value: object, *, remedy_for_tensors: str = "") -> Tensor:
    """Return the value if it is a Tensor with a dimension of steps, `(steps, *features)`, else raise."""
    tensor = require_tensor(subject, value, remedy_for_tensors=remedy_for_tensors)
    if tensor.dim() == 0:
        raise complaint(SeqbatchValueError, subject, "have shape (steps, *features)", "a Tensor of no dimension")
    return tensor


def require_alike(subject: str, tensor: Tensor, first: str, like: Tensor) -> None:
    """Raise unless both sequences have the same features, dtype and device."""
    for what, found, wanted in (
        ("features", tuple(tensor.shape[1:]), tuple(like.shape[1:])),
        ("dtype", tensor.dtype, like.dtype),
        ("device", str(tensor.device), str(like.device)),
    ):
        if found != wanted:
            # A first dimension that is equal in both is rather that of a batch of one, or of channels.
            are_steps_later = what == "features" and len(tensor.shape) == len(like.shape) and len(tensor) == len(like)
            remedy = "A sequence has shape (steps, *features)." if are_steps_later else ""
            raise complaint(SeqbatchValueError, subject, f"have {what} {wanted}, as {first}", found, remedy)


def sequences_of(subject: str, value: object) -> list[Tensor]:
    """Return an iterable of Tensors `(steps, *features)` of equal features, dtype and device as a list, else raise."""
    if isinstance(value, (Tensor, PackedSequence)):
        remedy = "Call from_packed."
        if isinstance(value, Tensor):
            remedy = "Call from_padded for a padded Tensor, or pass [x] for one sequence."
        raise complaint(SeqbatchTypeError, subject, "be several Tensors", type_name(value), remedy)
    if not isinstance(value, Iterable):
        raise complaint(SeqbatchTypeError, subject, "be an iterable of Tensors", type_name(value))
    tensors = list(value)
    if not _are_alike(tensors):
        for i, tensor in enumerate(tensors):
            remedy = "If its Tensors are steps, join them by torch.stack."
            require_steps(f"{subject}[{i}]", tensor, remedy_for_tensors=remedy)
            require_alike(f"{subject}[{i}]", tensor, f"{subject}[0]", tensors[0])
    return tensors


def _are_alike(tensors: list[Any]) -> bool:
    """Fast path: return True if all tensors are dense and have equal features, dtype and device."""
    if len({*map(type, tensors)}) != 1 or not isinstance(tensors[0], Tensor):
        return False
    kinds = {(one.layout, one.dtype, one.device, one.is_nested) for one in tensors}
    if len(kinds) != 1 or tensors[0].layout is not torch.strided or tensors[0].is_nested:
        return False
    shapes = [tuple(one.shape) for one in tensors]  # slices of torch.Size take three times as long
    features = shapes[0][1:]
    return all(shapes) and all(shape[1:] == features for shape in shapes)  # not by a set: a SymInt has no hash


def require_equal_lengths(subject: str, lengths: tuple[int, ...], like: tuple[int, ...]) -> None:
    """Raise unless the lengths of another batch are those of this one."""
    if len(lengths) != len(like):
        raise complaint(
            SeqbatchValueError, subject, f"have {counted(len(like), 'sequence')}, as this batch", len(lengths)
        )
    for i, (found, wanted) in enumerate(zip(lengths, like, strict=True)):
        if found != wanted:
            must = f"have the lengths of this batch, {counted(wanted, 'step')} in sequence {i}"
            raise complaint(SeqbatchValueError, subject, must, found)


def is_array(value: object) -> bool:
    """Return True if the value is an array or a scalar of NumPy, which is not imported here."""
    return hasattr(type(value), "__array_interface__")


def is_bool(value: object) -> bool:
    """Return True if the value is a bool of Python or NumPy."""
    return isinstance(value, bool) or (is_array(value) and value.dtype.kind == "b")  # type: ignore[attr-defined]  # of NumPy, which is not imported


def integer(subject: str, value: object) -> int:
    """Return the value as an int if it is an integer of any library, and not a bool, else raise."""
    try:
        if is_bool(value) or (isinstance(value, Tensor) and value.dtype is torch.bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]  # raises a TypeError for anything else
    except TypeError:
        raise complaint(SeqbatchTypeError, subject, "be an integer", shown(value)) from None


def at_least(subject: str, value: object, least: int) -> int:
    """Return the value as an int if it is an integer and not too small, else raise."""
    number = integer(subject, value)
    if number < least:
        raise complaint(SeqbatchValueError, subject, f"be at least {least}", number)
    return number


def require_integers(subject: str, value: Tensor) -> Tensor:
    """Return a Tensor if it has one axis and an integer dtype, else raise."""
    if value.dim() != 1 or value.is_floating_point() or value.is_complex() or value.dtype is torch.bool:
        must = "be integers, as a Tensor of one axis and an integer dtype"
        raise complaint(SeqbatchTypeError, subject, must, f"shape {tuple(value.shape)} and {value.dtype}")
    return value


def require_numbers(subject: str, value: Tensor) -> None:
    """Raise if `torch.func.vmap` maps over a Tensor, because its values then differ from sample to sample."""
    if is_mapped(value):
        remedy = "Pass in_dims=None for it, or join the samples to one batch, which needs no vmap."
        must = "be one for all that torch.func.vmap maps over"
        raise complaint(SeqbatchValueError, subject, must, "a Tensor that it maps over", remedy)


def integers(subject: str, value: object) -> list[int]:
    """Return a sequence of integers, or a one-dimensional integer Tensor, as a list of ints, else raise.

    A Tensor on a device is copied to the host, which synchronizes.
    """
    if isinstance(value, Tensor):
        require_numbers(subject, value)
        numbers: list[int] = require_integers(subject, value).tolist()
        return numbers
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
