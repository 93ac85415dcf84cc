"""Layouts of batches outside of graphs: lengths are integers on the host, and arguments are checked by their values."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from seqbatch._checks.arguments import lengths_of, require_equal_lengths
from seqbatch._checks.grammar import complaint, counted
from seqbatch._checks.indices import (
    StepSlice,
    is_one_index,
    one_position,
    require_positions,
    require_step,
    several_positions,
)
from seqbatch._checks.layout_arguments import (
    PaddedForm,
    PaddingSide,
    lengths_of_offsets,
    require_mask,
    require_padding_value,
    require_total_length,
)
from seqbatch._kernels import row_copies
from seqbatch._ops import layouts, reductions
from seqbatch._structure.cached import outside_inference_mode
from seqbatch._structure.plans import Plan, joined_plan, masked_plan
from seqbatch._structure.sequence_lengths import Lengths, int64_tensor, to_device
from seqbatch._structure.step_slices import slice_layout
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


def merged_lengths(lengths: Lengths, sizes: Lengths) -> Lengths:
    if sizes.total != len(lengths):
        must = f"add up to {len(lengths)}, the sequences of this batch"
        raise complaint(SeqbatchValueError, "sizes", must, sizes.total)
    return Lengths(tuple(lengths.offsets[sizes.offsets].diff().tolist()))


def split_lengths(lengths: Lengths, parts: Lengths, steps: int) -> Lengths:
    require_total(parts, (steps,))
    meet = torch.isin(lengths.offsets[1:], parts.offsets)
    if not meet.all():
        i = meet.tolist().index(False)
        end = int(lengths.offsets[i + 1])
        must = f"have one that ends where sequence {i} ends, after {counted(end, 'step')} in all"
        over = int(torch.searchsorted(parts.offsets, end))
        found = f"one from step {int(parts.offsets[over - 1])} to {int(parts.offsets[over])}"
        raise complaint(SeqbatchValueError, "lengths", must, found)
    return parts


def require_total(lengths: Lengths, shape: Sequence[int]) -> None:
    """Raise unless the lengths add up to the steps of flat values of this shape."""
    if lengths.total != shape[0]:
        may_be_padded = len(shape) > 1 and len(lengths) in shape[:2] and lengths.longest <= max(shape[:2])
        remedy = "For a padded Tensor call SequenceBatch.from_padded." if may_be_padded else ""
        must = f"add up to {shape[0]}, the steps of `values`"
        raise complaint(SeqbatchValueError, "lengths", must, lengths.total, remedy)


def require_steps_of_batch(subject: str, steps: int, total: int) -> None:
    if steps != total:
        raise complaint(SeqbatchValueError, subject, f"have the {total} steps of this batch", steps)


def require_batch_size(subject: str, lengths: Lengths, like: Lengths, name: str) -> None:
    if len(lengths) != len(like):
        must = f"have {counted(len(like), 'sequence')}, as many as {name}"
        raise complaint(SeqbatchValueError, subject, must, len(lengths))


def require_same_lengths(subject: str, lengths: Lengths, like: Lengths) -> None:
    if lengths is not like:
        require_equal_lengths(subject, lengths.counts, like.counts)


def offsets(lengths: Lengths, device: torch.device) -> Tensor:
    return lengths.on(device).offsets.clone()


def segment_ids(lengths: Lengths, steps: int, device: torch.device) -> Tensor:
    return lengths.on(device).segment_ids.clone()


def positions(lengths: Lengths, steps: int, device: torch.device) -> Tensor:
    return lengths.on(device).positions.clone()


# ------------------------------------------------------------------------------------------------------------- padding


def to_padded(values: Tensor, lengths: Lengths, form: PaddedForm, padding_value: complex) -> Tensor:
    time = require_total_length(form.total_length, lengths.longest)
    fill = require_padding_value(padding_value, values.dtype)
    return layouts.flat_to_padded(values, lengths, form.batch_first, form.side, time, fill)


def mask(lengths: Lengths, form: PaddedForm, device: torch.device) -> Tensor:
    time = require_total_length(form.total_length, lengths.longest)
    steps, counts = torch.arange(time, device="cpu"), lengths.tensor
    if form.side == "left":
        steps = steps.flip(0)
    real = steps < counts[:, None] if form.batch_first else steps[:, None] < counts
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
    plan = masked_plan(real, batch_first).to(padded.device)
    return layouts.rearrange(padded.flatten(0, 1), plan), Lengths(tuple(counts.tolist()))


# --------------------------------------------------------------------------------------------------------------- steps


def slice_steps(
    values: Tensor, lengths: Lengths, steps: StepSlice, rows: tuple[int, ...] | None
) -> tuple[Tensor, Lengths]:
    device = values.device
    if rows is None:
        layout = lengths.plan(slice_layout, steps, None, device=device)
    else:
        layout = outside_inference_mode(lambda: slice_layout(lengths, steps, rows).to(device))
    return layouts.rearrange(values, layout.plan), lengths if layout.lengths is None else layout.lengths


def pick_steps(values: Tensor, lengths: Lengths, position: int, rows: tuple[int, ...] | None) -> Tensor:
    counts = lengths.counts
    if rows is not None or (len(lengths) and not -lengths.shortest <= position < lengths.shortest):
        require_step("index[1]", position, ((i, counts[i]) for i in (range(len(counts)) if rows is None else rows)))
    offsets = lengths.on(values.device).offsets
    index = (offsets[:-1] if position >= 0 else offsets[1:]) + position
    if rows is not None:
        index = index.index_select(0, to_device(int64_tensor(rows), values.device))
    return layouts.rearrange(values, Plan.copy(index))


def take_steps(values: Tensor, lengths: Lengths, positions: Tensor, of: Lengths) -> Tensor:
    segments, on_device = of.on(values.device).segment_ids, lengths.on(values.device)
    require_positions("indices", positions, on_device.tensor.index_select(0, segments), segments)
    return layouts.rearrange(values, Plan.copy(on_device.offsets.index_select(0, segments) + positions))


def join_steps(values: Tensor, parts: list[Lengths]) -> tuple[Tensor, Lengths]:
    plan = outside_inference_mode(lambda: joined_plan(parts).to(values.device))
    lengths = Lengths(tuple(map(sum, zip(*(part.counts for part in parts), strict=True))))
    return layouts.rearrange(values, plan), lengths


# -------------------------------------------------------------------------------------------- reductions and selection


def reduce(values: Tensor, lengths: Lengths, how: str) -> Tensor:
    return reductions.REDUCTIONS[how](values, lengths)


def drop_empty(rows: Tensor, lengths: Lengths) -> Tensor:
    return rows if lengths.without_empty is lengths else rows.index_select(0, lengths.on(rows.device).not_empty)


def chosen(index: Any, number: Callable[[], int]) -> list[int] | Tensor:
    if is_one_index(index):
        return [one_position("index", index, number())]
    return several_positions("index", index, number())


def expand(rows: Tensor, lengths: Lengths, steps: int) -> Tensor:
    if rows.shape[0] != len(lengths):
        remedy = "For a row for each step call batch.with_values(tensor)." if rows.shape[0] == steps else ""
        must = f"have {counted(len(lengths), 'row')}, one for each sequence"
        raise complaint(SeqbatchValueError, "tensor", must, rows.shape[0], remedy)
    return reductions.expand_to_steps(rows, lengths)
