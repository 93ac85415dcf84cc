"""Buckets: sequences of similar lengths side by side in one padded tensor, unpadded where lengths are equal.

Buckets of one batch hold similar lengths. Buckets of pairs, of a query and its memory, are similar in both lengths.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate, chain, groupby, pairwise
from operator import itemgetter
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from seqbatch._batch import SequenceBatch
from seqbatch._ops.layouts import flat_to_padded, padded_to_flat, rearrange
from seqbatch._structure.plans import Plan, ranges
from seqbatch._structure.sequence_lengths import Lengths, int64_tensor, to_device

# The cost of one extra bucket, in pairs of steps times features: measured on the CPU, forward and backward. Elsewhere
# it is mostly the launch of kernels, and this is an estimate.
OVERHEAD = {"cpu": 2**18}
OVERHEAD_ELSEWHERE = 2**26

# The cost of one step outside of attention, in pairs of steps.
STEP = 32


# The cost of one extra bucket of pairs of sequences, in extra buckets of one batch: it is sought in two dimensions, and
# both sides are planned. Measured as that; half and twice as much take about as long.
BUCKETS_OF_PAIRS = 4

# The cost of the second bucket of pairs, in extra ones: with it, rows are gathered by plans, and not copied by lengths.
SECOND_BUCKET = 4


def bucket_overhead(size: int, device: torch.device) -> int:
    """Return the cost of one extra bucket, in pairs of steps, where a pair costs as much as `size` features."""
    return OVERHEAD.get(device.type, OVERHEAD_ELSEWHERE) // max(size, 1)


def pair_bucket_overhead(size: int, device: torch.device) -> int:
    """Return the cost of one extra bucket of pairs of sequences, as `bucket_overhead`."""
    return BUCKETS_OF_PAIRS * bucket_overhead(size, device)


class Buckets(NamedTuple):
    """The buckets of a batch: their rows end to end, sequence by sequence.

    Args:
        shapes: sequences and steps of each bucket.
        enter: the plan from flat values to rows; None if all sequences are in one bucket, in their order.
        masks: the mask of each bucket, see `_masks_of_real_steps`; None without padding. Those of queries are None.
    """

    shapes: list[tuple[int, int]]
    enter: Plan | None
    masks: list[Tensor | None]

    def to(self, device: torch.device) -> Self:
        """Copy indices and masks to a device."""
        masks = [None if mask is None else to_device(mask, device) for mask in self.masks]
        return type(self)(self.shapes, None if self.enter is None else self.enter.to(device), masks)

    def fill(self, values: Tensor, lengths: Lengths) -> Tensor:
        """Convert flat values of these lengths to the rows of all buckets, zeros for padding."""
        if self.enter is not None:
            return rearrange(values, self.enter)
        ((number, steps),) = self.shapes
        if number * steps == len(values):
            return values
        return flat_to_padded(values, lengths, True, "right", steps, 0).flatten(0, 1)

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Split the rows of all buckets into those of each."""
        if len(self.shapes) == 1:
            return (rows,)
        return torch.split(rows, [number * steps for number, steps in self.shapes])

    def join(self, parts: list[Tensor], lengths: Lengths) -> Tensor:
        """Convert the rows of each bucket to flat values, zeros where none holds a step; padding is never read."""
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.enter is not None:
            return rearrange(rows, self.enter.inverse)
        if len(rows) == lengths.total:
            return rows
        return padded_to_flat(rows.unflatten(0, self.shapes[0]), lengths, True, "right")


def buckets_of(lengths: Lengths, overhead: int, causal: bool, extra: int) -> Buckets:
    """Split a batch into buckets for attention; no length may be 0.

    Args:
        lengths: the lengths.
        overhead: the cost of one extra bucket, in pairs of steps; 0 for equal lengths in each.
        causal: True if steps do not attend to later ones, and so not to padding.
        extra: the number of keys before the steps of each sequence, which every step attends to.
    """
    counts = lengths.tensor.index_select(0, lengths.order)
    shapes = bucket_shapes(counts.tolist(), overhead)
    is_one = len(shapes) == 1
    masks = _no_masks(shapes) if causal else _masks_of_real_steps(lengths.tensor if is_one else counts, shapes, extra)
    return Buckets(shapes, None if is_one else _plan_of_rows(lengths, lengths.order, counts, shapes), masks)


def _plan_of_rows(lengths: Lengths, order: Tensor, counts: Tensor, shapes: list[tuple[int, int]]) -> Plan:
    """Compute the plan from flat values to the rows of buckets.

    Args:
        lengths: the lengths of the batch.
        order: `(number,)`, the index of each sequence in the buckets; the others are left out.
        counts: `(number,)`, the steps of each.
        shapes: sequences and steps of each bucket.
    """
    steps = int64_tensor(chain.from_iterable([longest] * number for number, longest in shapes))
    total, rows = int(counts.sum()), sum(number * longest for number, longest in shapes)
    sources = ranges(lengths.offsets.index_select(0, order), counts, total)
    outputs = ranges(steps.cumsum(0) - steps, counts, total)
    return Plan.match(sources, outputs, lengths.total, rows)


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


