"""Rows copied by the compiled kernels: which tensors they can read, and the calls; knows tensors only, no layouts."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from seqbatch import _kernels
from seqbatch._modes import are_batched, is_transformed

_PLAIN = (Tensor, nn.Parameter)  # subclasses, such as fake tensors, may have no memory that a kernel could read


def serves(*tensors: Tensor | None) -> bool:
    """Return True if the kernels can read the memory of all these tensors, whatever their dtypes and strides."""
    # A dispatch mode, such as that of fake tensors, must see every operation.
    if not _kernels.IS_THERE or is_transformed() or torch._C._len_torch_dispatch_stack():
        return False
    return all(map(_has_memory, tensors))


def _has_memory(tensor: Tensor | None) -> bool:
    """Return True if the memory of a tensor holds its values, and it has some."""
    if type(tensor) not in _PLAIN or not tensor.is_cpu or are_batched((tensor,)):
        return False
    # A conjugate or negative view holds the values of another tensor. An address of 0 is that of a freed storage.
    holds_others = tensor.is_conj() or tensor.is_neg() or tensor.is_quantized
    return not holds_others and tensor.numel() > 0 and tensor.data_ptr() != 0


def copy(
    flat: Tensor,
    other: Tensor,
    lengths: Tensor,
    *,
    into_flat: bool,
    batch_axis: int = 0,
    is_left: bool = False,
    fill: Tensor | None = None,
    packing: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Copy the rows of sequences between flat values and another layout, which the kernels serve.

    Args:
        flat: `(total_steps, *features)`, contiguous.
        other: a padded tensor `(batch, time, *features)` or `(time, batch, *features)`, of which each row is contiguous;
            or the data of a PackedSequence `(total_steps, *features)`, contiguous.
        lengths: `(batch,)`, int64, contiguous, in steps: none may be above `time`, and they add up to total_steps.
        into_flat: whether to write `flat`, else `other` and its padding.
        batch_axis: that of a padded tensor.
        is_left: whether the padding stands before the steps.
        fill: `()`: the value of the padding; None for bytes of 0.
        packing: only for packed data: `(batch,)`, the place of each sequence in a step, and `(longest,)`, the number of
            sequences of each step; int64, contiguous.
    """
    element = other.element_size()
    features = other.shape[2:] if packing is None else other.shape[1:]
    places, sizes = (None, None) if packing is None else packing
    _kernels.copy(
        _kernels.Rows(
            flat=flat.data_ptr(),
            other=other.data_ptr(),
            fill=None if fill is None else fill.data_ptr(),
            lengths=lengths.data_ptr(),
            places=None if places is None else places.data_ptr(),
            sizes=None if sizes is None else sizes.data_ptr(),
            sequences=lengths.shape[0],
            time=other.shape[1 - batch_axis] if sizes is None else sizes.shape[0],
            row=features.numel() * element,
            element=element,
            sequence_stride=other.stride(batch_axis) * element,
            step_stride=0 if packing else other.stride(1 - batch_axis) * element,
            is_left=is_left,
            into_flat=into_flat,
            threads=torch.get_num_threads(),
        )
    )


def sort(lengths: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort sequences from longest to shortest, equals in order; requires that the kernels serve the lengths.

    Returns:
        the order and the place of each sequence in it, `(batch,)`, and how many sequences have each step, `(longest,)`;
        int64.
    """
    order, rank, sizes = torch.empty_like(lengths), torch.empty_like(lengths), lengths.new_empty(longest)
    addresses = [tensor.data_ptr() for tensor in (order, rank, sizes)]
    _kernels.sort(lengths.data_ptr(), lengths.shape[0], longest, *addresses)
    return order, rank, sizes


def unpack(packed: object) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]] | None:
    """Compute the lengths of a PackedSequence if the kernels serve its parts, and these fit each other.

    Returns:
        the lengths, `(batch,)`, and copies of sorted_indices, unsorted_indices and batch_sizes; int64. Or None.
    """
    if not isinstance(packed, PackedSequence) or not isinstance(packed.data, Tensor) or not packed.data.dim():
        return None
    parts = (packed.sorted_indices, packed.unsorted_indices, packed.batch_sizes)
    if not serves(*parts):
        return None
    order, rank, sizes = parts
    for part in parts:
        if part.dim() != 1 or part.dtype is not torch.int64 or not part.is_contiguous():
            return None
    if len(order) != len(rank):
        return None
    lengths = torch.empty_like(order)
    fits = _kernels.unpack(
        sizes.data_ptr(),
        sizes.shape[0],
        order.data_ptr(),
        rank.data_ptr(),
        order.shape[0],
        packed.data.shape[0],
        lengths.data_ptr(),
    )
    return (lengths, (order.clone(), rank.clone(), sizes.clone())) if fits else None
