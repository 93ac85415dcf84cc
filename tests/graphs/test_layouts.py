"""Padding in graphs: lengths and padding that do not fit are refused, and lose or change no step in silence."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from graph_models import allow_recurrent_layers as allow_recurrent_layers
from graph_models import compiled
from torch import Tensor, nn
from torch._dynamo.exc import TorchRuntimeError, Unsupported
from torch.export import Dim, export
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch

SUM, SIGN = "`lengths` must add up to the steps of `values`", "`lengths` must be at least 0"


def joined(one: SequenceBatch, other: SequenceBatch) -> Tensor:
    return SequenceBatch.concat([one, other]).to_padded(batch_first=True)


CALLS: dict[str, Callable[[SequenceBatch, SequenceBatch], Tensor]] = {
    "concat": joined,
    "expand": lambda one, _: one.expand(one.offsets[1:]).values,
    "map": lambda one, _: one.map(torch.relu).values,
    "mask": lambda one, _: one.mask(batch_first=True, total_length=9),
    "offsets": lambda one, _: one.offsets,
    "sum": lambda one, _: one.sum(),
    "to_padded": lambda one, _: one.to_padded(batch_first=True),
}


class Maker(nn.Module):
    """A model that builds batches of values and lengths that were not checked."""

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


FRACTION, RANGE, COMPLEX = "a fraction", "one out of its range", "a complex number"


def filled(batch: SequenceBatch, fill: Any) -> Tensor:
    return batch.to_padded(batch_first=True, padding_value=fill)


class Filler(nn.Module):
    def __init__(self, fill: Any) -> None:
        super().__init__()
        self.fill = fill

    def forward(self, batch: SequenceBatch) -> Tensor:
        return filled(batch, self.fill)


@pytest.mark.parametrize(
    ("dtype", "fill", "found"),
    [
        (torch.uint8, -1, RANGE),
        (torch.int8, 128, RANGE),
        (torch.bool, 2, RANGE),
        (torch.int64, 1.5, FRACTION),
        (torch.int64, 2**70, RANGE),
        (torch.bool, 0.5, FRACTION),
        (torch.int8, 2.5 + 0j, FRACTION),
        (torch.int32, float("nan"), RANGE),
        (torch.int32, float("inf"), RANGE),
        (torch.float16, 7e4, RANGE),
        (torch.float16, -(10**5), RANGE),
        (torch.float16, 2j, COMPLEX),
        (torch.bfloat16, 1e39, RANGE),
        (torch.float32, 1e39, RANGE),
        (torch.float8_e5m2, 1e9, RANGE),
        (torch.float8_e4m3fn, 1e3, RANGE),
        (torch.float8_e4m3fn, float("inf"), RANGE),
        (torch.complex64, 1e39j, RANGE),
    ],
)
def test_padding_that_would_become_another_number(dtype: torch.dtype, fill: complex, found: str) -> None:
    batch = SequenceBatch(torch.ones(5).to(dtype), [3, 2])
    said = re.escape(f"`padding_value` must be a value of {dtype}; got {found}.")
    with pytest.raises(SeqbatchValueError):
        filled(batch, fill)
    with pytest.raises(SeqbatchValueError, match=said):
        export(Filler(fill), (batch,))
    with pytest.raises(Unsupported, match=said):
        compiled(filled)(batch, fill)


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        (torch.uint8, 255),
        (torch.int8, 2 + 0j),
        (torch.bool, 1),
        *((torch.float16, fill) for fill in (7, 65504.0, 2 + 0j, float("nan"), float("inf"), -float("inf"))),
        (torch.float8_e5m2, float("inf")),
        (torch.float8_e4m3fn, -448.0),
        (torch.complex64, 3j),
    ],
)
def test_padding_that_the_dtype_holds(dtype: torch.dtype, fill: complex) -> None:
    batch = SequenceBatch(torch.ones(5).to(dtype), [3, 2])
    for found in (compiled(filled)(batch, fill), export(Filler(fill), (batch,)).module()(batch)):
        assert_close(found, filled(batch, fill), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("fill", ["x", torch.tensor(1.0), np.float32(1)])
def test_padding_that_is_not_a_python_number(fill: Any) -> None:
    said = "`padding_value` must be a number of Python in a graph; got a"
    with pytest.raises(Unsupported, match=said):
        compiled(filled)(SequenceBatch(torch.ones(5), [3, 2]), fill)
    with pytest.raises(SeqbatchTypeError, match=said):
        export(Filler(fill), (SequenceBatch(torch.ones(5), [3, 2]),))


class Padder(nn.Module):
    def __init__(self, total_length: Any) -> None:
        super().__init__()
        self.total_length = total_length

    def forward(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"batch_first": True, "total_length": self.total_length}
        return batch.to_padded(**options), batch.mask(**options)


@pytest.mark.parametrize(
    ("total_length", "kind", "said"),
    [
        (True, SeqbatchTypeError, "be an integer; got True."),
        (7.0, SeqbatchTypeError, "be an integer; got a float."),
        (-1, SeqbatchValueError, "be at least 0; got a negative number."),
    ],
)
def test_numbers_of_steps_that_are_none(total_length: Any, kind: type[Exception], said: str) -> None:
    batch, said = SequenceBatch(torch.ones(5), [3, 2]), re.escape(f"`total_length` must {said}")
    with pytest.raises(kind, match=said):
        export(Padder(total_length), (batch,))
    with pytest.raises((Unsupported, TorchRuntimeError), match=said):
        compiled(lambda batch, steps: batch.mask(batch_first=True, total_length=steps))(batch, total_length)


def test_one_graph_serves_every_number_of_steps() -> None:
    graph = compiled(lambda batch, steps: batch.to_padded(batch_first=True, total_length=steps))
    for steps, lengths in ((7, [3, 2]), (9, [4, 0, 3]), (12, [5, 7])):
        batch = SequenceBatch(torch.arange(float(sum(lengths))), lengths)
        with torch._dynamo.config.patch(error_on_recompile=steps > 7):
            assert_close(graph(batch, steps), batch.to_padded(batch_first=True, total_length=steps))
