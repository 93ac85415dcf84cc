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
    "`loader` must be iterated over once at a time; got another pass, set_epoch or load_state_dict before this pass "
    "ended. Track the DataLoader before a library prepares it, and make a sampler for each loop."
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


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_pass_after_one_that_was_left_early_is_a_whole_epoch(shuffle: bool) -> None:
    """As for any DataLoader: a look at some batches must not take them from the next pass."""
    sampler, (first, second, third) = make(shuffle=shuffle), epochs(0, 1, 2, shuffle=shuffle)
    loader = track(sampler)
    for batch in loader:
        if batch == first[2]:
            break
    assert loader.state_dict()["position"] == 3
    assert len(sampler) == len(loader) == len(first)
    assert list(loader) == second
    assert (sampler.epoch, len(loader)) == (2, len(first))
    with suppress(ZeroDivisionError):
        for _ in loader:
            raise ZeroDivisionError
    assert sampler.epoch == 3
    sampler.set_epoch(2)
    assert list(loader) == third


def test_a_state_after_the_last_batch_is_the_start_of_the_next_epoch() -> None:
    sampler, (first, second) = make(), epochs(0, 1)
    loader = track(sampler)
    for batch in loader:
        if batch == first[-1]:
            break
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    assert list(loader) == second


def test_a_pass_that_is_still_held_is_ended_by_the_next() -> None:
    loader, (first, second) = track(make()), epochs(0, 1)
    held = iter(loader)
    assert [next(held), next(held)] == first[:2]
    assert list(loader) == second
    with pytest.raises(SeqbatchError, match=f"^{re.escape(MEANWHILE)}$"):
        next(held)
    assert loader.state_dict()["epoch"] == 2
    with pytest.raises(SeqbatchError, match=f"^{re.escape(MEANWHILE)}$"):
        list(zip(loader, loader, strict=True))


def test_len_and_epoch_stay_as_they_are_during_a_pass() -> None:
    sampler, (first,) = make(), epochs(0)
    loader = loader_of(sampler)
    assert {(sampler.epoch, len(loader)) for _ in sampler.track(loader)} == {(0, len(first))}


def test_set_epoch_begins_any_epoch() -> None:
    sampler, (first, third) = make(), epochs(0, 2)
    loader = track(sampler)
    next(iter(loader))
    sampler.set_epoch(0)
    assert loader.state_dict()["position"] == 0
    assert list(loader) == first
    sampler.set_epoch(2)
    assert list(loader) == third
    sampler.set_epoch(0)
    assert list(loader) == first


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


def test_a_look_at_a_batch_loses_no_position() -> None:
    saved = track(make())
    next(iter(saved))
    sampler, (first,) = make(), epochs(0)
    loader = track(sampler)
    loader.load_state_dict(saved.state_dict())
    for _ in range(3):
        next(iter(loader_of(sampler)))
    assert list(loader) == first[1:]


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
    with pytest.raises(SeqbatchError, match=f"^{message}Pass the DataLoader whose batch_sampler is this sampler.$"):
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


def test_a_copy_made_during_a_pass_has_its_state() -> None:
    sampler, (first, second) = make(), epochs(0, 1)
    for batch in sampler.track(loader_of(sampler)):
        if batch == first[1]:
            other = copy.deepcopy(sampler)
            assert track(other).state_dict() == track(sampler).state_dict()
            assert tracked(other) == second


def test_repr_shows_numbers_only() -> None:
    sampler = make(batch_size=4, rank=1, world_size=2)
    shown = "BucketBatchSampler(20 sequences, batch_size 4, max_steps 15, process 1 of 2, epoch 0)"
    assert repr(sampler) == shown
    assert repr(sampler.track([])) == f"TrackedLoader({len(sampler)} batches, epoch 0)"
    one = BucketBatchSampler([1, 2], batch_size=2, rank=0, world_size=1)
    assert repr(one.track([])) == "TrackedLoader(1 batch, epoch 0)"


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
        "`loader` must have this sampler as its batch_sampler; got a seqbatch.data.BucketBatchSampler. "
        "Track the DataLoader that was made with it, before a library prepares it."
    )
    with pytest.raises(SeqbatchError, match=f"^{re.escape(message)}$"):
        sampler.track(loader)


def test_a_batch_sampler_may_be_the_sampler_of_a_loader_without_batches() -> None:
    sampler = make()
    data: Any = torch.arange(len(LENGTHS))
    loader: DataLoader[Any] = DataLoader(data, sampler=sampler, batch_size=None)
    assert [batch.tolist() for batch in sampler.track(loader)] == epochs(0)[0]
