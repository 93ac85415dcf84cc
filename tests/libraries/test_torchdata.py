"""torchdata's StatefulDataLoader: it resumes a pass over BucketBatchSampler with the same batches."""

import re
from itertools import chain, islice
from typing import Any

import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from seqbatch import SeqbatchError, SeqbatchValueError
from seqbatch.data import BucketBatchSampler

# torchdata calls it whenever a loader is made.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
LENGTHS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]


def make(workers: int = 0, snapshots: int = 1, **options: Any) -> StatefulDataLoader[Any]:
    """Return a loader of the indices themselves."""
    sampler = BucketBatchSampler(LENGTHS, max_steps=15, seed=2, **options)
    data: Any = range(len(LENGTHS))
    return StatefulDataLoader(
        data,
        batch_sampler=sampler,
        collate_fn=list,
        num_workers=workers,
        snapshot_every_n_steps=snapshots,
        multiprocessing_context="fork" if workers else None,
    )


def epochs() -> list[list[list[int]]]:
    """Return the batches of five epochs, without torchdata."""
    sampler = BucketBatchSampler(LENGTHS, max_steps=15, seed=2)
    return [list(sampler) for _ in range(5)]


EPOCHS = epochs()
BATCHES = len(EPOCHS[0])


def test_epochs_differ() -> None:
    assert len({str(epoch) for epoch in EPOCHS}) == len(EPOCHS)


@pytest.mark.parametrize("returned", range(2 * BATCHES + 2))
def test_a_pass_that_is_resumed_equals_one_that_was_not_interrupted(returned: int) -> None:
    loader = make()
    found = list(islice(chain(loader, loader, loader), returned))
    state = loader.state_dict()
    other = make()
    other.load_state_dict(state)
    resumed = list(chain(found, other))
    whole = [*chain.from_iterable(EPOCHS)]
    assert resumed == whole[: len(resumed)]
    # After the last batch of an epoch torchdata resumes at its end, in a pass of no batches.
    assert len(resumed) == max(1, -(-returned // BATCHES)) * BATCHES
    assert list(chain(other, other)) == whole[len(resumed) : len(resumed) + 2 * BATCHES]


@pytest.mark.parametrize("returned", [0, 1, BATCHES - 1, BATCHES, BATCHES + 3])
def test_workers_that_draw_ahead_change_nothing(returned: int) -> None:
    loader = make(2)
    found = list(islice(chain(loader, loader), returned))
    other = make(2)
    other.load_state_dict(loader.state_dict())
    resumed = list(chain(found, other, other))
    assert resumed == [*chain.from_iterable(EPOCHS)][: len(resumed)]
    assert len(resumed) >= 2 * BATCHES


@pytest.mark.parametrize("returned", [1, 3, BATCHES, BATCHES + 1, BATCHES + 4, 2 * BATCHES + 1])
@pytest.mark.parametrize("workers", [0, 2])
def test_states_between_snapshots(workers: int, returned: int) -> None:
    """Before the first one of a pass, torchdata draws again from where the pass began."""
    loader = make(workers, snapshots=3)
    found = list(islice(chain(loader, loader, loader), returned))
    other = make(workers, snapshots=3)
    other.load_state_dict(loader.state_dict())
    resumed = list(chain(found, other, other))
    assert resumed == [*chain.from_iterable(EPOCHS)][: len(resumed)]
    assert len(resumed) >= 2 * BATCHES


def test_a_state_before_the_first_batch_of_a_later_pass() -> None:
    loader = make()
    for epoch in (1, 2):
        list(loader)
        begun = iter(loader)
        other = make()
        other.load_state_dict(loader.state_dict())
        assert list(other) == EPOCHS[epoch]
        del begun


def test_a_state_after_a_whole_pass_begins_the_next_epoch() -> None:
    loader = make()
    assert list(loader) == EPOCHS[0]
    other = make()
    other.load_state_dict(loader.state_dict())
    assert list(other) == EPOCHS[1]


def test_set_epoch_does_not_undo_a_loaded_state() -> None:
    loader = make()
    list(islice(chain(loader, loader), BATCHES + 2))
    other = make()
    other.load_state_dict(loader.state_dict())
    sampler: Any = other.batch_sampler
    sampler.set_epoch(0)  # as accelerate does, before the state is used
    assert list(other) == EPOCHS[1][2:]
    with pytest.raises(SeqbatchValueError, match=r"^`epoch` must be 1 or more, the epoch of the loaded state; got 0\."):
        sampler.set_epoch(0)


def test_a_state_of_another_sampler_is_refused() -> None:
    loader, other = make(), make(shuffle=False)
    next(iter(loader))
    other.load_state_dict(loader.state_dict())
    with pytest.raises(SeqbatchValueError, match=r"^`state_dict` must have shuffle False, as this sampler; got True"):
        iter(other)


def test_a_tracked_loader_counts_for_it() -> None:
    loader = make(2)
    sampler: Any = loader.batch_sampler
    tracked = sampler.track(loader)
    found = list(islice(tracked, 4))
    state, its_own = tracked.state_dict(), loader.state_dict()
    other = make(2)
    sampler = other.batch_sampler
    again = sampler.track(other)
    again.load_state_dict(state)
    assert [*found, *again] == EPOCHS[0]
    other.load_state_dict(its_own)
    message = (
        "`loader` must be resumed by the state of the tracked loader, which counts for it; got a state of its own."
    )
    with pytest.raises(SeqbatchError, match=f"^{re.escape(message)}$"):
        next(iter(again))


def test_several_processes_need_a_tracked_loader() -> None:
    loader = make(rank=1, world_size=2)
    with pytest.raises(SeqbatchError, match=r"^`sampler` must be iterated over by sampler\.track\(loader\)"):
        next(iter(loader))
    sampler = BucketBatchSampler(LENGTHS, max_steps=15, seed=2)
    data: Any = range(20)
    state = StatefulDataLoader(data, batch_sampler=sampler).state_dict()
    loader.load_state_dict(state)
    with pytest.raises(SeqbatchError, match=r"^`sampler` must be iterated over by sampler\.track\(loader\)"):
        iter(loader)
    sampler = BucketBatchSampler(LENGTHS, max_steps=15, seed=2, rank=1, world_size=2)
    own = StatefulDataLoader(data, batch_sampler=sampler, collate_fn=list)
    plain: Any = DataLoader(data, batch_sampler=sampler, collate_fn=list)
    found = list(sampler.track(own))
    sampler.set_epoch(0)
    assert found == list(sampler.track(plain))
