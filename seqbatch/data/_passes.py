"""Passes over a sampler: the epoch and batch that the next one begins with, and the batches returned so far."""

import attrs

from seqbatch._checks.grammar import complaint
from seqbatch.errors import SeqbatchError, SeqbatchValueError


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
class Passes:
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
            SeqbatchError: the state was loaded in another number of processes, for which the plan of an epoch differs.
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
