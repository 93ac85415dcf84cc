"""Where in which epoch a sampler is: counted by the batches that came out of a loader, not by those drawn for it."""

from collections.abc import Iterable, Iterator, Sized
from typing import Generic, TypeVar

import attrs

from seqbatch._checks import complaint, counted
from seqbatch.errors import SeqbatchError

Batch = TypeVar("Batch")


@attrs.define(eq=False)
class Pass:
    """A tracked pass: the batches that it begins with and stops before, and whether it has begun to draw them."""

    start: int
    stop: int
    is_drawn: bool = False


@attrs.define(eq=False)
class Place:
    """The epoch and the number of its batches that have been received: there the next pass begins.

    Only tracked passes move it. Others begin there too, each further one an epoch later, and are counted.
    """

    epoch: int = 0
    position: int = 0
    tracked: Pass | None = None
    untracked: int = 0

    def current(self) -> tuple[int, int]:
        """Give epoch and first batch of the pass under way, or of that to come."""
        if self.untracked > 1:
            return self.epoch + self.untracked - 1, 0
        return self.epoch, self.position if self.tracked is None else self.tracked.start

    def after(self) -> tuple[int, int]:
        """Give epoch and first batch of the pass that will come after the last batch received."""
        is_full = self.tracked is not None and self.position == self.tracked.stop
        return (self.epoch + 1, 0) if is_full else (self.epoch, self.position)

    def move(self, epoch: int, position: int) -> None:
        """Leave the passes under way, and go to a place."""
        self.epoch, self.position, self.tracked, self.untracked = epoch, position, None, 0

    def draw(self) -> tuple[int, int]:
        """Begin to draw the batches of the pass that was begun, or of one that is not tracked; give where it begins."""
        if self.tracked is None or self.tracked.is_drawn:
            self.untracked += 1
        else:
            self.tracked.is_drawn = True
        return self.current()

    def begin(self, sampler: Sized) -> Pass:
        """Begin a tracked pass."""
        self.move(*self.after())
        self.tracked = Pass(self.position, self.position + len(sampler))
        return self.tracked

    def receive(self, under_way: Pass) -> None:
        """Count a batch of a tracked pass."""
        if under_way is not self.tracked:
            found = "another pass, or another place set, before this one ended"
            raise complaint(SeqbatchError, "track", "be the only pass at a time", found)
        if not under_way.is_drawn or self.position == under_way.stop:
            raise _not_its_own("others")
        self.position += 1
        self.untracked = 0

    def end(self, under_way: Pass) -> None:
        """End a tracked pass, full or not; move on to the next epoch if it is full."""
        if under_way is self.tracked:
            self.move(*self.after())


class Tracked(Generic[Batch]):
    """The batches of a loader, counted."""

    def __init__(self, place: Place, sampler: Sized, loader: Iterable[Batch], samples: int) -> None:
        self._place = place
        self._sampler = sampler
        self._loader = loader
        self._samples = samples

    def __iter__(self) -> Iterator[Batch]:
        data = getattr(self._loader, "dataset", None)
        if isinstance(data, Sized) and len(data) != self._samples:
            must = f"be over {counted(self._samples, 'sample')}, as the lengths of the sampler"
            raise complaint(SeqbatchError, "loader", must, len(data))
        under_way = self._place.begin(self._sampler)
        try:
            for batch in self._loader:
                self._place.receive(under_way)
                yield batch
            if under_way is self._place.tracked and self._place.position != under_way.stop:
                raise _not_its_own("fewer")
        finally:
            self._place.end(under_way)

    def __len__(self) -> int:
        return len(self._sampler)

    def __repr__(self) -> str:
        return f"Tracked({len(self)} batches)"


def _not_its_own(found: str) -> SeqbatchError:
    remedy = "Give the DataLoader whose batch_sampler this sampler is."
    return complaint(SeqbatchError, "loader", "hand out one batch for each that this sampler draws", found, remedy)
