"""Lengths as a graph knows them, a tensor or the sizes of a list; and numbers again outside it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_models import compiled
from torch import Tensor, nn
from torch.export import Dim, export
from torch.testing import assert_close

from seqbatch import SeqbatchError, SeqbatchValueError, SequenceBatch, encode

VALUES, LENGTHS = torch.arange(10.0).view(5, 2), torch.tensor([3, 2])


class Makes(nn.Module):
    """Makes a batch and calls a function with it; not strictly exported, all of it runs as Python."""

    def __init__(self, function: Callable[[SequenceBatch], Any], lengths: list[int] | None = None) -> None:
        super().__init__()
        self.function, self.lengths = function, lengths

    def forward(self, values: Tensor, lengths: Tensor) -> Any:
        return self.function(SequenceBatch(values, lengths if self.lengths is None else self.lengths))


def test_a_batch_that_a_graph_made_has_numbers_outside_it() -> None:
    batch = compiled(lambda values, lengths: SequenceBatch(values, lengths))(VALUES, LENGTHS)
    assert batch.lengths == (3, 2)
    assert [len(one) for one in batch] == [3, 2]


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda batch: batch.values * batch.lengths[0], "lengths"),
        (lambda batch: batch.values * batch.max_length, "max_length"),
        (lambda batch: batch[[1, 0]].values, "lengths"),
    ],
)
def test_numbers_are_refused_where_a_program_is_exported(function: Any, what: str) -> None:
    with pytest.raises(SeqbatchError, match=f"may depend on their numbers; got a call that needs {what}"):
        export(Makes(function), (VALUES, LENGTHS), strict=False)


def test_lengths_in_a_list_are_those_of_every_call() -> None:
    model = Makes(lambda batch: batch.sum(), [3, 2])
    program = export(model, (VALUES, LENGTHS), dynamic_shapes=({0: Dim.STATIC}, None), strict=False)
    values = torch.randn(5, 2)
    assert_close(program.module()(values, LENGTHS), torch.stack([values[:3].sum(0), values[3:].sum(0)]))


def test_a_layer_is_named_where_a_program_is_exported() -> None:
    with pytest.raises(SeqbatchValueError, match=r"`sequences` must have .*Linear"):
        export(Makes(lambda batch: encode(nn.Linear(5, 3), batch).values), (VALUES, LENGTHS), strict=False)
