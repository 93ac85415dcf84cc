"""The batches of BucketBatchSampler: each sequence once, limits kept, processes apart and alike, little padding."""

import copy
import pickle
import re
from collections.abc import Callable
from itertools import chain
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from seqbatch import SeqbatchError
from seqbatch.data import BucketBatchSampler

Epoch = list[list[list[int]]]


@attrs.frozen
class Case:
    """What samplers are made of, and the epoch that is asked for."""

    lengths: list[int]
    options: dict[str, Any]
    world_size: int
    epoch: int

    def samplers(self) -> list[BucketBatchSampler]:
        """A sampler for each process, at the epoch."""
        made = [
            BucketBatchSampler(self.lengths, **self.options, rank=rank, world_size=self.world_size)
            for rank in range(self.world_size)
        ]
        for sampler in made:
            sampler.set_epoch(self.epoch)
        return made

    def batches(self) -> Epoch:
        """The batches of each process."""
        return [list(sampler.track(sampler)) for sampler in self.samplers()]

    def steps(self, batch: list[int]) -> int:
        return sum(self.lengths[i] for i in batch)

    def longest(self, batch: list[int]) -> int:
        return max(self.lengths[i] for i in batch)


def cut_one_by_one(lengths: list[int], batch_size: int | None, max_steps: int | None) -> int:
    """Count the batches if they are filled with the sequences in their order."""
    count, sequences, steps = 1, 0, 0
    for length in lengths:
        if sequences == (batch_size or len(lengths)) or steps + length > (max_steps or sum(lengths)):
            count, sequences, steps = count + 1, 0, 0
        sequences, steps = sequences + 1, steps + length
    return count


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Cases of every option whose batches can be shared out."""
    world_size = draw(st.integers(1, 5))
    steps = draw(st.sampled_from([st.integers(0, 30), st.integers(0, 1), st.just(7), st.just(0)]))
    lengths = draw(st.lists(steps, min_size=world_size, max_size=60))
    batch_size = draw(st.none() | st.integers(1, 8))
    least = max(1, *lengths)
    budgets = st.integers(least, 3 * least)
    max_steps = draw(budgets if batch_size is None else st.none() | budgets)
    if -(-cut_one_by_one(sorted(lengths), batch_size, max_steps) // world_size) * world_size > len(lengths):
        batch_size, max_steps, lengths = 2, None, lengths + lengths  # what was drawn is refused, see below
    options = {
        "batch_size": batch_size,
        "max_steps": max_steps,
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(-3, 3)),
        "longest_first": draw(st.booleans()),
        "pool": draw(st.none() | st.integers(1, 70)),
    }
    return Case(lengths, options, world_size, draw(st.integers(0, 4)))


@given(cases())
def test_every_sequence_comes_once_in_an_epoch_of_all_processes(case: Case) -> None:
    batches = chain.from_iterable(case.batches())
    assert sorted(chain.from_iterable(batches)) == list(range(len(case.lengths)))


@given(cases())
def test_limits_are_kept_and_no_batch_is_empty(case: Case) -> None:
    for batch in chain.from_iterable(case.batches()):
        assert 1 <= len(batch) <= (case.options["batch_size"] or len(case.lengths))
        assert case.steps(batch) <= (case.options["max_steps"] or sum(case.lengths))


@given(cases())
def test_every_process_has_as_many_batches_and_says_so(case: Case) -> None:
    samplers = case.samplers()
    told = [len(sampler) for sampler in samplers]
    assert told == [len(list(sampler.track(sampler))) for sampler in samplers] == [told[0]] * case.world_size


@given(cases())
def test_no_more_batches_than_needed_are_made_of_so_many_sequences(case: Case) -> None:
    if case.options["max_steps"] is None:
        rounds = -(-len(case.lengths) // (case.options["batch_size"] * case.world_size))
        assert [len(batches) for batches in case.batches()] == [rounds] * case.world_size


@given(cases())
def test_the_longest_sequences_of_a_round_are_alike(case: Case) -> None:
    rounds = [[case.longest(batch) for batch in batches] for batches in zip(*case.batches(), strict=True)]
    # All rounds together differ inside by no more than the batches of the epoch do.
    assert sum(max(longest) - min(longest) for longest in rounds) <= max(map(max, rounds)) - min(map(min, rounds))


@given(cases())
def test_longest_first_brings_the_batch_of_most_steps_forward_and_changes_nothing_else(case: Case) -> None:
    options = {**case.options, "longest_first": True}
    first, *others = zip(*attrs.evolve(case, options=options).batches(), strict=True)
    every = list(zip(*attrs.evolve(case, options={**options, "longest_first": False}).batches(), strict=True))
    most = max(case.steps(batch) for batches in every for batch in batches)
    assert most in map(case.steps, first)
    every.remove(first)
    assert others == every


@given(cases())
def test_fill_is_the_share_of_real_steps(case: Case) -> None:
    padded = sum(len(batch) * case.longest(batch) for batch in chain.from_iterable(case.batches()))
    wanted = sum(case.lengths) / padded if padded else 1.0
    assert [sampler.fill for sampler in case.samplers()] == [wanted] * case.world_size


@given(cases())
def test_copies_go_on_as_it_does(case: Case) -> None:
    sampler = case.samplers()[-1]
    copies = [copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))]
    assert [list(one.track(one)) for one in copies] == [list(sampler.track(sampler))] * 2


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (1, 0), (-1, 0), (1, 1)])
def test_the_order_follows_from_seed_and_epoch_and_from_nothing_else(seed: int, epoch: int) -> None:
    def batches(seed: int, epoch: int) -> Epoch:
        return Case(list(range(50)), {"batch_size": 4, "seed": seed}, 2, epoch).batches()

    others = {(0, 0), (0, 1), (1, 0), (-1, 0), (1, 1)} - {(seed, epoch)}
    found = batches(seed, epoch)
    torch.manual_seed(5)
    assert batches(seed, epoch) == found
    assert all(batches(*other) != found for other in others)


def test_it_leaves_the_random_numbers_of_others_alone() -> None:
    before = torch.get_rng_state()
    Case(list(range(50)), {"batch_size": 4}, 2, 0).batches()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_device_does_not_matter() -> None:
    case = Case(sentences(50), {"max_steps": 80}, 2, 0)
    wanted = case.batches()
    with torch.device("meta"):
        assert case.batches() == wanted


def test_batches_are_made_anew_even_where_all_sequences_are_one_pool() -> None:
    case = Case(list(range(64)), {"batch_size": 4}, 1, 0)
    epochs = [{frozenset(batch) for batch in attrs.evolve(case, epoch=i).batches()[0]} for i in range(4)]
    assert len({frozenset(epoch) for epoch in epochs}) == 4


def test_short_and_long_batches_come_in_no_order() -> None:
    case = Case(list(range(64)), {"batch_size": 4}, 1, 0)
    longest = [case.longest(batch) for batch in case.batches()[0]]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_without_shuffling_the_shortest_come_first_in_every_epoch() -> None:
    case = Case([5, 1, 4, 2, 1, 0], {"batch_size": 2, "shuffle": False, "pool": 3}, 1, 0)
    assert case.batches() == attrs.evolve(case, epoch=3).batches() == [[[5, 1], [4, 3], [2, 0]]]
    of_two = Case([5, 1, 4, 2, 1, 0, 3], {"max_steps": 6, "shuffle": False}, 2, 0)
    assert of_two.batches() == [[[5, 1, 4, 3], [2]], [[6], [0]]]


@pytest.mark.parametrize("lengths", [[3], [0, 0, 0]])
@pytest.mark.parametrize("limit", ["batch_size", "max_steps"])
def test_one_sequence_or_no_steps(lengths: list[int], limit: str) -> None:
    case = Case(lengths, {limit: 3}, 1, 0)
    assert sorted(chain.from_iterable(case.batches()[0])) == list(range(len(lengths)))
    assert case.samplers()[0].fill == 1.0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_lengths_may_be_a_tensor(dtype: torch.dtype) -> None:
    lengths = [5, 1, 4, 2, 1, 0]
    options: dict[str, Any] = {"max_steps": 6}
    of_tensor = BucketBatchSampler(torch.tensor(lengths, dtype=dtype), **options)
    of_list = BucketBatchSampler(lengths, **options)
    assert of_tensor.track(of_tensor).state_dict() == of_list.track(of_list).state_dict()
    assert list(of_tensor) == list(of_list)


def sentences(number: int) -> list[int]:
    """Lengths as those of sentences are: log-normal, 20 in the middle."""
    drawn = torch.empty(number, dtype=torch.float64).log_normal_(3, 0.6, generator=torch.Generator().manual_seed(0))
    return [max(1, round(length)) for length in drawn.tolist()]


def random_batches(
    lengths: list[int], *, batch_size: int | None = None, max_steps: int | None = None
) -> list[list[int]]:
    """Batches of sequences in random order, each as large as it may be; lengths in place of indices."""
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(1)).tolist()
    batches: list[list[int]] = [[]]
    for length in (lengths[i] for i in order):
        most = batch_size or len(lengths)
        if len(batches[-1]) == most or sum(batches[-1]) + length > (max_steps or sum(lengths)):
            batches.append([])
        batches[-1].append(length)
    return batches


@pytest.mark.parametrize(
    ("options", "bound"), [({"batch_size": 32}, 0.9), ({"max_steps": 800}, 0.95), ({"batch_size": 8}, 0.95)]
)
@pytest.mark.parametrize("world_size", [1, 8])
def test_it_leaves_much_less_padding_than_random_batches(
    options: dict[str, Any], bound: float, world_size: int
) -> None:
    lengths = sentences(10_000)
    fill = BucketBatchSampler(lengths, **options, rank=0, world_size=world_size).fill
    batches = random_batches(lengths, **options)
    of_random = sum(lengths) / sum(len(batch) * max(batch) for batch in batches)
    assert fill > bound
    assert of_random < 0.5
    # That of random batches of its own is as large.
    assert BucketBatchSampler(lengths, **options, pool=1).fill == pytest.approx(of_random, abs=0.02)


@pytest.mark.parametrize("options", [{"batch_size": 32}, {"max_steps": 800}])
@pytest.mark.parametrize("measure", ["steps", "longest"])
def test_processes_wait_little_for_each_other(options: dict[str, int], measure: str) -> None:
    case = Case(sentences(20_000), options, 8, 0)
    cost: Callable[[list[int]], int] = getattr(case, measure)
    rounds = [[*map(cost, batches)] for batches in zip(*case.batches(), strict=True)]
    assert sum(sum(costs) / len(costs) / max(costs) for costs in rounds) / len(rounds) > 0.95


def test_where_nearly_every_sequence_is_a_batch_all_are_sorted_together() -> None:
    lengths = [1, 8, 8, 8, 8, 8, 1]  # 6 batches for 2 processes only if the short ones meet
    for epoch in range(20):
        batches = Case(lengths, {"max_steps": 8, "pool": 1}, 2, epoch).batches()
        assert sorted(map(sorted, chain.from_iterable(batches))) == [[0, 6], [1], [2], [3], [4], [5]]


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int, **others: Any) -> None:
    """Patch torch.distributed to report this rank of several processes, whose states differ in `others`."""

    def all_gather_object(states: list[Any], own: Any) -> None:
        states[:] = [own if i == rank else {**own, **others} for i in range(world_size)]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)


def test_rank_and_world_size_are_those_of_torch_distributed_when_a_pass_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = BucketBatchSampler(range(9), batch_size=2)
    assert (len(sampler), len(list(sampler))) == (5, 5)
    as_process(monkeypatch, 2, 3)
    given = BucketBatchSampler(range(9), batch_size=2, rank=2, world_size=3)
    assert len(sampler) == len(given) == 2
    sampler.set_epoch(0)
    assert list(sampler.track(sampler)) == list(given.track(given))


def test_more_processes_than_sequences_are_refused_when_a_pass_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = BucketBatchSampler([1, 2], batch_size=2)
    as_process(monkeypatch, 0, 3)
    with pytest.raises(ValueError, match=r"^`lengths` must be at least 3, one for each process; got 2\.$"):
        list(sampler.track(sampler))


@pytest.mark.parametrize(
    "others", [{"lengths": "00"}, {"seed": 1}, {"epoch": 3}, {"position": 1}, {"sequences": 7}, {"batch_size": None}]
)
def test_processes_that_do_not_begin_the_same_pass_are_refused(
    monkeypatch: pytest.MonkeyPatch, others: dict[str, Any]
) -> None:
    as_process(monkeypatch, 1, 2, **others)
    sampler = BucketBatchSampler(range(9), batch_size=2)
    ((name, value),) = others.items()
    own = sampler.track(sampler).state_dict()[name]
    message = (
        f"`sampler` must have the same {name} in every process; got {value!r} in process 0 and {own!r} in process 1. "
        "Pass the lengths of the whole data set in every process: the sampler shards it."
    )
    for _ in range(2):  # what is refused begins no pass
        with pytest.raises(SeqbatchError, match=f"^{re.escape(message)}$"):
            next(iter(sampler.track(sampler)))
        with pytest.raises(SeqbatchError, match=r"^`sampler` must be iterated over by sampler\.track"):
            next(iter(sampler))


def test_an_epoch_is_continued_by_as_many_processes_as_began_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = BucketBatchSampler(range(9), batch_size=2)
    loader = sampler.track(sampler)
    state = {**loader.state_dict(), "position": 2}
    loader.load_state_dict(state)
    as_process(monkeypatch, 0, 2)
    message = (
        "`sampler` must continue the epoch in as many processes as its state was loaded in, 1; got 2. "
        "Load the state after the process group is made."
    )
    with pytest.raises(SeqbatchError, match=f"^{re.escape(message)}$"):
        next(iter(loader))
    with pytest.raises(SeqbatchError, match=r"^`state_dict` must have world_size 2, as this sampler; got 1"):
        loader.load_state_dict(state)


@pytest.mark.parametrize("given", [True, False])
def test_several_processes_are_refused_where_batches_may_be_sharded_again(
    monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    as_process(monkeypatch, 1, 2)
    rank, world_size = (1, 2) if given else (None, None)
    sampler = BucketBatchSampler(range(9), batch_size=2, rank=rank, world_size=world_size)
    message = (
        "`sampler` must be iterated over by sampler.track(loader), because there are 2 processes; got a pass over the "
        "sampler itself. The sampler shards the data itself, and a library that shards its batches again would drop "
        "most of them: pass it sampler.track(loader), which it leaves as it is."
    )
    data: Any = range(9)
    loaders: list[Any] = [sampler, DataLoader(data, batch_sampler=sampler)]
    for loader in loaders:
        with pytest.raises(SeqbatchError, match=f"^{re.escape(message)}$"):
            next(iter(loader))
        assert len(list(sampler.track(loader))) == len(sampler)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("pool", [None, 1])
@pytest.mark.parametrize("lengths", ["sentences", "few", "heavy"])
def test_every_epoch_has_the_same_number_of_batches(lengths: str, pool: int | None, world_size: int) -> None:
    known = {
        "sentences": sentences(1000),
        "few": sentences(40),
        "heavy": [min(400, int(5 / (1 - i / 1000) ** 0.7)) for i in range(1000)],
    }[lengths]
    cases = [Case(known, {"max_steps": 400, "pool": pool}, world_size, epoch) for epoch in range(25)]
    found = [[len(batches) for batches in case.batches()] for case in cases]
    assert found == [[len(case.samplers()[0])] * world_size for case in cases]
    assert len({count for counts in found for count in counts}) == 1
    # And few more than if each epoch had as few as it can.
    fewest = -(-cut_one_by_one(sorted(known), None, 400) // world_size)
    assert found[0][0] <= fewest * 1.02 + 1


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"max_steps": 2**63}, {"batch_size": 1, "pool": 1}])
def test_lengths_as_large_as_they_may_be_are_planned_as_small_ones(options: dict[str, Any]) -> None:
    most = 2**62 // 5 - 1
    large, small = (BucketBatchSampler([length] * 4 + [0], **options) for length in (most, 1))
    assert list(large) == list(small)
    assert large.fill == pytest.approx(small.fill)


@pytest.mark.parametrize("most", [2**63 - 1, 2**63, 2**70])
def test_limits_far_beyond_what_there_is_are_none(most: int) -> None:
    pooled, whole = (BucketBatchSampler([3, 1, 2], batch_size=2, pool=pool) for pool in (most, 3))
    assert list(pooled) == list(whole)
    assert list(BucketBatchSampler([1, 2, 3], batch_size=2, max_steps=most, shuffle=False)) == [[0, 1], [2]]
    assert list(BucketBatchSampler([1, 2, 3], batch_size=most, max_steps=3, shuffle=False)) == [[0, 1], [2]]


@pytest.mark.parametrize("number", [2**63, 2**64, 2**70])
def test_seeds_and_epochs_may_be_of_any_size(number: int) -> None:
    def batches(seed: int, epoch: int) -> list[list[int]]:
        sampler = BucketBatchSampler(range(50), batch_size=4, seed=seed)
        loader = sampler.track(sampler)
        loader.load_state_dict({**loader.state_dict(), "epoch": epoch})
        assert sampler.epoch == epoch
        return list(loader)

    found = [batches(*case) for case in ((number, 0), (0, number), (-number, 0), (0, 0))]
    assert all(sorted(chain.from_iterable(epoch)) == list(range(50)) for epoch in found)
    assert len({str(epoch) for epoch in found}) == 4
