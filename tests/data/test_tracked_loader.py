"""Tracked loaders: what comes after a break, a loaded state, a full pass, with workers that draw ahead."""

import copy
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from seqbatch import SeqbatchError, SeqbatchValueError
from seqbatch.data import BucketBatchSampler, TrackedLoader

LENGTHS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]
OPTIONS: dict[str, Any] = {"max_steps": 15, "seed": 2}
MEANWHILE = (
    "`track` must be the only pass at a time; got another pass, set_epoch or load_state_dict before this pass ended."
)
TRACK = "Iterate over the tracked loader, or call set_epoch before."


def make(**options: Any) -> BucketBatchSampler:
    return BucketBatchSampler(LENGTHS, **{**OPTIONS, **options})


def loader_of(sampler: BucketBatchSampler, workers: int = 0) -> DataLoader[Any]:
    """A loader that gives the indices themselves."""
    return DataLoader(
        range(len(LENGTHS)),  # type: ignore[arg-type]  # a range is a data set
        batch_sampler=sampler,
        collate_fn=list,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )


def track(sampler: BucketBatchSampler, workers: int = 0) -> TrackedLoader[list[int]]:
    return sampler.track(loader_of(sampler, workers))


def tracked(sampler: BucketBatchSampler, workers: int = 0) -> list[list[int]]:
    return list(track(sampler, workers))


def epochs(*numbers: int, **options: Any) -> list[list[list[int]]]:
    """The batches of epochs, each drawn from a sampler of its own."""
    found = []
    for number in numbers:
        sampler = make(**options)
        sampler.set_epoch(number)
        found.append(list(sampler.track(sampler)))
    return found


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def resumed_after(received: int, workers: int, **options: Any) -> list[list[int]]:
    """The batches of three epochs, from one process up to a batch, and from then on from another."""
    loader = track(make(**options), workers)
    found = list(islice(chain(loader, loader, loader), received))
    state = through_a_file(loader.state_dict())
    sampler = make(**options)
    other = track(sampler, workers)
    other.load_state_dict(state)
    for _ in range(sampler.epoch, 3):
        found += other
    return found


@given(received=st.integers(0, 20), longest_first=st.booleans(), rank=st.integers(0, 1))
def test_a_run_that_is_resumed_equals_one_that_was_not_interrupted(
    received: int, longest_first: bool, rank: int
) -> None:
    options = {"longest_first": longest_first, "rank": rank, "world_size": 2}
    every = [*chain(*epochs(0, 1, 2, **options))]
    assert resumed_after(min(received, len(every)), 0, **options) == every


@pytest.mark.parametrize("received", [1, 7])
def test_workers_that_draw_ahead_change_nothing(received: int) -> None:
    assert resumed_after(received, 2) == [*chain(*epochs(0, 1, 2))]


def test_a_batch_counts_once_it_is_handed_out() -> None:
    loader = track(make())
    states = [loader.state_dict() for _ in loader]
    assert [(state["epoch"], state["position"]) for state in states] == [
        *((0, i) for i in range(1, len(loader))),
        (1, 0),
    ]
    assert loader.state_dict() == states[-1]


def test_a_pass_left_early_is_gone_on_with() -> None:
    sampler, (first, second) = make(), epochs(0, 1)
    for batch in sampler.track(loader_of(sampler)):
        if batch == first[2]:
            break
    assert len(sampler) == len(track(sampler)) == len(first)
    assert tracked(sampler) == first[3:]
    assert (sampler.epoch, len(sampler)) == (1, len(first))
    assert tracked(sampler) == second


def test_a_pass_left_at_its_last_batch_was_a_full_one() -> None:
    sampler, (first, second) = make(), epochs(0, 1)
    for batch in sampler.track(loader_of(sampler)):
        if batch == first[-1]:
            break
    assert tracked(sampler) == second


def test_a_pass_left_by_an_error_is_gone_on_with() -> None:
    sampler, (first,) = make(), epochs(0)
    with suppress(ZeroDivisionError):
        for _ in sampler.track(loader_of(sampler)):
            raise ZeroDivisionError
    assert tracked(sampler) == first[1:]


def test_a_pass_that_is_still_held_is_left_by_the_next() -> None:
    sampler, (first,) = make(), epochs(0)
    held = iter(sampler.track(loader_of(sampler)))
    assert [next(held), next(held)] == first[:2]
    assert tracked(sampler) == first[2:]
    with pytest.raises(SeqbatchError, match=f"^{re.escape(MEANWHILE)}$"):
        next(held)
    assert track(sampler).state_dict()["epoch"] == 1


