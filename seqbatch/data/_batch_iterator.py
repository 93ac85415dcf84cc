"""BatchIterator: the batches of one pass over a sampler, with a state for torchdata's StatefulDataLoader."""

from collections.abc import Iterator, Mapping
from typing import Any

from seqbatch._checks.grammar import complaint
from seqbatch.data._epochs import Epochs
from seqbatch.data._passes import Position, require_one_process
from seqbatch.errors import SeqbatchError


class BatchIterator(Iterator[list[int]]):
    """The batches of one pass. It begins at the first draw, because a DataLoader with workers creates two and uses one.

    Args:
        epochs: the epochs of the sampler.
    """

    def __init__(self, epochs: Epochs) -> None:
        self._epochs = epochs
        self._drawn: Position | None = None

    def __next__(self) -> list[int]:
        if self._drawn is None:
            self._begin(self._epochs.begin_drawing())
        assert self._drawn is not None
        i = self._drawn.batch
        if i == len(self._mine):
            raise StopIteration
        self._drawn = Position(self._drawn.epoch, i + 1)
        begin, end = self._bounds[self._mine[i]], self._bounds[self._mine[i] + 1]
        batch: list[int] = self._order[begin:end].tolist()
        return batch

    def _begin(self, position: Position) -> None:
        plan = self._epochs.plan(position.epoch)
        self._drawn, self._order, self._bounds = position, plan.order, plan.bounds.tolist()
        self._mine: list[int] = plan.rounds[:, self._epochs.processes()[0]].tolist()

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the batches drawn; a StatefulDataLoader knows which of these it has returned.

        The sampler itself has no such method: a DataLoader draws ahead, so its state would skip batches.
        """
        return self._epochs.state(self._epochs.passes.next_drawn() if self._drawn is None else self._drawn)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue after the batches that another iterator has drawn; the next pass is the next epoch."""
        passes = self._epochs.passes
        if passes.tracked is not None and passes.tracked.is_open:
            must = "be resumed by the state of the tracked loader, which counts for it"
            raise complaint(SeqbatchError, "loader", must, "a state of its own")
        require_one_process(self._epochs.processes()[1])
        position = self._epochs.read_state(state_dict)
        passes.load(position, 1)
        self._begin(passes.begin_drawing(1))
