"""The arguments of a batch sampler: checks and defaults."""

from array import array
from collections.abc import Sequence

from torch import Tensor, distributed

from seqbatch._checks.arguments import at_least, lengths_of
from seqbatch._checks.grammar import complaint, counted
from seqbatch.data._epoch_batches import BatchingOptions, count_batches
from seqbatch.errors import SeqbatchValueError

# Batches that are sorted together, on average: with more, fill hardly grows, and the shuffle is weaker.
POOLED_BATCHES = 64


def current_processes() -> tuple[int, int]:
    """Return rank and world size as `torch.distributed` has them now."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def require_processes(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    """Return rank and world size, or None if neither is given; raise if they are invalid."""
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None:
        names = ("rank", "world_size") if rank is None else ("world_size", "rank")
        raise complaint(SeqbatchValueError, names[0], f"be given with {names[1]}", None)
    world_size = at_least("world_size", world_size, 1)
    rank = at_least("rank", rank, 0)
    if rank >= world_size:
        raise complaint(SeqbatchValueError, "rank", f"be less than world_size, {world_size}", rank)
    return rank, world_size


def require_limits(batch_size: int | None, max_steps: int | None) -> tuple[int | None, int | None]:
    """Return both if one is given and neither is below 1, else raise."""
    if batch_size is None and max_steps is None:
        raise complaint(SeqbatchValueError, "batch_size", "be given, or max_steps", "neither")
    return (
        None if batch_size is None else at_least("batch_size", batch_size, 1),
        None if max_steps is None else at_least("max_steps", max_steps, 1),
    )


def default_pool(lengths: Sequence[int], batch_size: int | None, max_steps: int | None) -> int:
    """Compute the number of sequences in POOLED_BATCHES batches of mean length."""
    most = batch_size or len(lengths)
    if max_steps is not None:
        most = min(most, max_steps * len(lengths) // max(1, sum(lengths)))
    return POOLED_BATCHES * max(1, most)


def require_lengths(lengths: Sequence[int] | Tensor) -> "array[int]":
    """Return at least one length as an array, else raise; their sums must not overflow."""
    known = lengths_of("lengths", lengths)
    if not known:
        raise complaint(SeqbatchValueError, "lengths", "hold the length of one sequence or more", "none")
    # A plan adds two sums of lengths, and sorts by pool and length in one number.
    most = 2**62 // len(known)
    if (longest := max(known)) >= most:
        must = f"be less than {most}, for {counted(len(known), 'sequence')}"
        raise complaint(SeqbatchValueError, f"lengths[{known.index(longest)}]", must, longest)
    return array("q", known)


def require_batches(lengths: Tensor, options: BatchingOptions) -> int:
    """Return the number of batches of every epoch, of all processes together; raise if the limits do not allow it."""
    if options.max_steps is not None and int(lengths.max()) > options.max_steps:
        i = int((lengths > options.max_steps).nonzero()[0])
        must = f"be at most max_steps, {options.max_steps}"
        remedy = "Pass a larger max_steps, or leave the sequence out."
        raise complaint(SeqbatchValueError, f"lengths[{i}]", must, int(lengths[i]), remedy)
    if len(lengths) < options.world_size:
        must = f"be at least {options.world_size}, one for each process"
        raise complaint(SeqbatchValueError, "lengths", must, len(lengths))
    batches = count_batches(lengths, options)
    if batches > len(lengths):
        must = f"fit into as many batches, none empty, for each of {options.world_size} processes"
        found = f"{counted(len(lengths), 'sequence')}, nearly each a batch by itself"
        raise complaint(SeqbatchValueError, "lengths", must, found, "Pass a larger batch_size or max_steps.")
    return batches
