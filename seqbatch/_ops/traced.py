"""Layouts of batches while torch.compile or torch.export traces: lengths are a tensor whose values are unknown.

A graph serves all lengths. What `eager` checks by their values, a graph checks at run time.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqbatch._checks.arguments import integer, integers, require_integers, require_tensor
from seqbatch._checks.grammar import complaint, type_name
from seqbatch._checks.indices import StepSlice, refuse_bytes
from seqbatch._checks.layout_arguments import PaddedForm, PaddingSide, require_bools
from seqbatch._checks.tracing import require_in_graph
from seqbatch._ops import eager, reductions
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._structure.step_slices import slice_steps_of
from seqbatch._torch import check_size, check_size_or, known_or_false
from seqbatch.errors import SeqbatchError, SeqbatchIndexError, SeqbatchTypeError, SeqbatchValueError

# ------------------------------------------------------------------------------------------------------------- lengths


def lengths_from(subject: str, value: object) -> Lengths:
    if isinstance(value, Tensor):
        return Lengths(require_integers(subject, value).to("cpu", torch.int64, copy=True))
    return lengths_of_sizes(tuple(integers(subject, value)))


def lengths_of_sizes(sizes: tuple[int, ...]) -> Lengths:
    lengths = Lengths(torch.tensor(sizes, dtype=torch.int64, device="cpu"))
    lengths.traced_sizes = sizes
    return lengths


def lengths_from_offsets(subject: str, value: object, steps: int) -> Lengths:
    offsets = lengths_from(subject, value).tensor
    check_size(offsets.shape[0] > 0, f"`{subject}` must start with 0; got no offsets.")
    lengths = offsets.diff()
    require_in_graph((offsets[:1] == 0).all(), f"`{subject}` must start with 0")
    require_in_graph((offsets[-1:] == steps).all(), f"`{subject}` must end with the steps of `values`")
    require_in_graph((lengths >= 0).all(), f"`{subject}` must never fall")
    return Lengths(lengths)


def joined_lengths(parts: list[Lengths]) -> Lengths:
    return Lengths(torch.cat([part.tensor for part in parts]))


def merged_lengths(lengths: Lengths, sizes: Lengths) -> Lengths:
    counts = sizes.tensor
    require_in_graph((counts >= 0).all(), "`sizes` must be at least 0")
    fits = (counts >= 0).all() & (counts.sum() == lengths.tensor.shape[0])
    counts = _counts_that_fit(counts, fits, "`sizes` must add up to the sequences of this batch")
    return Lengths(_offsets(lengths.tensor).index_select(0, _offsets(counts)).diff())


def split_lengths(lengths: Lengths, parts: Lengths, steps: int) -> Lengths:
    require_total(parts, (steps,))
    counts, ends = parts.tensor, _offsets(parts.tensor).clamp(0, steps)
    is_end = torch.zeros(steps + 1, dtype=torch.int64, device="cpu").scatter(0, ends, torch.ones_like(ends))
    fits = (counts >= 0).all() & (counts.sum() == steps) & (is_end[lengths.tensor.cumsum(0)] == 1).all()
    message = "`lengths` must have one that ends where each sequence ends"
    return Lengths(_counts_that_fit(counts, fits, message))


def _counts_that_fit(counts: Tensor, fits: Tensor, message: str) -> Tensor:
    """Return counts; if they do not fit, the graph raises at run time."""
    require_in_graph(fits, message)
    number = counts.shape[0]
    # An index past the end stops also a program without this check, as those of ONNX are.
    return counts.index_select(0, torch.where(fits, torch.arange(number, device="cpu"), number))


def require_total(lengths: Lengths, shape: Sequence[int]) -> None:
    require_in_graph((lengths.tensor >= 0).all(), "`lengths` must be at least 0")
    require_in_graph(lengths.tensor.sum() == shape[0], "`lengths` must add up to the steps of `values`")


def require_steps_of_batch(subject: str, steps: int, total: int) -> None:
    _require_equal(subject, "have the steps of this batch", steps, total)


def require_batch_size(subject: str, lengths: Lengths, like: Lengths, name: str) -> None:
    _require_equal(subject, f"have as many sequences as {name}", lengths.tensor.shape[0], like.tensor.shape[0])


def require_same_lengths(subject: str, lengths: Lengths, like: Lengths) -> None:
    if lengths is like:
        return
    message = f"`{subject}` must have the lengths of this batch"
    check_size(lengths.tensor.shape[0] == like.tensor.shape[0], message)
    require_in_graph((lengths.tensor == like.tensor).all(), message)


def offsets(lengths: Lengths, device: torch.device) -> Tensor:
    return _offsets(lengths.tensor).to(device)


def _offsets(counts: Tensor) -> Tensor:
    return functional.pad(counts.cumsum(0), (1, 0))


def segment_ids(lengths: Lengths, steps: int, device: torch.device) -> Tensor:
    return torch.repeat_interleave(lengths.tensor, output_size=steps).to(device)


def positions(lengths: Lengths, steps: int, device: torch.device) -> Tensor:
    starts = lengths.tensor.cumsum(0) - lengths.tensor
    first = torch.repeat_interleave(starts, lengths.tensor, output_size=steps)
    return (torch.arange(steps, device="cpu") - first).to(device)


# ------------------------------------------------------------------------------------------------------------- padding


def to_padded(values: Tensor, lengths: Lengths, form: PaddedForm, padding_value: complex) -> Tensor:
    fill, time = _require_fill(padding_value, values.dtype), _time(form.total_length, lengths.tensor)
    rows = _places(lengths.tensor, form.side, time) + (lengths.tensor.cumsum(0) - lengths.tensor)[:, None]
    real = _checked_mask(lengths.tensor, True, form.side, time)
    index = torch.where(real, rows, values.shape[0]).to(values.device)
    index = index if form.batch_first else index.T
    more = torch.cat([values, values.new_full((1, *values.shape[1:]), fill)])
    return more.index_select(0, index.flatten()).view(*index.shape, *values.shape[1:])


def mask(lengths: Lengths, form: PaddedForm, device: torch.device) -> Tensor:
    time = _time(form.total_length, lengths.tensor)
    return _checked_mask(lengths.tensor, form.batch_first, form.side, time).to(device)


def from_padded(padded: Tensor, lengths: Lengths, batch_first: bool, side: PaddingSide) -> Tensor:
    counts, by_batch = lengths.tensor, padded if batch_first else padded.transpose(0, 1)
    _require_equal("lengths", "be as many as the sequences of `padded`", counts.shape[0], by_batch.shape[0])
    require_in_graph((counts >= 0).all(), "`lengths` must be at least 0")
    require_in_graph((counts <= by_batch.shape[1]).all(), "`lengths` must be at most the time axis of `padded`")
    real = _mask(counts, True, side, by_batch.shape[1])
    values: Tensor = by_batch[real.to(padded.device)]
    return values


def from_mask(padded: Tensor, mask: Tensor, batch_first: bool) -> tuple[Tensor, Lengths]:
    require_bools("mask", require_tensor("mask", mask))
    must = "have the first two axes of `padded`"
    if mask.dim() != 2:
        raise complaint(SeqbatchValueError, "mask", must, "others")
    for axis in (0, 1):
        _require_equal("mask", must, mask.shape[axis], padded.shape[axis], found="others")
    by_batch, real = (padded, mask) if batch_first else (padded.transpose(0, 1), mask.T)
    starts = (real & ~functional.pad(real, (1, 0))[:, :-1]).sum(1)
    require_in_graph((starts <= 1).all(), "`mask` must have its True steps side by side in each sequence")
    values: Tensor = by_batch[real.to(padded.device)]
    return values, Lengths(real.sum(1).cpu())


def _checked_mask(lengths: Tensor, batch_first: bool, side: PaddingSide, time: int) -> Tensor:
    """Compute the mask of real steps, `(batch, time)` or `(time, batch)`, on the host."""
    require_in_graph((lengths <= time).all(), "`total_length` must be at least the longest of `lengths`")
    return _mask(lengths, batch_first, side, time)


def _mask(lengths: Tensor, batch_first: bool, side: PaddingSide, time: int) -> Tensor:
    places = _places(lengths, side, time)
    real = (places >= 0) & (places < lengths[:, None])
    return real if batch_first else real.T


def _time(total_length: int | None, lengths: Tensor) -> int:
    """Return the number of steps to pad to, a SymInt unless `total_length` is an int."""
    return _longest(lengths) if total_length is None else _require_integer(total_length)


def _longest(lengths: Tensor) -> int:
    """Return the steps of the longest sequence, as a SymInt; 0 if there is none."""
    steps: Any = functional.pad(lengths, (1, 0)).max().item()
    number: int = steps  # a SymInt; `int()` would specialize it
    return number


def _require_integer(total_length: Any) -> int:
    """Return the number of steps to pad to if it is an integer, not a bool, and not negative, else raise."""
    # The message names the type, because the value of a SymFloat is unknown while tracing.
    if isinstance(total_length, float | torch.SymFloat):
        raise complaint(SeqbatchTypeError, "total_length", "be an integer", type_name(total_length))
    number: int = total_length  # without `int()`, because that would specialize a SymInt
    if isinstance(total_length, bool) or not isinstance(total_length, int | torch.SymInt):
        number = integer("total_length", total_length)
    message = "`total_length` must be at least 0; got a negative number."
    check_size_or(SeqbatchValueError, number >= 0, message)  # at run time if it is a SymInt
    return number


def _require_fill(fill: Any, dtype: torch.dtype) -> complex:
    """Return the padding value if the dtype can represent it, else raise."""
    if not isinstance(fill, int | float | complex | torch.SymInt | torch.SymFloat):
        # A scalar of NumPy is traced as a tensor, whose value is unknown.
        raise complaint(SeqbatchTypeError, "padding_value", "be a number of Python in a graph", type_name(fill))
    parts: list[Any] = [fill.real, fill.imag] if isinstance(fill, complex) else [fill]
    # In words, because the value of a SymInt or SymFloat is unknown while tracing.
    found = ""
    if len(parts) == 2 and not dtype.is_complex and parts.pop():
        found = "a complex number"
    elif not all(_is_in_range(part, dtype) for part in parts):
        found = "one out of its range"
    elif not (dtype.is_floating_point or dtype.is_complex) and int(parts[0]) != parts[0]:
        # Not `parts[0] % 1`, which is traced as 0 for a SymFloat.
        found = "a fraction"
    if found:
        raise complaint(SeqbatchValueError, "padding_value", f"be a value of {dtype}", found)
    number: complex = fill if isinstance(fill, complex) and dtype.is_complex else parts[0]
    return number


def _is_in_range(number: Any, dtype: torch.dtype) -> bool:
    """Return True if a dtype can represent a number up to rounding; floating ones have NaN, and some infinity."""
    if dtype is torch.bool:
        return bool(0 <= number <= 1)
    if not (dtype.is_floating_point or dtype.is_complex):
        return bool(torch.iinfo(dtype).min <= number <= torch.iinfo(dtype).max)
    if number in (math.inf, -math.inf):
        return torch.finfo(dtype).bits > 8 or dtype is torch.float8_e5m2
    return not abs(number) > torch.finfo(dtype).max


def _require_equal(
    subject: str,
    must: str,
    size: int,
    other: int,
    *,
    found: str = "fewer or more",
    error: type[SeqbatchError] = SeqbatchValueError,
) -> None:
    """Raise if sizes are known to differ; if they are unknown, add a check to the graph."""
    if known_or_false(size != other):
        raise complaint(error, subject, must, found)
    check_size(size == other, f"`{subject}` must {must}")


def _places(lengths: Tensor, side: PaddingSide, time: int) -> Tensor:
    """Compute the index in its sequence of the step at each position of `(batch, time)`."""
    places = torch.arange(time, device="cpu")
    return places - (time - lengths)[:, None] if side == "left" else places.expand(lengths.shape[0], time)


# --------------------------------------------------------------------------------------------------------------- steps


def slice_steps(
    values: Tensor, lengths: Lengths, steps: StepSlice, rows: tuple[int, ...] | None
) -> tuple[Tensor, Lengths]:
    first, numbers = slice_steps_of(lengths.tensor, steps)
    starts, counts = _offsets(lengths.tensor)[:-1] + first, lengths.tensor
    total = values.shape[0]
    since = torch.arange(total, device="cpu") - torch.repeat_interleave(starts, counts, output_size=total)
    reach = torch.repeat_interleave(numbers * steps.step, counts, output_size=total)
    kept = (since >= 0) & (since < reach) & (since % steps.step == 0)
    return values[kept.to(values.device)], Lengths(numbers)


def pick_steps(values: Tensor, lengths: Lengths, position: int, rows: tuple[int, ...] | None) -> Tensor:
    counts, ends = lengths.tensor, lengths.tensor.cumsum(0)
    index = ends - counts + position if position >= 0 else ends + position
    fits = counts > position if position >= 0 else counts >= -position
    return _rows_at(values, index, fits, "`index[1]` must name a step of each sequence")


def take_steps(values: Tensor, lengths: Lengths, positions: Tensor, of: Lengths) -> Tensor:
    counts, total = of.tensor, positions.shape[0]
    starts = torch.repeat_interleave(_offsets(lengths.tensor)[:-1], counts, output_size=total).to(positions.device)
    limits = torch.repeat_interleave(lengths.tensor, counts, output_size=total).to(positions.device)
    fits = (positions >= 0) & (positions < limits)
    message = "`indices` must be positions of steps of their sequences, counted from 0"
    return _rows_at(values, starts + positions, fits, message)


def join_steps(values: Tensor, parts: list[Lengths]) -> tuple[Tensor, Lengths]:
    counts, total = torch.stack([part.tensor for part in parts], 1), values.shape[0]
    # Where each sequence starts in the values of all batches, one batch after another.
    starts = _offsets(counts.T.flatten())[:-1].view(len(parts), -1).T.flatten()
    shifts = starts - _offsets(counts.flatten())[:-1]
    index = torch.repeat_interleave(shifts, counts.flatten(), output_size=total) + torch.arange(total, device="cpu")
    return values.index_select(0, index.to(values.device)), Lengths(counts.sum(1))


def _rows_at(values: Tensor, index: Tensor, fits: Tensor, message: str) -> Tensor:
    """Gather rows; where an index does not fit, the graph raises at run time."""
    require_in_graph(fits.all(), message)
    # An index past the end stops also a program without this check, as those of ONNX are.
    return values.index_select(0, torch.where(fits, index, values.shape[0]).to(values.device))


# -------------------------------------------------------------------------------------------- reductions and selection


def reduce(values: Tensor, lengths: Lengths, how: str) -> Tensor:
    return reductions.reduce_operator(values, lengths.tensor, how)[0]


def expand(rows: Tensor, lengths: Lengths, steps: int) -> Tensor:
    _require_equal("tensor", "have a row for each sequence", rows.shape[0], lengths.tensor.shape[0])
    return reductions.expand_operator(rows, lengths.tensor, steps)[0]


def drop_empty(rows: Tensor, lengths: Lengths) -> Tensor:
    return rows[(lengths.tensor > 0).to(rows.device)]


def chosen(index: Any, number: Callable[[], int]) -> list[int] | Tensor:
    """Return an index of sequences as positions; a Tensor stays as it is, for `positions_of`."""
    return index if isinstance(index, Tensor) else eager.chosen(index, number)


def positions_of(index: Tensor, size: int) -> Tensor:
    """Return an index of sequences as a mask, or as positions counted from the front, else raise."""
    refuse_bytes("index", index)
    if index.dtype is torch.bool and index.dim() == 1:
        must = "have one bool for each sequence, as it is a mask"
        _require_equal("index", must, index.shape[0], size, error=SeqbatchIndexError)
        return index
    numbers = require_integers("index", index if index.dim() else index[None]).long()
    require_in_graph(((numbers >= -size) & (numbers < size)).all(), "`index` must name sequences that are there")
    return torch.where(numbers < 0, numbers + size, numbers)
