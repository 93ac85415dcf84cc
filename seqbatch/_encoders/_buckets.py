"""Buckets: sequences of similar lengths side by side in one padded tensor, unpadded where lengths are equal."""

from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from seqbatch._batch import SequenceBatch
from seqbatch._ops.layouts import rearrange
from seqbatch._structure.plans import Plan
from seqbatch._structure.sequence_lengths import Lengths, to_device

# The cost of one step outside of attention, in pairs of steps.
STEP = 32


class Buckets(NamedTuple):
    """The buckets of a batch: their rows end to end, sequence by sequence, the longest sequences first.

    Args:
        shapes: sequences and steps of each bucket.
        enter: the plan from flat values to rows; None if they are equal.
        masks: the mask that is added to the scores of each bucket, see `_mask_of_padding`; None without padding.
    """

    shapes: list[tuple[int, int]]
    enter: Plan | None
    masks: list[Tensor | None]

    def to(self, device: torch.device) -> Self:
        """Copy indices and masks to a device."""
        masks = [None if mask is None else to_device(mask, device) for mask in self.masks]
        return type(self)(self.shapes, None if self.enter is None else self.enter.to(device), masks)

    def fill(self, values: Tensor) -> Tensor:
        """Convert flat values to the rows of all buckets, zeros for padding."""
        return values if self.enter is None else rearrange(values, self.enter)

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Split the rows of all buckets into those of each."""
        return torch.split(rows, [number * steps for number, steps in self.shapes])

    def join(self, parts: list[Tensor]) -> Tensor:
        """Convert the rows of each bucket to flat values; those of padding are never read."""
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        return rows if self.enter is None else rearrange(rows, self.enter.inverse)


def buckets_of(lengths: Lengths, overhead: int, causal: bool, extra: int, dtype: torch.dtype) -> Buckets:
    """Split a batch into buckets for attention; no length may be 0.

    Args:
        lengths: the lengths.
        overhead: the cost of one extra bucket, in pairs of steps; 0 for equal lengths in each.
        causal: True if steps do not attend to later ones, and so not to padding.
        extra: the number of keys before the steps of each sequence, which every step attends to.
        dtype: the dtype of the masks.
    """
    order, counts = lengths.order, lengths.tensor.index_select(0, lengths.order)
    shapes = bucket_shapes(counts.tolist(), overhead)
    firsts = lengths.offsets.index_select(0, order)
    takes, masks = [], []
    for part, first, (_, longest) in zip(
        *(one.split([number for number, _ in shapes]) for one in (counts, firsts)), shapes, strict=True
    ):
        steps = torch.arange(longest, device="cpu")
        # Padding takes the row after the last, which `Plan` fills.
        takes.append(torch.where(steps < part[:, None], steps + first[:, None], lengths.total).flatten())
        masks.append(None if causal else _mask_of_padding(part, extra, dtype))
    take = torch.cat(takes)
    if torch.equal(take, torch.arange(lengths.total, device="cpu")):
        return Buckets(shapes, None, masks)
    return Buckets(shapes, Plan.gather(take, lengths.total), masks)


def bucket_shapes(counts: list[int], overhead: int) -> list[tuple[int, int]]:
    """Assign sequences to buckets: a bucket is full when its padding would cost more than another bucket.

    So padding never costs more than the buckets do, and there are few buckets, however skewed the lengths are.

    Args:
        counts: the steps of each sequence, the longest first.
        overhead: the cost of a bucket beside its steps, in pairs of steps.

    Returns:
        for each bucket the number of its sequences, and the steps of the longest.
    """
    shapes: list[tuple[int, int]] = []
    number, longest, padding = 0, 0, 0
    for count, equals in groupby(counts):
        more = len([*equals])
        padding += more * (_pairs_of_steps(longest) - _pairs_of_steps(count))
        if number and padding > overhead:
            shapes.append((number, longest))
            number, padding = 0, 0
        if not number:
            longest, padding = count, 0
        number += more
    return [*shapes, (number, longest)]


def _pairs_of_steps(steps: int) -> int:
    """Return the cost of a sequence, in pairs of steps."""
    return steps * (steps + STEP)


def _mask_of_padding(counts: Tensor, extra: int, dtype: torch.dtype) -> Tensor | None:
    """Build the mask that is added to the scores of a bucket: -inf where a key is padding.

    Args:
        counts: `(number,)`, the steps of each sequence in it, the longest first.
        extra: as for `buckets_of`.
        dtype: as for `buckets_of`.

    Returns:
        `(number, 1, 1, extra + steps)`; None without padding. Every row has a key to attend to, because the
        first step of a sequence is never padding.
    """
    longest = int(counts[0])
    if counts[-1] == longest:
        return None
    hidden = torch.arange(-extra, longest, device="cpu") >= counts[:, None]
    return torch.zeros(hidden.shape, dtype=dtype, device="cpu").masked_fill(hidden, float("-inf"))[:, None, None]


def run_one_by_one(call: Callable[[Tensor], Tensor], batch: SequenceBatch) -> SequenceBatch:
    """Call a function on each sequence alone; arguments are as for `run_in_groups`."""
    return batch.with_values(torch.cat([call(one[None])[0] for one in batch if len(one)]))


def run_in_groups(call: Callable[[Tensor], Tensor], batch: SequenceBatch) -> SequenceBatch:
    """Call a function once for each length, on all sequences of that length, without padding or mask.

    Args:
        call: from `(number, steps, *features)` to the same number of sequences and steps.
        batch: a batch of at least one step.
    """
    lengths: Any = batch.structure.without_empty
    groups = lengths.plan(buckets_of, 0, False, 0, torch.float32, device=batch.device)
    parts = zip(groups.split(groups.fill(batch.values)), groups.shapes, strict=True)
    results = [call(part.unflatten(0, shape)).flatten(0, 1) for part, shape in parts]
    return batch.with_values(groups.join(results))
