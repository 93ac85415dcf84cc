"""Where time is cut into blocks, which row of a block is which step, and how padding holds a cell."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seqbatch._lengths import Lengths
from seqbatch.engines import blocks, packed
from seqbatch.engines._blocks import PLACES, blocks_of, cut, turn_plan

ragged = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def cost(cuts: list[tuple[int, int, int]], overhead: int) -> int:
    return sum(overhead + (end - begin) * count for begin, end, count in cuts)


@given(ragged, st.integers(0, 30))
def test_cuts_cost_as_little_as_can_be(counts: list[int], overhead: int) -> None:
    found = cut(tuple(counts), overhead)
    places = sorted(set(counts))
    inner = places[:-1]
    best = min(
        cost(
            [
                (begin, end, sum(count > begin for count in counts))
                for begin, end in itertools.pairwise([0, *chosen, places[-1]])
            ],
            overhead,
        )
        for number in range(len(inner) + 1)
        for chosen in itertools.combinations(inner, number)
    )
    assert cost(found, overhead) == best
    assert [begin for begin, _, _ in found] == [0, *(end for _, end, _ in found[:-1])]
    assert found[-1][1] == max(counts)


def test_of_many_lengths_some_places_are_weighed() -> None:
    cuts = cut(tuple(range(1, 1000)), 0)
    assert PLACES / 2 <= len(cuts) <= PLACES + 1
    assert cuts[-1][1] == 999


# Many of one length, some of every length, and a few long ones far apart.
skewed = st.tuples(
    st.lists(st.integers(1, 9), max_size=50),
    st.lists(st.integers(1, 99), max_size=100),
    st.lists(st.integers(1, 99), max_size=50).map(lambda few: [1000 * one for one in few]),
    st.integers(1, 99).flatmap(lambda length: st.integers(1, 1000).map(lambda number: [length] * number)),
).map(lambda parts: [count for part in parts for count in part])


@given(skewed, st.integers(0, 100))
def test_of_many_lengths_too_rows_are_few(counts: list[int], overhead: int) -> None:
    cuts = cut(tuple(counts), overhead)
    assert sum((end - begin) * count for begin, end, count in cuts) <= 1.5 * sum(counts) + (PLACES + 1) * overhead


@given(ragged, st.integers(0, 30))
def test_rows_hold_each_step_once(counts: list[int], overhead: int) -> None:
    lengths = Lengths(tuple(counts))
    plan = blocks_of(lengths, overhead)
    rows = [-1] * len(plan.enter.take)
    for row, step in enumerate(plan.enter.take.tolist()):
        rows[row] = step if step < lengths.total else -1
    assert sorted(step for step in rows if step >= 0) == list(range(lengths.total))
    assert sum(steps * count for steps, count in plan.shapes) == len(rows)
    assert [rows[row] for row in plan.leave.take.tolist()] == list(range(lengths.total))
    last = [int(end) - 1 for end in lengths.offsets[1:]]
    assert [rows[row] for row in plan.ends.tolist()] == last
    turned = [rows[row] for row in turn_plan(lengths, overhead).take.tolist()]
    for step, other in zip(rows, turned, strict=True):
        sequence = int(lengths.rows[step]) if step >= 0 else 0
        start, end = lengths.offsets[sequence : sequence + 2].tolist()
        assert other == (start + end - 1 - step if step >= 0 else -1)
    assert plan.padded == (-1 in rows)
    assert plan.rank.tolist() == lengths.rank.tolist()


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e5])
def test_padding_holds_the_cell_exactly(scale: float) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(3, 4)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.mul_(scale)
    lengths = Lengths((1, 40, 7))
    values = torch.randn(lengths.total, 3)
    assert blocks_of(lengths, blocks.block_overhead(3, 4, False)).padded
    _, (_, cell) = blocks.run(layer, values, lengths, None)
    _, (_, wanted) = packed.run(layer, values, lengths, None)
    torch.testing.assert_close(cell, wanted)


def test_a_block_costs_more_rows_where_a_row_costs_less() -> None:
    assert blocks.block_overhead(64, 64, False) == 192
    assert blocks.block_overhead(64, 1024, False) == 64


def test_a_block_costs_fewer_rows_where_weights_are_laid_out_once() -> None:
    assert blocks.block_overhead(64, 64, True) == 144