def _no_masks(shapes: list[tuple[int, int]]) -> list[Tensor | None]:
    return [None] * len(shapes)


def _masks_of_real_steps(counts: Tensor, shapes: list[tuple[int, int]], extra: int) -> list[Tensor | None]:
    """Build the masks of all buckets, True where a key is not padding; arguments are as for the functions above.

    Returns:
        for each bucket `(number, 1, 1, extra + steps)`, bool; None without padding. Every row has a key to attend to:
        one of the extra keys, or the first step of a sequence, which is not padding.
    """
    masks: list[Tensor | None] = []
    for part, (number, longest) in zip(counts.split([number for number, _ in shapes]), shapes, strict=True):
        keys = torch.arange(-extra, longest, device="cpu")
        has_padding = int(part.sum()) < number * longest
        masks.append((keys < part[:, None])[:, None, None] if has_padding else None)
    return masks


# ---------------------------------------------------------------------------------------------------------------- pairs


class PairBuckets(NamedTuple):
    """The buckets of pairs of sequences, a query and its memory; a bucket of both has the same pairs.

    Args:
        queries: the buckets of the queries.
        memory: the buckets of memory.
        weights: the plan from the scores of all buckets, `(number, query steps, memory steps)` each, end to end, to the
            weights of each query step over the steps of its memory; None if not asked for.
    """

    queries: Buckets
    memory: Buckets
    weights: Plan | None

    def to(self, device: torch.device) -> Self:
        """Copy indices and masks to a device."""
        weights = None if self.weights is None else self.weights.to(device)
        return type(self)(self.queries.to(device), self.memory.to(device), weights)

    def join_weights(self, parts: list[Tensor], like: Tensor) -> Tensor | None:
        """Convert the weights of each bucket to those of all query steps end to end; None if not asked for."""
        if self.weights is None:
            return None
        flat = torch.cat([part.flatten() for part in parts]) if parts else like.new_zeros(0)
        return rearrange(flat, self.weights)


def pair_buckets_of(
    memory: Lengths,
    query_lengths: tuple[int, ...],
    overhead: int,
    least: int,
    extra: int,
    with_weights: bool,
) -> PairBuckets:
    """Split pairs into buckets for attention; those without a query step are left out.

    Args:
        memory: the lengths of memory.
        query_lengths: the lengths of the queries, as integers: equal ones then find the plan that `memory` keeps.
        overhead: as for `buckets_of`.
        least: the fewest steps of memory; pairs with fewer are left out.
        extra: as for `buckets_of`.
        with_weights: whether the plan of the weights is needed.
    """
    pairs = [*zip(query_lengths, memory.counts, strict=True)]
    chosen = bucket_pairs(pairs, overhead, least)
    shapes, of_memory = ([(len(some), max(pairs[i][side] for i in some)) for some in chosen] for side in (0, 1))
    is_one = [len(some) for some in chosen] == [len(pairs)]
    if is_one and not with_weights:
        masks = _masks_of_real_steps(memory.tensor, of_memory, extra)
        return PairBuckets(Buckets(shapes, None, _no_masks(shapes)), Buckets(of_memory, None, masks), None)
    queries, order = Lengths(query_lengths), int64_tensor(chain.from_iterable(chosen))
    counts, memory_counts = (lengths.tensor.index_select(0, order) for lengths in (queries, memory))
    plan = None if is_one else _plan_of_rows(queries, order, counts, shapes)
    memory_plan = None if is_one else _plan_of_rows(memory, order, memory_counts, of_memory)
    masks = _masks_of_real_steps(memory_counts, of_memory, extra)
    weights = _plan_of_weights(queries, memory, order, shapes, of_memory) if with_weights else None
    return PairBuckets(Buckets(shapes, plan, _no_masks(shapes)), Buckets(of_memory, memory_plan, masks), weights)


def _plan_of_weights(
    queries: Lengths,
    memory: Lengths,
    order: Tensor,
    shapes: list[tuple[int, int]],
    of_memory: list[tuple[int, int]],
) -> Plan:
    """Compute the plan of `PairBuckets.weights`.

    Args:
        queries: the lengths of the queries.
        memory: the lengths of memory.
        order: as for `_plan_of_rows`.
        shapes: sequences and query steps of each bucket.
        of_memory: sequences and memory steps of each bucket.
    """
    sizes = [(number, steps, width) for (number, steps), (_, width) in zip(shapes, of_memory, strict=True)]
    strides = int64_tensor(chain.from_iterable([width] * number for number, _, width in sizes))
    areas = int64_tensor(chain.from_iterable([steps * width] * number for number, steps, width in sizes))
    ends, ids = areas.cumsum(0), queries.segment_ids
    first = torch.zeros_like(queries.tensor).scatter_(0, order, ends - areas)
    stride = torch.zeros_like(queries.tensor).scatter_(0, order, strides)
    counts = memory.tensor.index_select(0, ids)
    starts = first.index_select(0, ids) + queries.positions * stride.index_select(0, ids)
    rows = sum(number * steps * width for number, steps, width in sizes)
    return Plan.gather(ranges(starts, counts, int(counts.sum())), rows)


