"""Padding in graphs: lengths and padding that do not fit are refused, and lose or change no step in silence."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_models import allow_recurrent_layers as allow_recurrent_layers
from graph_models import compiled
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch.export import Dim, export
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch

SUM, SIGN = "`lengths` must add up to the steps of `values`", "`lengths` must be at least 0"


def joined(one: SequenceBatch, other: SequenceBatch) -> Tensor:
    return SequenceBatch.concat([one, other]).to_padded(batch_first=True)


CALLS: dict[str, Callable[[SequenceBatch, SequenceBatch], Tensor]] = {
    "concat": joined,
    "map": lambda one, _: one.map(torch.relu).values,
    "mask": lambda one, _: one.mask(batch_first=True, total_length=9),
    "offsets": lambda one, _: one.offsets,
    "sum": lambda one, _: one.sum(),
    "to_padded": lambda one, _: one.to_padded(batch_first=True),
}


class Maker(nn.Module):
    """A model that makes batches of values and lengths, of which nobody has looked whether they fit."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, values: Tensor, one: Tensor, other: Tensor) -> Tensor:
        return CALLS[self.how](SequenceBatch(values, one), SequenceBatch(values, other))


@pytest.mark.parametrize("how", CALLS)
def test_lengths_that_are_not_those_of_the_values(how: str) -> None:
    model, given = Maker(how), (torch.arange(5.0), torch.tensor([3, 2]), torch.tensor([1, 4]))
    sizes = {0: Dim("steps", min=0)}, {0: Dim("one", min=0)}, {0: Dim("other", min=0)}
    program = export(model, given, dynamic_shapes=sizes).module()
    for graph in (compiled(model), program):
        assert_close(graph(*given), model(*given))
        # Those of both together may be as many as all steps, as in the first two.
        for one, other, said in (
            ([3, 3], [2, 2], SUM),
            ([2, 2], [3, 3], SUM),
            ([0, 0], [3, 2], SUM),
            ([6, -1], [3, 2], SIGN),
            ([3, 2], [-1, 6], SIGN),
        ):
            with pytest.raises(RuntimeError, match=said):
                graph(given[0], torch.tensor(one), torch.tensor(other))


def from_padded(padded: Tensor, lengths: Tensor) -> Tensor:
    return SequenceBatch.from_padded(padded, lengths, batch_first=True).values


def test_lengths_that_a_padded_tensor_cannot_have() -> None:
    graph, padded = compiled(from_padded), torch.arange(6.0).view(2, 3)
    assert_close(graph(padded, torch.tensor([3, 0])), padded[0])
    for lengths, said in (([-1, 2], SIGN), ([4, 2], "`lengths` must be at most the time axis of `padded`")):
        with pytest.raises(RuntimeError, match=said):
            graph(padded, torch.tensor(lengths))


class Reader(nn.Module):
    def forward(self, padded: Tensor, lengths: Tensor) -> Tensor:
        return from_padded(padded, lengths)


@pytest.mark.parametrize("lengths", [[3], [3, 2, 1]])
def test_more_or_fewer_lengths_than_sequences(lengths: list[int]) -> None:
    said = "`lengths` must be as many as the sequences of `padded`; got fewer or more."
    given = torch.arange(6.0).view(2, 3), torch.tensor(lengths)
    with pytest.raises(Unsupported, match=re.escape(said)):
        compiled(from_padded)(*given)
    with pytest.raises(SeqbatchValueError, match=re.escape(said)):
        export(Reader(), given)


@pytest.mark.parametrize(
    ("dtype", "fill", "found"),
    [
        (torch.uint8, -1, "one out of its range"),
        (torch.int8, 128, "one out of its range"),
        (torch.bool, 2, "one out of its range"),
        (torch.int64, 1.5, "a fraction"),
        (torch.bool, 0.5, "a fraction"),
        (torch.int32, float("nan"), "one out of its range"),
    ],
)
def test_padding_that_would_become_another_number(dtype: torch.dtype, fill: float, found: str) -> None:
    batch = SequenceBatch(torch.ones(5).to(dtype), [3, 2])
    with pytest.raises(Unsupported, match=re.escape(f"`padding_value` must be a value of {dtype}; got {found}.")):
        compiled(lambda batch: batch.to_padded(batch_first=True, padding_value=fill))(batch)


class Padder(nn.Module):
    def __init__(self, total_length: Any) -> None:
        super().__init__()
        self.total_length = total_length

    def forward(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"batch_first": True, "total_length": self.total_length}
        return batch.to_padded(**options), batch.mask(**options)


@pytest.mark.parametrize("total_length", [True, 7.0])
def test_numbers_of_steps_that_are_no_integers(total_length: Any) -> None:
    with pytest.raises(SeqbatchTypeError, match=rf"`total_length` must be an integer; got {total_length}\."):
        export(Padder(total_length), (SequenceBatch(torch.ones(5), [3, 2]),))


def test_one_graph_serves_every_number_of_steps() -> None:
    graph = compiled(lambda batch, steps: batch.to_padded(batch_first=True, total_length=steps))
    for steps, lengths in ((7, [3, 2]), (9, [4, 0, 3]), (12, [5, 7])):
        batch = SequenceBatch(torch.arange(float(sum(lengths))), lengths)
        with torch._dynamo.config.patch(error_on_recompile=steps > 7):
            assert_close(graph(batch, steps), batch.to_padded(batch_first=True, total_length=steps))
