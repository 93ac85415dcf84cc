"""The batches of an epoch: the sequences of each batch, and the batches that processes run at the same time."""

import hashlib
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

# With `max_steps`, the share of extra batches in an epoch, compared with all sequences sorted. Shuffled ones had 0 to 4
# percent more for uniform, log-normal and heavy-tailed lengths, and 0.5 percent for hundreds of batches.
EXTRA_BATCHES = 0.02
# How many orders are drawn for an epoch until one fits; with few batches, about every second one does.
MAX_SHUFFLES = 10


@attrs.frozen
class BatchingOptions:
    """The arguments that determine the batches of an epoch, as values that can be saved; None means no limit."""

    batch_size: int | None
    max_steps: int | None
    shuffle: bool
    seed: int
    longest_first: bool
    pool: int
    world_size: int


@attrs.frozen(eq=False)
class EpochBatches:
    """The batches of an epoch, for all processes.

    Args:
        order: `(sequences,)`, int64, the index of every sequence, batch by batch.
        bounds: `(batches + 1,)`, int64, where each batch begins in the order.
        rounds: `(rounds, world_size)`, int64, the batch that each process has in each round.
        steps: `(batches,)`, int64, the steps of each batch.
        longest: `(batches,)`, int64, the steps of its longest sequence.
    """

    order: Tensor
    bounds: Tensor
    rounds: Tensor
    steps: Tensor
    longest: Tensor

    def of_process(self, rank: int, first: int) -> Iterator[list[int]]:
        """Yield the sequences of each batch of one process, from one position of the epoch on."""
        bounds = self.bounds.tolist()
        for i in self.rounds[first:, rank].tolist():
            yield self.order[bounds[i] : bounds[i + 1]].tolist()

    def share_of_real_steps(self) -> float:
        """Return the share of steps that are not padding, each batch padded to its longest; 1 without steps."""
        padded = int((self.bounds.diff() * self.longest).sum())
        return int(self.steps.sum()) / padded if padded else 1.0


def count_batches(lengths: Tensor, options: BatchingOptions) -> int:
    """Compute the number of batches of every epoch, of all processes together.

    With `max_steps`, the number of batches cut from shuffled sequences varies a little, so this adds some room. Every
    epoch that fits gets exactly this number, by halving batches.

    Args:
        lengths: `(sequences,)`, int64, on the host.
        options: the arguments of the epochs.

    Returns:
        a multiple of the number of processes; it may exceed the number of sequences.
    """
    count = len(_cut_into_batches(lengths.sort().values, options)) - 1
    if not (options.shuffle and options.max_steps is not None):
        return _rounded_up(count, options)
    # Never more than one for each sequence, because no batch may be empty.
    most = len(lengths) // options.world_size * options.world_size
    return max(_rounded_up(count, options), min(_rounded_up(count + int(EXTRA_BATCHES * count), options), most))


def make_batches(lengths: Tensor, options: BatchingOptions, epoch: int, batches: int) -> EpochBatches:
    """Put the sequences of an epoch into batches, the same ones in every process.

    Args:
        lengths: `(sequences,)`, int64, on the host.
        options: its arguments.
        epoch: the epoch.
        batches: the number of batches, as `count_batches` returns, at most one for each sequence.
    """
    generator = torch.Generator("cpu").manual_seed(_mixed_seed(options.seed, epoch)) if options.shuffle else None
    ordered, bounds = _order_and_bounds(lengths, options, batches, generator)
    ends = lengths[ordered].cumsum(0)
    bounds = _halve_batches(bounds, ends, batches)
    steps = _steps_of(bounds, ends)
    batch_of = torch.repeat_interleave(torch.arange(len(steps), device="cpu"), bounds.diff())
    longest = torch.zeros_like(steps).scatter_reduce_(0, batch_of, lengths[ordered], "amax")
    return EpochBatches(ordered, bounds, _group_into_rounds(steps, longest, options, generator), steps, longest)


