"""BucketBatchSampler: batches of sequences of similar length, for one process or many."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils.data import Sampler

from seqbatch._checks import at_least, complaint, counted, integer, type_name
from seqbatch.data._cuts import Plan, Rules, plan_epoch
from seqbatch.data._place import Batch, Place, Tracked
from seqbatch.data._rules import check_limits, enough_lengths, limits, processes, usual_pool
from seqbatch.errors import SeqbatchError, SeqbatchTypeError, SeqbatchValueError

# To be changed with the plans: a place in the old ones is none in the new.
VERSION = 1
REASON = (
    "In an epoch planned otherwise some sequences would come twice and some never: end it as it was begun, or begin "
    "another by set_epoch."
)


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of sequences of similar length, to be a DataLoader's `batch_sampler`: each sequence once per epoch.

    Sequences are shuffled and dealt into pools, each pool is sorted by length and cut into batches, and the batches are
    shuffled. All of it follows from `seed` and the epoch. The batches that the processes have at the same time have
    longest sequences of similar length; every process has the same number of batches, none of them empty: for this a
    few are halved.

    Begin a pass by `for batch in sampler.track(loader)`, and `state_dict` tells how far it came, whatever the number of
    workers. A full pass moves on to the next epoch; one left early is gone on with by the next. A pass over the loader
    itself leaves the place as it was: such passes begin there, each further one an epoch later, however far the one
    before came.

    `len` is the number of batches, in one process, of the pass under way or to come: of an epoch gone on with, those
    that were left. With `max_steps` it differs a little from epoch to epoch. A pass over the loader itself counts as
    under way until the next one begins.

    Args:
        lengths: `(sequences,)`, the steps of each sequence of the data set, by its index: integers or an integer
            Tensor. One on a device is copied to the host.
        batch_size: the most sequences of a batch, in one process. At least one of this and `max_steps` must be given.
        max_steps: the most steps of a batch, all its sequences together, in one process; padding does not count.
        shuffle: whether to shuffle. If not, all sequences are sorted by length, the shortest first, and every epoch is
            the same.
        seed: what the order follows from, besides the epoch; the same in all processes.
        longest_first: whether an epoch begins with the batch of most steps, so that memory runs out at once or never.
        pool: how many sequences are sorted together: more leave less padding, and fewer shuffle better. Without it
            some 64 batches' worth; 1 gives random batches. It counts only with `shuffle`.
        rank: which process this is, from 0. Without it as `torch.distributed` says if that is initialized, else 0.
        world_size: the number of processes; in the same way, else 1.

    Raises:
        SeqbatchTypeError: an argument is no integer, or `lengths` are none.
        SeqbatchValueError: a number is out of range, a sequence has more than `max_steps`, there are fewer sequences
            than processes, or they cannot be put into equally many batches for each process; only one of `rank` and
            `world_size` is given, or neither of `batch_size` and `max_steps`.

    >>> sampler = BucketBatchSampler([5, 1, 4, 2, 1], batch_size=2, shuffle=False)
    >>> list(sampler)
    [[1, 4], [3, 2], [0]]
    >>> sampler
    BucketBatchSampler(5 sequences, batch_size 2, process 0 of 1, epoch 0)
    """

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
        self._rank, world_size = processes(rank, world_size)
        known = enough_lengths(lengths, world_size)
        self._lengths = torch.frombuffer(known, dtype=torch.int64)
        batch_size, max_steps = limits(batch_size, max_steps)
        pool = usual_pool(known, batch_size, max_steps) if pool is None else at_least("pool", pool, 1)
        self._rules = Rules(
            batch_size=batch_size,
            max_steps=max_steps,
            shuffle=bool(shuffle),
            seed=integer("seed", seed),
            longest_first=bool(longest_first),
            pool=min(pool, len(known)) if shuffle else len(known),
            world_size=world_size,
        )
        check_limits(self._lengths, self._rules)
        digest = hashlib.sha256(known.tobytes()).hexdigest()[:16]
        self._about = {"version": VERSION, "sequences": len(known), "lengths": digest, **attrs.asdict(self._rules)}
        self._place = Place()
        self._planned: tuple[int, Plan] | None = None

    @property
    def epoch(self) -> int:
        """The epoch of the pass under way or to come, from 0.

        >>> BucketBatchSampler([5, 1, 4], batch_size=2).epoch
        0
        """
        return self._place.current()[0]

    @property
    def fill(self) -> float:
        """The part that is no padding, of all batches of that epoch in all processes, each padded to its longest.

        `pool=1` gives that of random batches, to compare with. Without any steps it is 1.

        >>> BucketBatchSampler([5, 1, 4, 2], batch_size=2, shuffle=False).fill  # 12 steps in 2 x 2 and 2 x 5
        0.8571428571428571
        """
        return self._plan(self.epoch).fill()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass: it begins at its start, but for the epoch that the place is in already.

        Without it one epoch follows the other. Call it before each pass if processes may have begun different numbers
        of passes over the loader itself.

        Args:
            epoch: which epoch, from 0.

        Raises:
            SeqbatchTypeError: it is no integer.
            SeqbatchValueError: it is negative.

        >>> sampler = BucketBatchSampler([5, 1, 4], batch_size=2)
        >>> sampler.set_epoch(3)
        >>> sampler.epoch
        3
        """
        epoch = at_least("epoch", epoch, 0)
        self._place.untracked = 0
        if epoch != self._place.epoch:
            self._place.move(epoch, 0)

    def track(self, loader: Iterable[Batch]) -> Tracked[Batch]:
        """Iterate over a loader and count the batches that it hands out, so that `state_dict` knows the place.

        A batch counts as soon as it is handed out: save the state after training on it.

        Args:
            loader: a DataLoader whose `batch_sampler` is this sampler.

        Returns:
            What gives the batches of the loader, whenever it is iterated over, and has the `len` of this sampler.

        Raises:
            SeqbatchError: on iteration: the loader is over a data set of another length than `lengths`, or does not
                hand out one batch for each of this sampler, or another pass was begun or another place set meanwhile.

        >>> sampler = BucketBatchSampler([1, 2, 3], batch_size=2, shuffle=False)
        >>> loader = torch.utils.data.DataLoader([10, 20, 30], batch_sampler=sampler)
        >>> [batch.tolist() for batch in sampler.track(loader)]
        [[10, 20], [30]]
        """
        return Tracked(self._place, self, loader, len(self._lengths))

    def state_dict(self) -> dict[str, Any]:
        """Tell the place, which is that of every process, and what it is a place in.

        Returns:
            Integers, strings, bools and None, which `torch.load(weights_only=True)` can load.

        Raises:
            SeqbatchError: a pass over the loader itself was begun, and nothing tells how far it came.

        >>> state = BucketBatchSampler([5, 1, 4], batch_size=2).state_dict()
        >>> state["epoch"], state["position"]
        (0, 0)
        """
        if self._place.untracked:
            remedy = "Iterate over sampler.track(loader), or call set_epoch before."
            must = "know how many batches were received"
            raise complaint(SeqbatchError, "state_dict", must, "a pass over the loader itself", remedy)
        epoch, position = self._place.after()
        return {"epoch": epoch, "position": position, **self._about}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next pass begin where another sampler was, which must have been made alike.

        Args:
            state_dict: what `state_dict` gave, in any process.

        Raises:
            SeqbatchTypeError: it is no mapping.
            SeqbatchValueError: it is of other lengths or arguments, but for `rank`, or of another version of seqbatch,
                or its position is beyond the batches of its epoch.

        >>> sampler = BucketBatchSampler([5, 1, 4], batch_size=2)
        >>> sampler.load_state_dict({**sampler.state_dict(), "position": 1})
        >>> len(sampler)
        1
        """
        if not isinstance(state_dict, Mapping):
            raise complaint(SeqbatchTypeError, "state_dict", "be a mapping", type_name(state_dict))
        for name, wanted in self._about.items():
            if (found := state_dict.get(name)) != wanted:
                must = f"have {name} {wanted!r}, as this sampler"
                raise complaint(SeqbatchValueError, "state_dict", must, repr(found), REASON)
        epoch, position = (at_least(f"state_dict[{name!r}]", state_dict.get(name), 0) for name in ("epoch", "position"))
        batches = len(self._plan(epoch).rounds)
        if position >= batches:
            must = f"be less than {batches}, the batches of epoch {epoch}"
            raise complaint(SeqbatchValueError, "state_dict['position']", must, position)
        self._place.move(epoch, position)

    def __iter__(self) -> Iterator[list[int]]:
        # Not before the first batch is asked for: a DataLoader with workers makes two iterators and uses one.
        epoch, start = self._place.draw()
        plan = self._plan(epoch)
        bounds = plan.bounds.tolist()
        for batch in plan.rounds[start:, self._rank].tolist():
            yield plan.order[bounds[batch] : bounds[batch + 1]].tolist()

    def __len__(self) -> int:
        epoch, start = self._place.current()
        return len(self._plan(epoch).rounds) - start

    def __repr__(self) -> str:
        limits = {"batch_size": self._rules.batch_size, "max_steps": self._rules.max_steps}
        parts = [counted(len(self._lengths), "sequence")]
        parts += [f"{name} {limit}" for name, limit in limits.items() if limit is not None]
        parts += [f"process {self._rank} of {self._rules.world_size}", f"epoch {self.epoch}"]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _plan(self, epoch: int) -> Plan:
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, plan_epoch(self._lengths, self._rules, epoch)
        return self._planned[1]
