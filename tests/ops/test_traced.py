"""The functions of `_ops`, eager and traced: equal signatures, and equal results where both have one."""

import inspect
from typing import Any

import pytest
import torch
from graph_models import PATTERNS
from torch import Tensor, nn
from torch.export import Dim, export
from torch.testing import assert_close

from seqbatch import SeqbatchValueError, SequenceBatch, _ops
from seqbatch._ops import eager, traced
from seqbatch._structure.sequence_lengths import Lengths

CPU = torch.device("cpu")
NAMES = [name for name in vars(_ops) if hasattr(eager, name) and inspect.isfunction(getattr(traced, name, None))]


@pytest.mark.parametrize("name", NAMES)
def test_the_signatures_are_equal(name: str) -> None:
    parameters = [[*inspect.signature(getattr(module, name)).parameters] for module in (eager, traced)]
    assert parameters[0] == parameters[1]


def test_each_function_is_there_twice() -> None:
    for module in (eager, traced):
        own = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        assert {name for name in own if not name.startswith("_")} - set(NAMES) <= {"positions_of"}  # for a graph alone


@pytest.mark.parametrize("lengths", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("name", ["offsets", "segment_ids", "positions"])
def test_tensors_of_lengths(name: str, lengths: list[int]) -> None:
    arguments: tuple[Any, ...] = (CPU,) if name == "offsets" else (sum(lengths), CPU)
    wanted = getattr(eager, name)(Lengths(tuple(lengths)), *arguments)
    assert_close(getattr(traced, name)(Lengths(torch.tensor(lengths, dtype=torch.int64)), *arguments), wanted)


class Model(nn.Module):
    def forward(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        same = batch.map(torch.add, batch.with_values(batch.values))
        return same.segment_ids, batch.positions


@pytest.mark.graphs
def test_they_are_exported_for_all_lengths() -> None:
    example, other = SequenceBatch(torch.zeros(5, 2), [3, 2]), SequenceBatch(torch.zeros(7, 2), [0, 4, 3])
    shapes = ([{0: Dim("steps", min=0)}, {0: Dim("batch", min=0)}],)
    program = export(Model(), (example,), dynamic_shapes=shapes).module()
    for batch in (example, other):
        assert_close(program(batch), (batch.segment_ids, batch.positions))


LENGTHS = Lengths(torch.tensor([2, 1]))


def test_sizes_that_are_known_to_differ() -> None:
    said = r"`others\[0\]` must have as many sequences as this batch; got fewer or more\."
    with pytest.raises(SeqbatchValueError, match=said):
        traced.require_batch_size("others[0]", Lengths(torch.tensor([3])), LENGTHS, "this batch")
    with pytest.raises(SeqbatchValueError, match=r"`values` must have the steps of this batch; got fewer or more\."):
        traced.require_steps_of_batch("values", 2, 3)
    with pytest.raises(SeqbatchValueError, match=r"`tensor` must have a row for each sequence; got fewer or more\."):
        traced.expand(torch.zeros(3, 4), LENGTHS, 3)