def _order_and_bounds(
    lengths: Tensor, options: BatchingOptions, batches: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return an order of the sequences and the bounds of at most `batches` batches in it."""
    order = torch.arange(len(lengths), device="cpu")
    if generator is not None:
        for _ in range(MAX_SHUFFLES):
            order = torch.randperm(len(lengths), generator=generator, device="cpu")
            pooled = order[_order_by_pools(lengths[order], options.pool, generator)]
            bounds = _cut_into_batches(lengths[pooled], options)
            if len(bounds) - 1 <= batches:
                return pooled, bounds
    # Sorted as a whole they fit, because `batches` was counted so; sequences of equal length are shuffled.
    ordered = order[lengths[order].argsort(stable=True)]
    return ordered, _cut_into_batches(lengths[ordered], options)


def _mixed_seed(seed: int, epoch: int) -> int:
    """Hash a seed and an epoch to one seed, so that no other seed has the same order in another epoch."""
    return int.from_bytes(hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:7])


def _order_by_pools(lengths: Tensor, pool: int, generator: torch.Generator) -> Tensor:
    """Return the order that sorts pools alternately up and down, so that lengths are similar where two meet.

    The first pool ends at random, because few sequences would otherwise form the same batches in every epoch.
    """
    before = int(torch.randint(pool, (1,), generator=generator, device="cpu"))
    which = (torch.arange(len(lengths), device="cpu") + before) // pool
    span = lengths.max() + 1
    return (which * span + torch.where(which % 2 == 0, lengths, span - 1 - lengths)).argsort(stable=True)


def _cut_into_batches(lengths: Tensor, options: BatchingOptions) -> Tensor:
    """Cut sequences into batches in their order, each as large as it may be; `(batches + 1,)`."""
    ends, count = lengths.cumsum(0), len(lengths)
    total = int(ends[-1])
    # At most the total, because its sum with others must not overflow.
    budget = total if options.max_steps is None else min(options.max_steps, total)
    by_steps = torch.searchsorted(ends, ends - lengths + budget, right=True)  # where a batch ends, from each sequence
    by_number = (torch.arange(count, device="cpu") + min(options.batch_size or count, count)).clamp(max=count)
    stops = torch.minimum(by_steps, by_number).tolist()
    bounds = [0]
    while bounds[-1] < count:
        bounds.append(stops[bounds[-1]])
    return torch.tensor(bounds, device="cpu")


def _rounded_up(batches: int, options: BatchingOptions) -> int:
    """Round a number of batches up to a multiple of the number of processes."""
    return -(-batches // options.world_size) * options.world_size


def _halve_batches(bounds: Tensor, ends: Tensor, batches: int) -> Tensor:
    """Halve the batches of most sequences, and among these the largest, up to a number of batches.

    The halves are similar, so they come in the same rounds.
    """
    while extra := batches - (len(bounds) - 1):
        sizes = bounds.diff()
        by_size = _sorted_by(sizes, _steps_of(bounds, ends))
        halved = by_size[sizes[by_size] > 1][-extra:]
        bounds = torch.cat([bounds, (bounds[halved] + bounds[halved + 1]) // 2]).sort().values
    return bounds


def _steps_of(bounds: Tensor, ends: Tensor) -> Tensor:
    return ends[bounds[1:] - 1].diff(prepend=ends.new_zeros(1))


def _sorted_by(first: Tensor, second: Tensor) -> Tensor:
    """Return the order that sorts by `first`, and by `second` where that is equal."""
    order = second.argsort(stable=True)
    return order[first[order].argsort(stable=True)]


def _group_into_rounds(
    steps: Tensor, longest: Tensor, options: BatchingOptions, generator: torch.Generator | None
) -> Tensor:
    """Put batches of similar longest sequence into a round; `(rounds, world_size)`.

    Batches cut by number then have similar steps too, and batches cut by steps have similar steps anyway.
    """
    rounds = _sorted_by(longest, steps).view(-1, options.world_size)
    if generator is not None:
        rounds = rounds[torch.randperm(len(rounds), generator=generator, device="cpu")]
    if options.longest_first:
        first = int(steps[rounds].amax(1).argmax())
        rounds = torch.cat([rounds[first : first + 1], rounds[:first], rounds[first + 1 :]])
    return rounds
