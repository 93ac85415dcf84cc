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
        # Once the pass has begun: the position of the batch that is drawn next, and the batches from there on.
        self._begun: tuple[Position, Iterator[list[int]]] | None = None

    def __next__(self) -> list[int]:
        position, batches = self._begun or self._begin(self._epochs.begin_drawing())
        batch = next(batches)
        self._begun = Position(position.epoch, position.batch + 1), batches
        return batch

    def _begin(self, position: Position) -> tuple[Position, Iterator[list[int]]]:
        plan, (rank, _) = self._epochs.plan(position.epoch), self._epochs.processes()
        self._begun = position, plan.batches(rank, position.batch)
        return self._begun

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the batches drawn; a StatefulDataLoader knows which of these it has returned.

        The sampler itself has no such method: a DataLoader draws ahead, so its state would skip batches.
        """
        return self._epochs.state(self._epochs.passes.next_drawn() if self._begun is None else self._begun[0])

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
