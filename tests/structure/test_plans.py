"""Plans: each constructor derives the inverse and the flags, so that callers state nothing that can be computed."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import seqbatch
from seqbatch._ops.layouts import rearrange
from seqbatch._structure.plans import Plan, invert, packed_backward_plan, packed_plan, ranges, repeat, reverse_plan
from seqbatch._structure.sequence_lengths import Lengths

PACKAGE = Path(seqbatch.__file__).parent


def ints(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


@pytest.mark.parametrize(
    ("plan", "rows_in", "wanted"),
    [
        (Plan.gather(ints(2, 0), 3), 3, [2, 0]),
        (Plan.gather(ints(1, 0), 2), 2, [1, 0]),
        (Plan.gather(ints(1, 2, 0, 2), 2), 2, [1, None, 0, None]),
        (Plan.gather(ints(), 2), 2, []),
        (Plan.gather(ints(0, 0), 0), 0, [None, None]),
        (Plan.scatter(ints(2, 0), 3), 2, [1, None, 0]),
        (Plan.scatter(ints(1, 0), 2), 2, [1, 0]),
        (Plan.involution(ints(2, 1, 0)), 3, [2, 1, 0]),
        (Plan.match(ints(2, 0), ints(0, 3), 3, 4), 3, [2, None, None, 0]),
        (Plan.match(ints(1, 0), ints(0, 1), 2, 2), 2, [1, 0]),
        (Plan.match(ints(), ints(), 2, 1), 2, [None]),
        (Plan.copy(ints(1, 1, 0)), 2, [1, 1, 0]),
        (Plan.copy(ints(1, 2, 1), may_fill=True), 2, [1, None, 1]),
    ],
)
def test_a_plan_moves_rows_and_knows_where_it_fills(plan: Plan, rows_in: int, wanted: list[int | None]) -> None:
    values = torch.arange(10.0, 10 + rows_in).requires_grad_()
    moved = rearrange(values, plan, fill=-1)
    assert moved.tolist() == [-1 if row is None else 10 + row for row in wanted]
    assert plan.take_fills == (None in wanted)
    moved.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [wanted.count(row) for row in range(rows_in)]
    if plan.give is not None:
        assert plan.give_fills == any(row not in wanted for row in range(rows_in))
        assert plan.inverse.inverse == plan
        back = rearrange(moved.detach(), plan.inverse, fill=-2)
        assert back.tolist() == [10 + row if row in wanted else -2 for row in range(rows_in)]


@pytest.mark.parametrize("counts", [(2, 3), (3, 0, 1, 3), (0, 0), ()])
def test_packed_plans(counts: tuple[int, ...]) -> None:
    lengths = Lengths(counts)
    values = torch.arange(lengths.total)
    starts = [sum(counts[:i]) for i in range(len(counts))]
    longest = max(counts, default=0)
    wanted = [starts[i] + t for t in range(longest) for i in lengths.order_list if counts[i] > t]
    assert rearrange(values, packed_plan(lengths)).tolist() == wanted
    backward = packed_backward_plan(lengths)
    assert_close(rearrange(values, backward), rearrange(rearrange(values, reverse_plan(lengths)), packed_plan(lengths)))
    assert_close(rearrange(rearrange(values, backward), backward.inverse), values)


def test_plans_are_built_by_their_constructors_only() -> None:
    calls = {path.name for path in PACKAGE.rglob("*.py") if re.search(r"\bPlan\((?!NamedTuple)", path.read_text())}
    assert calls == {"plans.py"}


def test_indices() -> None:
    counts = ints(2, 0, 3, 0)
    assert_close(repeat(ints(7, 8, 5, 9), counts, 5), ints(7, 7, 5, 5, 5))
    assert_close(ranges(ints(4, 0, -1, 9), counts, 5), ints(4, 5, -1, 0, 1))
    assert_close(ranges(ints(4, 0, -1, 9), counts, 5, step=3), ints(4, 7, -1, 2, 5))
    assert_close(invert(ints(2, 3, 0), 3), ints(2, 3, 0))