def test_len_and_epoch_stay_as_they_are_during_a_pass() -> None:
    sampler, (first,) = make(), epochs(0)
    loader = loader_of(sampler)
    assert {(sampler.epoch, len(loader)) for _ in sampler.track(loader)} == {(0, len(first))}


def test_set_epoch_begins_another_epoch_and_leaves_the_place_in_this_one() -> None:
    sampler, (first, third) = make(), epochs(0, 2)
    next(iter(sampler.track(loader_of(sampler))))
    sampler.set_epoch(0)
    assert tracked(sampler) == first[1:]
    next(iter(sampler.track(loader_of(sampler))))
    sampler.set_epoch(2)
    assert tracked(sampler) == third
    sampler.set_epoch(0)
    assert tracked(sampler) == first


def test_set_epoch_during_a_pass() -> None:
    sampler = make()
    under_way = iter(sampler.track(loader_of(sampler)))
    next(under_way)
    sampler.set_epoch(5)
    with pytest.raises(SeqbatchError, match=f"^{re.escape(MEANWHILE)}$"):
        next(under_way)
    assert tracked(sampler) == epochs(5)[0]
    for batch in sampler.track(loader_of(sampler)):
        if batch == epochs(6)[0][-1]:
            sampler.set_epoch(9)  # after the last batch there is nothing to be confused
    assert sampler.epoch == 9


@pytest.mark.parametrize("workers", [0, 2])
def test_passes_over_the_loader_itself_are_an_epoch_each(workers: int) -> None:
    sampler = make()
    loader = loader_of(sampler, workers)
    assert [list(loader), list(loader), list(loader)] == epochs(0, 1, 2)
    next(iter(loader))  # and one left early
    assert (sampler.epoch, len(loader)) == (3, len(epochs(3)[0]))
    assert list(loader) == epochs(4)[0]
    assert tracked(sampler) == epochs(0)[0]
    assert list(loader) == epochs(1)[0]
    sampler.set_epoch(0)
    assert list(loader) == epochs(0)[0]


def test_a_look_at_a_batch_loses_no_place() -> None:
    sampler, (first,) = make(), epochs(0)
    next(iter(sampler.track(loader_of(sampler))))
    for _ in range(3):
        next(iter(loader_of(sampler)))
    assert tracked(sampler) == first[1:]


def test_a_look_at_a_batch_during_a_pass_loses_no_place() -> None:
    sampler, (first,) = make(), epochs(0)
    found, loader = [], track(sampler)
    for batch in loader:
        found.append(batch)
        if len(found) == 2:
            next(iter(loader_of(sampler)))
        elif len(found) == 3:
            assert loader.state_dict()["position"] == 3
    assert found == first


def test_it_does_not_tell_a_place_that_it_does_not_know() -> None:
    sampler = make()
    tracked_loader = track(sampler)
    message = f"`state_dict` must know how many batches were returned; got a pass over the DataLoader itself. {TRACK}"
    loader = iter(loader_of(sampler))
    for _ in range(len(sampler)):
        next(loader)
        with pytest.raises(SeqbatchError, match=f"^{re.escape(message)}$"):
            tracked_loader.state_dict()
    with pytest.raises(SeqbatchError, match=f"^{re.escape(message)}$"):
        tracked_loader.state_dict()
    sampler.set_epoch(1)
    assert tracked_loader.state_dict()["epoch"] == 1
    next(iter(loader_of(sampler)))
    tracked_loader.load_state_dict(track(make()).state_dict())
    assert tracked_loader.state_dict() == track(make()).state_dict()


class Changed:
    """A loader that does not hand out what another does."""

    def __init__(self, loader: Iterable[Any], times: int) -> None:
        self.loader, self.times = loader, times

    def __iter__(self) -> Iterator[Any]:
        if self.times:
            yield from (batch for batch in self.loader for _ in range(self.times))
        else:
            yield from zip(*[iter(self.loader)] * 2, strict=False)


@pytest.mark.parametrize(
    ("times", "found"),
    [
        (0, "fewer"),  # two in one
        (2, "others"),  # each twice
        (None, "others"),  # of no sampler
        (7, "fewer"),  # none
    ],
)
def test_loaders_that_it_refuses(times: int | None, found: str) -> None:
    sampler = make()
    loader: Iterable[Any] = [[1], [2]] if times is None else [] if times == 7 else Changed(loader_of(sampler), times)
    message = f"`loader` must return one batch for each that this sampler draws; got {found}. "
    with pytest.raises(SeqbatchError, match=f"^{message}Give the DataLoader whose batch_sampler is this sampler.$"):
        list(sampler.track(loader))


