"""How far a sampler is, in which epoch and at which batch, and how that is saved and loaded."""

import hashlib
from array import array
from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor, distributed

from seqbatch._checks.arguments import at_least
from seqbatch._checks.grammar import complaint, shown, type_name
from seqbatch.data._epoch_batches import BatchingOptions, EpochBatches, make_batches
from seqbatch.data._sampler_arguments import current_processes, require_batches
from seqbatch.errors import SeqbatchError, SeqbatchTypeError, SeqbatchValueError

# To be changed with the batches of an epoch, because a position among old ones has no meaning among new ones.
PLAN_VERSION = 2
_OTHER_PLAN = (
    "In an epoch planned otherwise some sequences would come twice and some never: finish the epoch as it was begun, "
    "or begin another by set_epoch."
)


@attrs.frozen
class Position:
    """A position in the epochs of a sampler.

    Args:
        epoch: the epoch, from 0.
        batch: the number of its batches that come before.
    """

    epoch: int = 0
    batch: int = 0


@attrs.define(eq=False)
class TrackedPass:
    """A pass whose batches are counted as the loader returns them.

    Args:
        epoch: its epoch.
        batches: the batches of that epoch.
        returned: how many of them were returned, also before this pass if it continues one of another process.
        is_drawn: whether the loader has begun to draw batches for it.
        is_open: whether it may return more.
    """

    epoch: int
    batches: int
    returned: int
    is_drawn: bool = False
    is_open: bool = True

    def is_awaited(self) -> bool:
        """Return True if the batch that is drawn next is its first."""
        return self.is_open and not self.is_drawn

    def position(self) -> Position:
        """Return where another process would continue after the last batch that was returned."""
        if self.returned == self.batches:
            return Position(self.epoch + 1)
        return Position(self.epoch, self.returned)


