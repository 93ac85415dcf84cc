"""BucketBatchSampler: batches of sequences of similar length, for one process or many."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from seqbatch._checks.arguments import at_least, integer
from seqbatch._checks.grammar import complaint, counted, type_name
from seqbatch.data._epoch_batches import BatchingOptions
from seqbatch.data._sampler_arguments import default_pool, require_lengths, require_limits, require_processes
from seqbatch.data._sampler_state import Position, SamplerState, require_one_process
from seqbatch.data._tracked_loader import Batch, TrackedLoader
from seqbatch.errors import SeqbatchError


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of sequences of similar length, as the `batch_sampler` of a DataLoader: each sequence once per epoch.

    Sequences are shuffled and dealt into pools, each pool is sorted by length and cut into batches, and the batches are
    shuffled. All of it is determined by `seed` and the epoch. Batches that processes run at the same time have similar
    longest sequences. Every process has the same number of batches in every epoch, none of them empty; for this a few
    batches are halved.

    Iterate over `sampler.track(loader)`, which counts the batches that it returns. Each pass over it is an epoch, and
    the next pass is the next epoch. Its `state_dict` lets another process continue a pass that was left early. A pass
    over the DataLoader itself is an epoch too, but cannot be continued, and does not advance the tracked loader.

    With several processes only the tracked loader is allowed. The sampler shards the data itself. Lightning, accelerate
    and others shard the batches of a DataLoader again, but leave what `track` returns as it is.

    Args:
        lengths: `(sequences,)`, the steps of each sequence of the whole data set, by its index: integers or an integer
            Tensor. One on a device is copied to the host.
        batch_size: the most sequences of a batch, in one process. At least one of this and `max_steps` must be given.
        max_steps: the most steps of a batch, all its sequences together, in one process; padding does not count.
        shuffle: whether to shuffle. If not, all sequences are sorted by length, the shortest first, and every epoch is
            the same.
        seed: determines the order, with the epoch; the same in all processes.
        longest_first: whether an epoch begins with the batch of most steps, so that memory runs out at once or never.
        pool: how many sequences are sorted together: more leave less padding, and fewer shuffle better. By default
            about 64 batches' worth; 1 makes random batches. It is used only with `shuffle`.
        rank: the index of this process, from 0. By default that of `torch.distributed` when a pass begins, or 0 if that
            is not initialized.
        world_size: the number of processes; by default that of `torch.distributed`, or 1.

    Raises:
        SeqbatchTypeError: an argument is not an integer, or `lengths` are not.
        SeqbatchValueError: a number is out of range, a sequence has more than `max_steps`, there are fewer sequences
            than processes, or they cannot be put into equally many batches for each process; only one of `rank` and
            `world_size` is given, or neither of `batch_size` and `max_steps`.

    >>> sampler = BucketBatchSampler([5, 1, 4, 2, 1], batch_size=2, shuffle=False)
    >>> list(sampler)
    [[1, 4], [3, 2], [0]]
    >>> sampler
    BucketBatchSampler(5 sequences, batch_size 2, process 0 of 1, epoch 0)
    """

    __module__ = "seqbatch.data"  # so that errors and pickles do not hold the layout of files

    def __init__(
        self,
        lengths: Sequence[int] | Tensor,
        *,
        batch_size: int | None = None,
        max_steps: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        longest_first: bool = False,
        pool: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        processes = require_processes(rank, world_size)
        known = require_lengths(lengths)
        batch_size, max_steps = require_limits(batch_size, max_steps)
        pool = default_pool(known, batch_size, max_steps) if pool is None else at_least("pool", pool, 1)
        self._options = BatchingOptions(
            batch_size=batch_size,
            max_steps=max_steps,
            shuffle=bool(shuffle),
            seed=integer("seed", seed),
            longest_first=bool(longest_first),
            pool=min(pool, len(known)) if shuffle else len(known),
            world_size=1,
        )
        self._state = SamplerState(torch.frombuffer(known, dtype=torch.int64), self._options, processes)
        len(self)  # raises unless the sequences can be put into batches

    @property
    def epoch(self) -> int:
        """The epoch of the current pass, else of the next pass, from 0.

        >>> BucketBatchSampler([5, 1, 4], batch_size=2).epoch
        0
        """
        return self._state.progress.epoch()

    @property
    def fill(self) -> float:
        """The share of steps that are not padding, over all batches of that epoch, each padded to its longest.

        For the share of random batches, to compare with, pass `pool=1`. Without any steps it is 1.

        >>> BucketBatchSampler([5, 1, 4, 2], batch_size=2, shuffle=False).fill  # 12 steps in 2 x 2 and 2 x 5
        0.8571428571428571
        """
        return self._state.epoch_batches(self.epoch).share_of_real_steps()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, which begins at the start, or at a loaded state if that is in this epoch.

        Args:
            epoch: which epoch, from 0.

        Raises:
            SeqbatchTypeError: it is not an integer.
            SeqbatchValueError: it is negative, or would discard a loaded state: it is before the epoch of the state, or
                differs from it before the next pass begins.

        >>> sampler = BucketBatchSampler([5, 1, 4], batch_size=2)
        >>> sampler.set_epoch(3)
        >>> sampler.epoch
        3
        """
        self._state.progress.set_epoch(at_least("epoch", epoch, 0))

    def track(self, loader: Iterable[Batch]) -> TrackedLoader[Batch]:
        """Return a loader of the same batches that counts them, so that it can resume.

        If the processes are those of `torch.distributed`, all of them must begin each pass. They compare its lengths,
        arguments and position by one small collective.

        Args:
            loader: a DataLoader whose `batch_sampler` is this sampler, or another iterable that returns one batch for
                each that it draws from this sampler.

        Returns:
            a loader with `state_dict` and `load_state_dict`, and the `len` of this sampler.

        Raises:
            SeqbatchError: the loader has another `batch_sampler`, or is over a data set of another length than
                `lengths`. On iteration: it does not return one batch for each of this sampler, another pass was begun
                or another position set meanwhile, or the processes do not begin the same pass.

        >>> sampler = BucketBatchSampler([1, 2, 3], batch_size=2, shuffle=False)
        >>> loader = sampler.track(torch.utils.data.DataLoader([10, 20, 30], batch_sampler=sampler))
        >>> [batch.tolist() for batch in loader]
        [[10, 20], [30]]
        """
        self._require_own(loader)
        return TrackedLoader(self._state, loader)

    def _require_own(self, loader: object) -> None:
        """Raise if a loader is known to return other batches than this sampler."""
        # Both, because with batch_size=None a DataLoader takes a batch sampler as its sampler.
        samplers = [getattr(loader, name, None) for name in ("batch_sampler", "sampler")]
        found = next((sampler for sampler in samplers if sampler is not None), self)
        if found is not self:
            remedy = "Track the DataLoader that was made with it, before a library prepares it."
            must = "have this sampler as its batch_sampler"
            raise complaint(SeqbatchError, "loader", must, type_name(found), remedy)
        data, samples = getattr(loader, "dataset", None), len(self._state.lengths)
        if isinstance(data, Sized) and len(data) != samples:
            must = f"be over {counted(samples, 'sample')}, as the lengths of the sampler"
            raise complaint(SeqbatchError, "loader", must, len(data))

    def __iter__(self) -> Iterator[list[int]]:
        return BatchIterator(self._state)

    def __len__(self) -> int:
        """The number of batches of an epoch in one process, the same in every epoch and process."""
        return self._state.batches()

    def __repr__(self) -> str:
        limits = {"batch_size": self._options.batch_size, "max_steps": self._options.max_steps}
        parts = [counted(len(self._state.lengths), "sequence")]
        parts += [f"{name} {limit}" for name, limit in limits.items() if limit is not None]
        rank, world_size = self._state.processes()
        parts += [f"process {rank} of {world_size}", f"epoch {self.epoch}"]
        return f"{type(self).__name__}({', '.join(parts)})"


class BatchIterator(Iterator[list[int]]):
    """The batches of one pass. It begins at the first draw, because a DataLoader with workers creates two and uses one.

    Args:
        state: that of the sampler.
    """

    def __init__(self, state: SamplerState) -> None:
        self._state = state
        # Once the pass has begun: the position of the batch that is drawn next, and the batches from there on.
        self._begun: tuple[Position, Iterator[list[int]]] | None = None

    def __next__(self) -> list[int]:
        position, batches = self._begun or self._begin()
        batch = next(batches)
        self._begun = Position(position.epoch, position.batch + 1), batches
        return batch

    def _begin(self) -> tuple[Position, Iterator[list[int]]]:
        rank, world_size = self._state.processes()
        position = self._state.progress.begin_drawing(world_size)
        self._begun = position, self._state.epoch_batches(position.epoch).of_process(rank, position.batch)
        return self._begun

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the batches drawn; a StatefulDataLoader knows which of these it has returned.

        The sampler itself has no such method: a DataLoader draws ahead, so its state would skip batches.
        """
        return self._state.to_dict(self._state.progress.next_drawn() if self._begun is None else self._begun[0])

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue after the batches that another iterator has drawn; the next pass is the next epoch."""
        progress = self._state.progress
        if progress.tracked is not None and progress.tracked.is_open:
            must = "be resumed by the state of the tracked loader, which counts for it"
            raise complaint(SeqbatchError, "loader", must, "a state of its own")
        require_one_process(self._state.processes()[1])
        progress.load(self._state.read_dict(state_dict), 1)
        self._begin()
