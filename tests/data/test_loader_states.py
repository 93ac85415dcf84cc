"""States that a tracked loader does not load, and why."""

import re
from typing import Any

import pytest

from seqbatch import SeqbatchTypeError, SeqbatchValueError
from seqbatch.data import BucketBatchSampler, TrackedLoader

LENGTHS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
OPTIONS: dict[str, Any] = {"max_steps": 15, "seed": 2}


def make(lengths: list[int] = LENGTHS, **options: Any) -> TrackedLoader[list[int]]:
    sampler = BucketBatchSampler(lengths, **{**OPTIONS, **options})
    return sampler.track(sampler)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("seed", {"seed": 3}),
        ("max_steps", {"max_steps": 16}),
        ("batch_size", {"batch_size": 5}),
        ("shuffle", {"shuffle": False}),
        ("longest_first", {"longest_first": True}),
        ("pool", {"pool": 3}),
        ("world_size", {"rank": 0, "world_size": 2}),
    ],
)
def test_a_state_of_other_arguments_is_refused(name: str, options: dict[str, Any]) -> None:
    state, loader = make(**options).state_dict(), make()
    message = (
        f"`state_dict` must have {name} {loader.state_dict()[name]!r}, as this sampler; got {state[name]!r}. "
        "In an epoch planned otherwise some sequences would come twice and some never: finish the epoch as it was "
        "begun, or begin another by set_epoch."
    )
    with pytest.raises(SeqbatchValueError, match=f"^{re.escape(message)}$"):
        loader.load_state_dict(state)
    assert loader.state_dict() == make().state_dict()


@pytest.mark.parametrize(
    ("lengths", "name"), [(LENGTHS[:-1], "sequences"), ([*LENGTHS[:-2], LENGTHS[-1], LENGTHS[-2]], "lengths")]
)
def test_a_state_of_other_lengths_is_refused(lengths: list[int], name: str) -> None:
    with pytest.raises(SeqbatchValueError, match=f"^`state_dict` must have {name} "):
        make().load_state_dict(make(lengths).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "`state_dict` must have version 2, as this sampler; got 0. In an epoch planned otherwise"),
        ({"lengths": None}, "`state_dict` must have lengths '"),
        ({"epoch": -1}, "`state_dict['epoch']` must be at least 0; got -1."),
        ({"epoch": 0.5}, "`state_dict['epoch']` must be an integer; got 0.5."),
        ({"position": 999}, "`state_dict['position']` must be at most BATCHES, the batches of an epoch; got 999."),
        ({"position": None}, "`state_dict['position']` must be an integer; got None."),
    ],
)
def test_a_state_that_is_none(change: dict[str, Any], message: str) -> None:
    message = message.replace("BATCHES", str(len(make())))
    with pytest.raises((SeqbatchValueError, SeqbatchTypeError), match=f"^{re.escape(message)}"):
        make().load_state_dict({**make().state_dict(), **change})


def test_other_arguments_that_it_refuses() -> None:
    wrong: Any = [1]
    with pytest.raises(SeqbatchTypeError, match=r"^`state_dict` must be a mapping; got a list\.$"):
        make().load_state_dict(wrong)
    with pytest.raises(SeqbatchValueError, match=r"^`epoch` must be at least 0; got -1\.$"):
        BucketBatchSampler(LENGTHS, **OPTIONS).set_epoch(-1)
    with pytest.raises(SeqbatchTypeError, match=r"^`epoch` must be an integer; got 1\.5\.$"):
        BucketBatchSampler(LENGTHS, **OPTIONS).set_epoch(1.5)  # type: ignore[arg-type]  # which is what is wrong
