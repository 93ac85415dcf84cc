"""The plan of an epoch: which sequences make a batch, and which batches all processes run at the same time."""

import hashlib

import attrs
import torch
from torch import Tensor


@attrs.frozen
class Rules:
    """What a plan follows, in numbers that can be saved; None is no limit."""

    batch_size: int | None
    max_steps: int | None
    shuffle: bool
    seed: int
    longest_first: bool
    pool: int
    world_size: int


@attrs.frozen(eq=False)
class Plan:
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

    def fill(self) -> float:
        """The part of all batches that is no padding, if each is padded to its longest sequence; 1 without steps."""
        padded = int((self.bounds.diff() * self.longest).sum())
        return int(self.steps.sum()) / padded if padded else 1.0


def plan_epoch(lengths: Tensor, rules: Rules, epoch: int) -> Plan:
    """Make the plan of an epoch, the same one in every process, by rules that `can_plan`.

    Args:
        lengths: `(sequences,)`, int64, on the host.
        rules: what it follows.
        epoch: which epoch.
    """
    order, generator = torch.arange(len(lengths), device="cpu"), None
    if rules.shuffle:
        generator = torch.Generator("cpu").manual_seed(_mix(rules.seed, epoch))
        order = torch.randperm(len(lengths), generator=generator, device="cpu")
    pooled = order[_by_pools(lengths[order], rules.pool, generator)]
    bounds = _cut(lengths[pooled], rules)
    if _fewest(bounds, rules) > len(lengths):  # where nearly every sequence is a batch by itself
        pooled = order[lengths[order].argsort(stable=True)]
        bounds = _cut(lengths[pooled], rules)
    ends = lengths[pooled].cumsum(0)
    bounds = _split(bounds, ends, _fewest(bounds, rules))
    steps = _steps(bounds, ends)
    batch_of = torch.repeat_interleave(torch.arange(len(steps), device="cpu"), bounds.diff())
    longest = torch.zeros_like(steps).scatter_reduce_(0, batch_of, lengths[pooled], "amax")
    return Plan(pooled, bounds, _rounds(steps, longest, rules, generator), steps, longest)


def can_plan(lengths: Tensor, rules: Rules) -> bool:
    """Tell whether there are enough sequences for as many batches as the limits ask for, in whole rounds."""
    return _fewest(_cut(lengths.sort().values, rules), rules) <= len(lengths)


def _mix(seed: int, epoch: int) -> int:
    """Make a seed of both, so that no other seed has the same order in another epoch."""
    return int.from_bytes(hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:7])


def _by_pools(lengths: Tensor, pool: int, generator: torch.Generator | None) -> Tensor:
    """Give the order in which pools are sorted in turn up and down, so that lengths are alike also where two meet.

    Where the first pool ends is random: otherwise few sequences would make the same batches in every epoch.
    """
    before = 0 if generator is None else int(torch.randint(pool, (1,), generator=generator, device="cpu"))
    which = (torch.arange(len(lengths), device="cpu") + before) // pool
    span = lengths.max() + 1
    return (which * span + torch.where(which % 2 == 0, lengths, span - 1 - lengths)).argsort(stable=True)


def _cut(lengths: Tensor, rules: Rules) -> Tensor:
    """Cut sequences into batches in their order, each as large as it may be; `(batches + 1,)`."""
    ends, count = lengths.cumsum(0), len(lengths)
    total = int(ends[-1])
    # No more than there is, for its sum with others must not overflow.
    budget = total if rules.max_steps is None else min(rules.max_steps, total)
    by_steps = torch.searchsorted(ends, ends - lengths + budget, right=True)  # where a batch ends, from each sequence
    by_number = (torch.arange(count, device="cpu") + min(rules.batch_size or count, count)).clamp(max=count)
    stops = torch.minimum(by_steps, by_number).tolist()
    bounds = [0]
    while bounds[-1] < count:
        bounds.append(stops[bounds[-1]])
    return torch.tensor(bounds, device="cpu")


def _fewest(bounds: Tensor, rules: Rules) -> int:
    """Give the least number of batches that is one of whole rounds."""
    return -(-(len(bounds) - 1) // rules.world_size) * rules.world_size


def _split(bounds: Tensor, ends: Tensor, batches: int) -> Tensor:
    """Halve those batches that have most sequences, and of these the largest, until there are so many.

    Their halves are alike, and so come in the same rounds.
    """
    while extra := batches - (len(bounds) - 1):
        sizes = bounds.diff()
        by_size = _sorted_by(sizes, _steps(bounds, ends))
        halved = by_size[sizes[by_size] > 1][-extra:]
        bounds = torch.cat([bounds, (bounds[halved] + bounds[halved + 1]) // 2]).sort().values
    return bounds


def _steps(bounds: Tensor, ends: Tensor) -> Tensor:
    return ends[bounds[1:] - 1].diff(prepend=ends.new_zeros(1))


def _sorted_by(first: Tensor, second: Tensor) -> Tensor:
    """Give the order of growing `first`, and of growing `second` where that is equal."""
    order = second.argsort(stable=True)
    return order[first[order].argsort(stable=True)]


def _rounds(steps: Tensor, longest: Tensor, rules: Rules, generator: torch.Generator | None) -> Tensor:
    """Put batches of similar longest sequence into a round; `(rounds, world_size)`.

    Of batches cut by number those have similar steps too, and batches cut by steps have similar steps anyway.
    """
    rounds = _sorted_by(longest, steps).view(-1, rules.world_size)
    if generator is not None:
        rounds = rounds[torch.randperm(len(rounds), generator=generator, device="cpu")]
    if rules.longest_first:
        first = int(steps[rounds].amax(1).argmax())
        rounds = torch.cat([rounds[first : first + 1], rounds[:first], rounds[first + 1 :]])
    return rounds