def bucket_pairs(pairs: Iterable[tuple[int, int]], overhead: int, least: int) -> list[list[int]]:
    """Assign pairs of sequences to buckets: a bucket is split in two while that saves more than a bucket costs.

    So the padding of a bucket costs at most a few times what another bucket does, by the logarithm of its number of
    pairs, and there are few buckets, however skewed the lengths are.

    Args:
        pairs: the lengths of a query and of its memory.
        overhead: the cost of a bucket beside its steps, in pairs of steps.
        least: the fewest steps of memory; pairs with fewer, and those without a query step, are left out.

    Returns:
        for each bucket the indices of its pairs, ascending.
    """
    places: dict[tuple[int, int], list[int]] = {}
    number_of_pairs = 0
    for number_of_pairs, pair in enumerate(pairs, 1):
        if pair[0] and pair[1] >= least:
            places.setdefault(pair, []).append(number_of_pairs - 1)
    numbers = {pair: len(indices) for pair, indices in places.items()}
    buckets, waiting = [], [[*places]] if places else []
    while waiting:
        some = waiting.pop()
        is_all = sum(numbers[pair] for pair in some) == number_of_pairs
        parts = _split_pairs(some, numbers, overhead * (1 + SECOND_BUCKET) if is_all else overhead)
        waiting += parts
        if not parts:
            buckets.append(sorted(chain.from_iterable(places[pair] for pair in some)))
    return buckets


def _split_pairs(
    pairs: list[tuple[int, int]], numbers: Mapping[tuple[int, int], int], overhead: int
) -> list[list[tuple[int, int]]]:
    """Split a bucket in two where that saves most, by the lengths of queries or of memory; empty if by too little."""
    total = sum(numbers[pair] for pair in pairs)
    parts: list[list[tuple[int, int]]] = []
    least = total * _cost_of_pair(*(max(pair[side] for pair in pairs) for side in (0, 1))) - overhead
    if least <= sum(numbers[pair] * _cost_of_pair(*pair) for pair in pairs):  # the cost without any padding
        return []
    for side in (0, 1):
        ordered = sorted(pairs, key=itemgetter(side))
        others = [pair[1 - side] for pair in ordered]
        before, after = [*accumulate(others, max)], [*accumulate(reversed(others), max)][::-1]
        number, longest = 0, ordered[-1][side]
        for i, (pair, following) in enumerate(pairwise(ordered), 1):
            number += numbers[pair]
            if pair[side] == following[side]:
                continue
            shorter = number * _cost_of_pair(pair[side], before[i - 1])
            cost = shorter + (total - number) * _cost_of_pair(longest, after[i])
            if cost < least:
                least, parts = cost, [ordered[:i], ordered[i:]]
    return parts


def _cost_of_pair(steps: int, others: int) -> int:
    """Return the cost of a pair of sequences, in pairs of steps; symmetric."""
    return steps * others + STEP // 2 * (steps + others)


def run_pairs_one_by_one(
    call: Callable[[Tensor, Tensor], Tensor], queries: SequenceBatch, memory: SequenceBatch
) -> SequenceBatch:
    """Call a function on each pair alone; arguments are as for `run_pairs_in_groups`."""
    pairs = zip(queries, memory, strict=True)
    return queries.with_values(torch.cat([call(one[None], other[None])[0] for one, other in pairs if len(one)]))


def run_pairs_in_groups(
    call: Callable[[Tensor, Tensor], Tensor], queries: SequenceBatch, memory: SequenceBatch
) -> SequenceBatch:
    """Call a function once for each pair of lengths, on all sequences of these lengths, without padding or mask.

    Sequences without memory are run one by one.

    Args:
        call: from `(number, query steps, *features)` and `(number, memory steps, *features)`, where memory may have no
            steps, to the same number of sequences and query steps.
        queries: a batch of at least one step.
        memory: a batch of the same batch size.
    """
    groups = memory.structure.plan(pair_buckets_of, queries.lengths, 0, 0, 0, False, device=memory.device)
    results: list[Tensor] = []
    for one, other, shape, memory_shape in zip(
        groups.queries.split(groups.queries.fill(queries.values, queries.structure)),
        groups.memory.split(groups.memory.fill(memory.values, memory.structure)),
        groups.queries.shapes,
        groups.memory.shapes,
        strict=True,
    ):
        # One by one without memory, because in PyTorch a NaN in one of the queries then reaches all of them.
        together = shape[0] if memory_shape[1] else 1
        pairs = (part.unflatten(0, sizes).split(together) for part, sizes in ((one, shape), (other, memory_shape)))
        results += [call(*pair).flatten(0, 1) for pair in zip(*pairs, strict=True)]
    return queries.with_values(groups.queries.join(results, queries.structure))


# ------------------------------------------------------------------------------------------ layers called as themselves


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
    groups = lengths.plan(buckets_of, 0, False, 0, device=batch.device)
    parts = zip(groups.split(groups.fill(batch.values, lengths)), groups.shapes, strict=True)
    results = [call(part.unflatten(0, shape)).flatten(0, 1) for part, shape in parts]
    return batch.with_values(groups.join(results, lengths))