@attrs.define(eq=False)
class Progress:
    """The passes over a sampler, in one process.

    A tracked pass is an epoch, and the next one is the next epoch, even if it was left early. A pass begins within an
    epoch only after a state was loaded. A pass that is not tracked does not advance this: the first begins where the
    next tracked pass would, and each further one an epoch later.

    Args:
        upcoming: where the next tracked pass begins.
        world_size: the number of processes that `upcoming.batch` was counted in.
        tracked: the last tracked pass, unless `set_epoch` or a loaded state came after it.
        untracked_passes: how many passes that are not tracked were begun since; their batches are not counted.
        first_epoch: the epoch of the state that was loaded last; 0 if none was.
        has_begun: whether a pass has begun since.
    """

    upcoming: Position = Position()
    world_size: int = 1
    tracked: TrackedPass | None = None
    untracked_passes: int = 0
    first_epoch: int = 0
    has_begun: bool = True

    def epoch(self) -> int:
        """Return the epoch of the current pass, else of the next one."""
        if self.tracked is not None and self.tracked.is_open:
            return self.tracked.epoch
        return self.upcoming.epoch + max(0, self.untracked_passes - 1)

    def position(self) -> Position:
        """Return where another process would continue."""
        return self.upcoming if self.tracked is None else self.tracked.position()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, which begins at the start, or at a loaded state if that is in this epoch.

        Raises:
            SeqbatchValueError: it would discard a loaded state.
        """
        first = self.first_epoch
        if epoch < first or (epoch > first and not self.has_begun):
            must = f"be {first}{' or more' if self.has_begun else ''}, the epoch of the loaded state"
            remedy = "Count epochs from sampler.epoch on; a new sampler begins with epoch 0."
            raise complaint(SeqbatchValueError, "epoch", must, epoch, remedy)
        self.tracked, self.untracked_passes = None, 0
        if epoch != self.upcoming.epoch:
            self.upcoming = Position(epoch)

    def load(self, position: Position, world_size: int) -> None:
        """Set the position of the next pass to that of a state."""
        self.upcoming, self.world_size, self.tracked, self.untracked_passes = position, world_size, None, 0
        self.first_epoch, self.has_begun = position.epoch, False

    def begin_tracked(self, batches: int, world_size: int) -> TrackedPass:
        """Begin a tracked pass over an epoch of this many batches.

        Raises:
            SeqbatchError: the state was loaded in another number of processes, which divide an epoch differently.
        """
        start = self.upcoming
        if start.batch and world_size != self.world_size:
            must = f"continue the epoch in as many processes as its state was loaded in, {self.world_size}"
            remedy = "Load the state after the process group is made."
            raise complaint(SeqbatchError, "sampler", must, world_size, remedy)
        self.tracked = TrackedPass(start.epoch, batches, start.batch)
        self.untracked_passes, self.has_begun = 0, True
        return self.tracked

    def next_drawn(self) -> Position:
        """Return where the pass begins whose first batch is drawn next: the tracked one, or else one that is not."""
        if self.tracked is not None and self.tracked.is_awaited():
            return Position(self.tracked.epoch, self.tracked.returned)
        return Position(self.upcoming.epoch + self.untracked_passes) if self.untracked_passes else self.upcoming

    def begin_drawing(self, world_size: int) -> Position:
        """Return where the pass begins whose first batch is drawn now.

        Raises:
            SeqbatchError: it is not tracked, and there is more than one process.
        """
        position = self.next_drawn()
        if self.tracked is not None and self.tracked.is_awaited():
            self.tracked.is_drawn = True
            self.upcoming = Position(self.tracked.epoch + 1)
            return position
        require_one_process(world_size)
        self.untracked_passes += 1
        self.has_begun = True
        return position

    def count(self, tracked: TrackedPass) -> None:
        """Count a batch that a tracked pass returns.

        Raises:
            SeqbatchError: the pass has ended, or the loader returns batches that were not drawn from the sampler.
        """
        if tracked is not self.tracked:
            must = "be iterated over once at a time"
            found = "another pass, set_epoch or load_state_dict before this pass ended"
            remedy = "Track the DataLoader before a library prepares it, and make a sampler for each loop."
            raise complaint(SeqbatchError, "loader", must, found, remedy)
        if not tracked.is_drawn or tracked.returned == tracked.batches:
            raise not_one_for_one("others")
        tracked.returned += 1
        self.untracked_passes = 0


class SamplerState:
    """What a sampler and its tracked loaders share: batches of an epoch, the progress, and its form in a checkpoint.

    Args:
        lengths: `(sequences,)`, int64, on the host.
        options: the arguments of the sampler; the number of processes is replaced.
        processes: rank and world size, or None for those of `torch.distributed` whenever a pass begins.
    """

    def __init__(self, lengths: Tensor, options: BatchingOptions, processes: tuple[int, int] | None) -> None:
        self.lengths: Tensor = lengths
        self.progress: Progress = Progress()
        self._options = options
        self._processes = processes
        self._digest = hashlib.sha256(array("q", lengths.tolist()).tobytes()).hexdigest()[:16]
        # The number of batches in all processes, by options; and the epoch that was made last.
        self._counts: dict[BatchingOptions, int] = {}
        self._last_epoch: tuple[int, BatchingOptions, EpochBatches] | None = None

    def processes(self) -> tuple[int, int]:
        """Return rank and world size, as they are now."""
        return self._processes or current_processes()

    def batches(self) -> int:
        """Return the number of batches of an epoch in one process, the same in every epoch and process.

        Raises:
            SeqbatchValueError: the sequences cannot be put into as many batches for each process.
        """
        options = self._current_options()
        return self._total_batches(options) // options.world_size

    def epoch_batches(self, epoch: int) -> EpochBatches:
        """Return the batches of an epoch."""
        options = self._current_options()
        if self._last_epoch is None or self._last_epoch[:2] != (epoch, options):
            made = make_batches(self.lengths, options, epoch, self._total_batches(options))
            self._last_epoch = epoch, options, made
        return self._last_epoch[2]

    def begin_tracked(self) -> TrackedPass:
        """Begin a tracked pass; if the processes are those of `torch.distributed`, all of them must.

        Raises:
            SeqbatchError: they do not begin the same pass.
        """
        world_size, batches = self.processes()[1], self.batches()
        if self._processes is None and world_size > 1:
            self._require_agreement(self.to_dict(self.progress.upcoming))
        return self.progress.begin_tracked(batches, world_size)

    def to_dict(self, position: Position) -> dict[str, Any]:
        """Return a position as plain values, with all that it depends on."""
        return {"epoch": position.epoch, "position": position.batch, **self._dependencies()}

    def read_dict(self, state_dict: object) -> Position:
        """Return the position that `to_dict` saved.

        Raises:
            SeqbatchTypeError: it is not a mapping.
            SeqbatchValueError: it is of other lengths or arguments, or its position is beyond the batches of its epoch.
        """
        if not isinstance(state_dict, Mapping):
            raise complaint(SeqbatchTypeError, "state_dict", "be a mapping", type_name(state_dict))
        for name, wanted in self._dependencies().items():
            if (found := state_dict.get(name)) != wanted:
                must = f"have {name} {wanted!r}, as this sampler"
                raise complaint(SeqbatchValueError, "state_dict", must, shown(found), _OTHER_PLAN)
        epoch, position = (at_least(f"state_dict[{name!r}]", state_dict.get(name), 0) for name in ("epoch", "position"))
        if position > self.batches():
            must = f"be at most {self.batches()}, the batches of an epoch"
            raise complaint(SeqbatchValueError, "state_dict['position']", must, position)
        return Position(epoch, position)

    def _current_options(self) -> BatchingOptions:
        return attrs.evolve(self._options, world_size=self.processes()[1])

    def _total_batches(self, options: BatchingOptions) -> int:
        if options not in self._counts:
            self._counts[options] = require_batches(self.lengths, options)
        return self._counts[options]

    def _dependencies(self) -> dict[str, Any]:
        """Return all that the batches of an epoch depend on, so that equal values mean equal batches."""
        options = attrs.asdict(self._current_options())
        return {"version": PLAN_VERSION, "sequences": len(self.lengths), "lengths": self._digest, **options}

    def _require_agreement(self, own: dict[str, Any]) -> None:
        """Raise unless all processes begin the same pass, because each would otherwise run a part of other batches."""
        states: list[Any] = [None] * self.processes()[1]
        distributed.all_gather_object(states, own)
        for other, state in enumerate(states):
            for name in own:
                if state != states[0] and state[name] != states[0][name]:
                    must = f"have the same {name} in every process"
                    found = f"{states[0][name]!r} in process 0 and {state[name]!r} in process {other}"
                    remedy = "Pass the lengths of the whole data set in every process: the sampler shards it."
                    raise complaint(SeqbatchError, "sampler", must, found, remedy)


def require_one_process(world_size: int) -> None:
    """Raise if there are several processes, because only a tracked pass is known to be sharded once."""
    if world_size > 1:
        must = f"be iterated over by sampler.track(loader), because there are {world_size} processes"
        remedy = (
            "The sampler shards the data itself, and a library that shards its batches again would drop most of them: "
            "pass it sampler.track(loader), which it leaves as it is."
        )
        raise complaint(SeqbatchError, "sampler", must, "a pass over the sampler itself", remedy)


def not_one_for_one(found: str) -> SeqbatchError:
    """Return the error for a loader that does not return the batches of the sampler."""
    remedy = "Pass the DataLoader whose batch_sampler is this sampler."
    return complaint(SeqbatchError, "loader", "return one batch for each that this sampler draws", found, remedy)