@pytest.mark.parametrize("number", [len(LENGTHS) - 1, len(LENGTHS) + 1])
def test_a_data_set_of_another_length_is_refused(number: int) -> None:
    sampler = make()
    data: Any = range(number)
    loader: DataLoader[Any] = DataLoader(data, batch_sampler=sampler)
    message = rf"^`loader` must be over {len(LENGTHS)} samples, as the lengths of the sampler; got {number}\.$"
    with pytest.raises(SeqbatchError, match=message):
        sampler.track(loader)


def test_a_loader_that_is_refused_moves_nothing() -> None:
    sampler = make()
    with pytest.raises(SeqbatchError, match="got others"):
        list(sampler.track([[1]]))
    assert tracked(sampler) == epochs(0)[0]


def test_a_state_of_another_process_is_that_of_this_one() -> None:
    one, other = make(rank=0, world_size=2), make(rank=1, world_size=2)
    loader = track(one)
    next(iter(loader))
    track(other).load_state_dict(loader.state_dict())
    assert tracked(other) == epochs(0, rank=1, world_size=2)[0][1:]


def test_a_state_is_made_of_plain_values() -> None:
    assert {type(value) for value in track(make()).state_dict().values()} <= {int, str, bool, type(None)}


def test_a_copy_made_during_a_pass_goes_on_from_there() -> None:
    sampler, (first,) = make(), epochs(0)
    for batch in sampler.track(loader_of(sampler)):
        if batch == first[1]:
            other = copy.deepcopy(sampler)
            assert track(other).state_dict() == track(sampler).state_dict()
            assert tracked(other) == first[2:]


def test_repr_shows_numbers_only() -> None:
    sampler = make(batch_size=4, rank=1, world_size=2)
    shown = "BucketBatchSampler(20 sequences, batch_size 4, max_steps 15, process 1 of 2, epoch 0)"
    assert repr(sampler) == shown
    assert repr(sampler.track([])) == f"TrackedLoader({len(sampler)} batches, epoch 0)"


def test_set_epoch_cannot_lose_a_loaded_position() -> None:
    """As accelerate calls set_epoch(0) before the first pass of every process."""
    saved = track(make())
    saved.load_state_dict({**saved.state_dict(), "epoch": 3, "position": 2})
    sampler = make()
    loader = track(sampler)
    loader.load_state_dict(saved.state_dict())
    remedy = "Count epochs from sampler.epoch on; a new sampler begins with epoch 0."
    for epoch in (0, 2, 4):
        message = f"`epoch` must be 3, the epoch of the loaded state; got {epoch}. {remedy}"
        with pytest.raises(SeqbatchValueError, match=f"^{re.escape(message)}$"):
            sampler.set_epoch(epoch)
    sampler.set_epoch(3)
    assert list(loader) == epochs(3)[0][2:]
    with pytest.raises(SeqbatchValueError, match=r"^`epoch` must be 3 or more, the epoch of the loaded state; got 1"):
        sampler.set_epoch(1)
    sampler.set_epoch(5)
    assert list(loader) == epochs(5)[0]


@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_loader_of_another_sampler_is_refused(batch_size: int | None) -> None:
    """As a library makes it that shards batches: accelerate.prepare, or a wrapper that draws from the sampler."""
    sampler, other = make(), make()
    data: Any = range(len(LENGTHS))
    loader: DataLoader[Any] = (
        DataLoader(data, batch_sampler=other) if batch_size else DataLoader(data, sampler=other, batch_size=None)
    )
    message = (
        "`loader` must have this sampler as its batch_sampler; got a seqbatch.data._buckets.BucketBatchSampler. "
        "Track the DataLoader that was made with it, before a library prepares it."
    )
    with pytest.raises(SeqbatchError, match=f"^{re.escape(message)}$"):
        sampler.track(loader)


def test_a_batch_sampler_may_be_the_sampler_of_a_loader_without_batches() -> None:
    sampler = make()
    data: Any = torch.arange(len(LENGTHS))
    loader: DataLoader[Any] = DataLoader(data, sampler=sampler, batch_size=None)
    assert [batch.tolist() for batch in sampler.track(loader)] == epochs(0)[0]
