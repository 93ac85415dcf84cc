"""Conversions while torch.compile or torch.export traces, when lengths are a tensor of unknown values."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqbatch._checks import complaint, integer, require_integers, type_name
from seqbatch._indices import refuse_bytes
from seqbatch._layout_checks import PaddingSide, require_bools
from seqbatch._modes import require_in_graph
from seqbatch.errors import SeqbatchIndexError, SeqbatchTypeError, SeqbatchValueError


def offsets(lengths: Tensor) -> Tensor:
    """Compute where each sequence starts and the last ends, `(batch + 1,)`."""
    return functional.pad(lengths.cumsum(0), (1, 0))


def rows(lengths: Tensor, steps: int) -> Tensor:
    """Compute the index of the sequence that each step belongs to, `(steps,)`."""
    return torch.repeat_interleave(lengths, output_size=steps)


def longest(lengths: Tensor) -> int:
    """Return the steps of the longest sequence, as a SymInt; 0 if there is none."""
    steps: Any = functional.pad(lengths, (1, 0)).max().item()
    number: int = steps  # a SymInt; `int()` would specialize it
    return number


def require_integer(total_length: Any) -> int:
    """Return the number of steps to pad to if it is an integer, not a bool, and not negative, else raise."""
    # The message names the type, because the value of a SymFloat is unknown while tracing.
    if isinstance(total_length, float | torch.SymFloat):
        raise complaint(SeqbatchTypeError, "total_length", "be an integer", type_name(total_length))
    number: int = total_length  # without `int()`, because that would specialize a SymInt
    if isinstance(total_length, bool) or not isinstance(total_length, int | torch.SymInt):
        number = integer("total_length", total_length)
    message = "`total_length` must be at least 0; got a negative number."
    torch._check_with(SeqbatchValueError, number >= 0, lambda: message)  # at run time if it is a SymInt
    return number


def mask(lengths: Tensor, batch_first: bool, side: PaddingSide, time: int) -> Tensor:
    """Compute the mask of real steps, `(batch, time)` or `(time, batch)`, on the host."""
    require_in_graph((lengths <= time).all(), "`total_length` must be at least the longest of `lengths`")
    return _mask(lengths, batch_first, side, time)


def _mask(lengths: Tensor, batch_first: bool, side: PaddingSide, time: int) -> Tensor:
    places = _places(lengths, side, time)
    real = (places >= 0) & (places < lengths[:, None])
    return real if batch_first else real.T


def require_fill(fill: Any, dtype: torch.dtype) -> complex:
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
    number: complex = complex(*parts) if len(parts) == 2 else parts[0]
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


def to_padded(
    values: Tensor, lengths: Tensor, batch_first: bool, side: PaddingSide, time: int, fill: complex
) -> Tensor:
    """Convert flat values to `(batch, time, *features)` or `(time, batch, *features)`."""
    rows = _places(lengths, side, time) + (lengths.cumsum(0) - lengths)[:, None]
    real = mask(lengths, True, side, time)
    index = torch.where(real, rows, values.shape[0]).to(values.device)
    index = index if batch_first else index.T
    more = torch.cat([values, values.new_full((1, *values.shape[1:]), fill)])
    return more.index_select(0, index.flatten()).view(*index.shape, *values.shape[1:])


def from_padded(padded: Tensor, lengths: Tensor, batch_first: bool, side: PaddingSide) -> Tensor:
    """Convert a padded tensor to flat values; its padding reaches none of them."""
    by_batch = padded if batch_first else padded.transpose(0, 1)
    if _differ(lengths.shape[0], by_batch.shape[0], "`lengths` must be as many as the sequences of `padded`"):
        raise complaint(SeqbatchValueError, "lengths", "be as many as the sequences of `padded`", "fewer or more")
    require_in_graph((lengths >= 0).all(), "`lengths` must be at least 0")
    require_in_graph((lengths <= by_batch.shape[1]).all(), "`lengths` must be at most the time axis of `padded`")
    real = _mask(lengths, True, side, by_batch.shape[1])
    values: Tensor = by_batch[real.to(padded.device)]
    return values


def from_mask(padded: Tensor, mask: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Convert a padded tensor to flat values by its mask, and return their lengths; padding reaches no value."""
    require_bools("mask", mask)
    must = "have the first two axes of `padded`"
    if mask.dim() != 2 or any(_differ(mask.shape[axis], padded.shape[axis], f"`mask` must {must}") for axis in (0, 1)):
        raise complaint(SeqbatchValueError, "mask", must, "others")
    by_batch, real = (padded, mask) if batch_first else (padded.transpose(0, 1), mask.T)
    starts = (real & ~functional.pad(real, (1, 0))[:, :-1]).sum(1)
    require_in_graph((starts <= 1).all(), "`mask` must have its True steps side by side in each sequence")
    values: Tensor = by_batch[real.to(padded.device)]
    return values, real.sum(1).cpu()


def lengths_between(offsets: Tensor, steps: int) -> Tensor:
    """Compute the lengths between offsets, which must be non-decreasing, from 0 to the steps of flat values."""
    torch._check(offsets.shape[0] > 0, lambda: "`offsets` must start with 0; got no offsets.")
    lengths = offsets.diff()
    require_in_graph((offsets[:1] == 0).all(), "`offsets` must start with 0")
    require_in_graph((offsets[-1:] == steps).all(), "`offsets` must end with the steps of `values`")
    require_in_graph((lengths >= 0).all(), "`offsets` must never fall")
    return lengths


def chosen(index: Tensor, size: int) -> Tensor:
    """Return an index of sequences as a mask, or as positions counted from the front, else raise."""
    refuse_bytes("index", index)
    if index.dtype is torch.bool and index.dim() == 1:
        must = "have one bool for each sequence, as it is a mask"
        if _differ(index.shape[0], size, f"`index` must {must}"):
            raise complaint(SeqbatchIndexError, "index", must, "fewer or more")
        return index
    numbers = require_integers("index", index if index.dim() else index[None]).long()
    require_in_graph(((numbers >= -size) & (numbers < size)).all(), "`index` must name sequences that are there")
    return torch.where(numbers < 0, numbers + size, numbers)


def _differ(size: int, other: int, message: str) -> bool:
    """Return True if sizes are known to differ; if they are unknown, add a check with this message to the graph."""
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # here, because importing it is slow

    if guard_or_false(size != other):
        return True
    torch._check(size == other, lambda: message)
    return False


def _places(lengths: Tensor, side: PaddingSide, time: int) -> Tensor:
    """Compute the index in its sequence of the step at each position of `(batch, time)`."""
    places = torch.arange(time, device="cpu")
    return places - (time - lengths)[:, None] if side == "left" else places.expand(lengths.shape[0], time)
