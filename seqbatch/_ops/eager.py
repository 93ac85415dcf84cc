"""Layouts of batches outside of graphs: lengths are integers on the host, and arguments are checked by their values."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from seqbatch._checks.arguments import lengths_of, require_equal_lengths
from seqbatch._checks.grammar import complaint, counted
from seqbatch._checks.layout_arguments import (
    PaddingSide,
    lengths_of_offsets,
    require_mask,
    require_nested,
    require_packed,
    require_padding_value,
    require_total_length,
)
from seqbatch._kernels import row_copies
from seqbatch._ops import layouts, reductions
from seqbatch._structure.cached import outside_inference_mode
from seqbatch._structure.sequence_lengths import Lengths, to_device
from seqbatch.errors import SeqbatchValueError

# ------------------------------------------------------------------------------------------------------------- lengths


def lengths_from(subject: str, value: object) -> Lengths:
    if isinstance(value, Tensor):
        value = outside_inference_mode(value.clone)  # first, because another thread may write to it meanwhile
        if measured := row_copies.measure_lengths(value):
            return Lengths.from_measurements(value, *measured)
    return Lengths(lengths_of(subject, value))


def lengths_of_sizes(sizes: tuple[int, ...]) -> Lengths:
    return Lengths(sizes)


def lengths_from_offsets(subject: str, value: object, steps: int) -> Lengths:
    return Lengths(lengths_of_offsets(subject, value, steps))


def joined_lengths(parts: list[Lengths]) -> Lengths:
    return Lengths(tuple(count for part in parts for count in part.counts))


def require_total(lengths: Lengths, steps: int) -> None:
    if lengths.total != steps:
        raise complaint(SeqbatchValueError, "lengths", f"add up to {steps}, the steps of `values`", lengths.total)


def require_same_lengths(subject: str, lengths: Lengths, like: Lengths) -> None:
    if lengths is not like:
        require_equal_lengths(subject, lengths.counts, like.counts)


def require_same_batch_size(subject: str, lengths: Lengths, other: str, like: Lengths) -> None:
    if len(lengths) != len(like):
        must = f"have {counted(len(like), 'sequence')}, as many as `{other}`"
        raise complaint(SeqbatchValueError, subject, must, len(lengths))


def offsets(lengths: Lengths, device: torch.device) -> Tensor:
    return lengths.on(device).offsets.clone()


def segment_ids(lengths: Lengths, steps: int, device: torch.device) -> Tensor:
    return lengths.on(device).segment_ids.clone()


def positions(lengths: Lengths, steps: int, device: torch.device) -> Tensor:
    return lengths.on(device).positions.clone()


# ------------------------------------------------------------------------------------------------------------- padding


def to_padded(
    values: Tensor,
    lengths: Lengths,
    batch_first: bool,
    side: PaddingSide,
    total_length: int | None,
    padding_value: complex,
) -> Tensor:
    time = require_total_length(total_length, lengths.longest)
    fill = require_padding_value(padding_value, values.dtype)
    return layouts.flat_to_padded(values, lengths, batch_first, side, time, fill)


def mask(
    lengths: Lengths, batch_first: bool, side: PaddingSide, total_length: int | None, device: torch.device
) -> Tensor:
    time = require_total_length(total_length, lengths.longest)
    steps, counts = torch.arange(time, device="cpu"), lengths.tensor
    if side == "left":
        steps = steps.flip(0)
    real = steps < counts[:, None] if batch_first else steps[:, None] < counts
    return to_device(real, device)


def from_padded(padded: Tensor, lengths: Lengths, batch_first: bool, side: PaddingSide) -> Tensor:
    size, time = padded.shape[:2] if batch_first else (padded.shape[1], padded.shape[0])
    if len(lengths) != size:
        raise complaint(SeqbatchValueError, "lengths", f"have shape ({size},), as the batch", (len(lengths),))
    if lengths.longest > time:
        i, count = next((i, count) for i, count in enumerate(lengths.counts) if count > time)
        raise complaint(SeqbatchValueError, f"lengths[{i}]", f"be at most {time}, the time axis", count)
    return layouts.padded_to_flat(padded, lengths, batch_first, side)


def from_mask(padded: Tensor, mask: Tensor, batch_first: bool) -> tuple[Tensor, Lengths]:
    real = require_mask("mask", mask, tuple(padded.shape[:2]), batch_first)
    counts = real.sum(1 if batch_first else 0)
    return layouts.masked_to_flat(padded, real, batch_first), Lengths(tuple(counts.tolist()))


# --------------------------------------------------------------------------------------------------- packed and nested


def to_packed(values: Tensor, lengths: Lengths) -> PackedSequence:
    if lengths.shortest == 0 and len(lengths):
        where = f"sequences[{lengths.counts.index(0)}]"
        remedy = "PyTorch's packed form cannot hold an empty sequence: leave it out, by batch[indices]."
        raise complaint(SeqbatchValueError, where, "have a step to be packed", "0 steps", remedy)
    return layouts.flat_to_packed(values, lengths)


def from_packed(packed: PackedSequence) -> tuple[Tensor, Lengths]:
    unpacked = outside_inference_mode(lambda: row_copies.unpack_lengths(packed))
    if unpacked is None:  # because the kernels do not support it, or it is invalid
        lengths = Lengths.from_batch_sizes(*require_packed("packed", packed))
    else:
        lengths = Lengths.from_packed(*unpacked, packed.data.shape[0])
    return layouts.packed_to_flat(packed.data, lengths), lengths


def to_nested(values: Tensor, lengths: Lengths) -> Tensor:
    return layouts.flat_to_nested(values, lengths)


def from_nested(nested: Tensor) -> tuple[Tensor, Lengths]:
    return layouts.nested_to_flat(require_nested("nested", nested))


# ---------------------------------------------------------------------------------------------------------- reductions


def reduce(values: Tensor, lengths: Lengths, how: str) -> Tensor:
    return reductions.REDUCTIONS[how](values, lengths)
