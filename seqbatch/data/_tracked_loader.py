"""TrackedLoader: a loader that knows how many batches it has returned, so that training resumes where it stopped."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from seqbatch._checks.grammar import complaint
from seqbatch.data._sampler_state import SamplerState, not_one_for_one
from seqbatch.errors import SeqbatchError

Batch = TypeVar("Batch")


class TrackedLoader(Generic[Batch]):
    """The batches of a loader, counted as they are returned; made by `BucketBatchSampler.track`.

    Each iteration is a pass over an epoch, and the next iteration is over the next epoch, even if the one before was
    left early. A pass begins where another was left only after `load_state_dict`. `len` is the number of batches of a
    whole epoch, the same in every epoch and process.

    A batch counts as soon as it is returned: save the state after training on it. Libraries that look for `state_dict`
    and `load_state_dict`, as Lightning does, find them here. Libraries that shard a DataLoader leave this as it is.

    Args:
        state: that of the sampler, which `track` passes.
        loader: the loader whose batches it returns.

    >>> from seqbatch.data import BucketBatchSampler
    >>> sampler = BucketBatchSampler([1, 2, 3], batch_size=2, shuffle=False)
    >>> loader = sampler.track(torch.utils.data.DataLoader([10, 20, 30], batch_sampler=sampler))
    >>> [batch.tolist() for batch in loader]
    [[10, 20], [30]]
    """

    __module__ = "seqbatch.data"  # so that errors and pickles do not hold the layout of files

    def __init__(self, state: SamplerState, loader: Iterable[Batch]) -> None:
        self._state = state
        self._loader = loader

    def __iter__(self) -> Iterator[Batch]:
        progress = self._state.progress
        tracked = self._state.begin_tracked()
        try:
            for batch in self._loader:
                progress.count(tracked)
                yield batch
            if progress.tracked is tracked and tracked.returned != tracked.batches:
                raise not_one_for_one("fewer")
        finally:
            tracked.is_open = False

    def __len__(self) -> int:
        return self._state.batches()

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch that was returned, the same in every process.

        Returns:
            the position and all that it depends on, as integers, strings, bools and None, which
            `torch.load(weights_only=True)` loads.

        Raises:
            SeqbatchError: a pass over the DataLoader itself was begun, so the number of batches it returned is unknown.

        >>> from seqbatch.data import BucketBatchSampler
        >>> sampler = BucketBatchSampler([5, 1, 4], batch_size=2)
        >>> state = sampler.track(torch.utils.data.DataLoader([5, 1, 4], batch_sampler=sampler)).state_dict()
        >>> state["epoch"], state["position"]
        (0, 0)
        """
        progress = self._state.progress
        if progress.untracked_passes:
            remedy = "Iterate over the tracked loader, or call set_epoch before."
            must = "know how many batches were returned"
            raise complaint(SeqbatchError, "state_dict", must, "a pass over the DataLoader itself", remedy)
        return self._state.to_dict(progress.position())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue in the next pass where another tracked loader was, whose sampler must have the same arguments.

        Args:
            state_dict: what `state_dict` returned, in any process.

        Raises:
            SeqbatchTypeError: it is not a mapping.
            SeqbatchValueError: it is of other lengths or arguments, but for `rank`, or of another version of seqbatch,
                or its position is beyond the batches of its epoch.

        >>> from seqbatch.data import BucketBatchSampler
        >>> sampler = BucketBatchSampler([5, 1, 4], batch_size=2)
        >>> loader = sampler.track(torch.utils.data.DataLoader([5, 1, 4], batch_sampler=sampler))
        >>> loader.load_state_dict({**loader.state_dict(), "position": 1})
        >>> len(list(loader)), len(list(loader))
        (1, 2)
        """
        self._state.progress.load(self._state.read_dict(state_dict), self._state.processes()[1])

    def __repr__(self) -> str:
        batches = "1 batch" if len(self) == 1 else f"{len(self)} batches"
        return f"TrackedLoader({batches}, epoch {self._state.progress.position().epoch})"
