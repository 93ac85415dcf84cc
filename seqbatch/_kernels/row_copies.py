"""Rows copied by the compiled kernels: which tensors they can read, and the calls; knows tensors only, no layouts."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from seqbatch import _kernels
from seqbatch._torch import is_dense, is_intercepted


def can_read(*tensors: Tensor) -> bool:
    """Return True if the kernels can read the memory of all these tensors, whatever their dtypes and strides."""
    if not _kernels.IS_THERE or is_intercepted():
        return False
    # An address of 0: there is nothing to copy, or the storage was freed.
    return all(is_dense(tensor) and tensor.data_ptr() for tensor in tensors)


def is_read_as(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Return True if the kernels can read a tensor as one of a shape and a dtype."""
    return tensor.dtype is dtype and tensor.shape == shape and is_dense(tensor)


def _are_int64_vectors(*tensors: Tensor) -> bool:
    """Return True if the kernels can read all these tensors as int64 of one axis."""
    if not can_read(*tensors):
        return False
    return all(tensor.dtype is torch.int64 and tensor.dim() == 1 and tensor.is_contiguous() for tensor in tensors)


def rows_of(flat: Tensor, other: Tensor, lengths: Tensor, into_flat: bool) -> _kernels.Rows:
    """Describe a copy of the rows of sequences between flat values and another layout; `can_read` must hold.

    The fields that depend on the other layout are left to its caller. The result holds addresses, and no tensor.

    Args:
        flat: `(total_steps, *features)`, contiguous.
        other: a padded tensor `(batch, time, *features)` or `(time, batch, *features)` with contiguous rows, or the
            data of a PackedSequence `(total_steps, *features)`, contiguous.
        lengths: `(batch,)`, int64, contiguous, in steps: none may be above `time`, and they add up to total_steps.
        into_flat: whether to write `flat`, else `other` and its padding.
    """
    element = other.element_size()
    return _kernels.Rows(
        flat=flat.data_ptr(),
        other=other.data_ptr(),
        lengths=lengths.data_ptr(),
        sequences=lengths.shape[0],
        row=flat.shape[1:].numel() * element,  # not the stride, which may be any number where there is one step
        element=element,
        into_flat=into_flat,
        threads=torch.get_num_threads(),
    )


def measure_lengths(lengths: Tensor) -> list[int] | None:
    """Compute the least length, the greatest and their sum.

    Returns None if the kernels cannot read them as int64, if one is negative or if the sum is too large.
    """
    return _kernels.measure(lengths.data_ptr(), lengths.shape[0]) if _are_int64_vectors(lengths) else None


def sort_lengths(lengths: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort sequences from longest to shortest, equals in order; requires `can_read`.

    Returns:
        the order and the place of each sequence in it, `(batch,)`, and how many sequences have each step, `(longest,)`;
        int64.
    """
    order, rank, sizes = torch.empty_like(lengths), torch.empty_like(lengths), lengths.new_empty(longest)
    addresses = [tensor.data_ptr() for tensor in (order, rank, sizes)]
    _kernels.sort(lengths.data_ptr(), lengths.shape[0], longest, *addresses)
    return order, rank, sizes


def unpack_lengths(packed: object) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]] | None:
    """Compute the lengths of a PackedSequence if the kernels can read its parts, and these fit each other.

    Returns:
        the lengths, `(batch,)`, and copies of sorted_indices, unsorted_indices and batch_sizes; int64. Or None.
    """
    if not isinstance(packed, PackedSequence) or not isinstance(packed.data, Tensor) or not packed.data.dim():
        return None
    sizes, order, rank, steps = packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices, packed.data.shape[0]
    if order is None and rank is None and _are_int64_vectors(sizes) and 0 < sizes[0] <= steps:
        order = rank = torch.arange(int(sizes[0]), device="cpu")
    if order is None or rank is None or not _are_int64_vectors(sizes, order, rank) or order.shape != rank.shape:
        return None
    # Copies are checked, because another thread may write to the caller's meanwhile.
    sizes, order, rank = sizes.clone(), order.clone(), rank.clone()
    lengths = torch.empty_like(order)
    addresses = sizes.data_ptr(), sizes.shape[0], order.data_ptr(), rank.data_ptr()
    if not _kernels.unpack(*addresses, order.shape[0], steps, lengths.data_ptr()):
        return None
    return lengths, (order, rank, sizes)
