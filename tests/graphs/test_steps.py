"""Time as an axis in graphs: one graph for all lengths, with the results and gradients of the call without it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_models import PATTERNS, SMALL, compiled, graphs, signals, tensors
from graph_models import allow_recurrent_layers as allow_recurrent_layers
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch.export import Dim, export
from torch.testing import assert_close

from seqbatch import SeqbatchError, SequenceBatch


def marked(batch: SequenceBatch) -> SequenceBatch:
    """Put a step of ones before and after each sequence."""
    ones = torch.ones(batch.batch_size, dtype=torch.int64)
    marks = SequenceBatch(batch.values.new_ones(batch.batch_size, 4), ones)
    return SequenceBatch.concat_steps([marks, batch, marks])


def back_and_forth(batch: SequenceBatch) -> SequenceBatch:
    long = marked(batch)
    steps = long.with_values(long.positions)
    return long.take(SequenceBatch.concat_steps([steps.reverse(), steps[:, 1:2]]))


CALLS: dict[str, Callable[[SequenceBatch], SequenceBatch | Tensor]] = {
    "all but the first": lambda batch: batch[:, 1:],
    "all but the last": lambda batch: batch[:, :-1],
    "every other": lambda batch: batch[:, 1::2],
    "the last three but one": lambda batch: batch[:, -3:-1],
    "none": lambda batch: batch[:, 2:1],
    "a step": lambda batch: marked(batch)[:, 1],
    "a step from the end": lambda batch: marked(batch)[:, -2],
    "take": back_and_forth,
    "concat_steps": marked,
    "merge": lambda batch: SequenceBatch.concat([batch, batch]).merge(torch.full((2,), batch.batch_size)),
    "split": lambda batch: batch.merge(torch.full((1,), batch.batch_size)).split(batch.structure),
}


class Steps(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, batch: SequenceBatch) -> SequenceBatch | Tensor:
        return CALLS[self.name](batch)


@pytest.mark.parametrize("name", CALLS)
def test_one_graph_for_all_lengths(name: str) -> None:
    graph = compiled(CALLS[name])
    for patterns in (PATTERNS, SMALL):
        for lengths in patterns.values():
            batch = signals(lengths)
            leaf, other = (batch.values.clone().requires_grad_() for _ in range(2))
            found, wanted = tensors(graph(batch.with_values(leaf))), tensors(CALLS[name](batch.with_values(other)))
            assert_close(found, wanted)
            losses = [result[0].square().sum() for result in (found, wanted)]
            assert_close(torch.autograd.grad(losses[0], leaf), torch.autograd.grad(losses[1], other))
        if patterns is PATTERNS:
            assert graphs() == 1


@pytest.mark.parametrize("name", CALLS)
def test_they_are_exported_for_all_lengths(name: str) -> None:
    model = Steps(name)
    shapes = ([{0: Dim("steps", min=0)}, {0: Dim("batch", min=0)}],)
    program = export(model, (signals([3, 2]),), dynamic_shapes=shapes).module()
    for lengths in (PATTERNS | SMALL).values():
        assert_close(tensors(program(signals(lengths))), tensors(model(signals(lengths))))


OF_A_NUMBER: dict[str, Callable[[SequenceBatch, int], Tensor]] = {
    "a step": lambda batch, number: batch[:, number],
    "a step from the end": lambda batch, number: batch[:, -number],
    "a start": lambda batch, number: batch[:, number:].values,
    "an end": lambda batch, number: batch[:, :-number].values,
    "a stride": lambda batch, number: batch[:, ::number].values,
}


class OfANumber(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, batch: SequenceBatch, number: int) -> Tensor:
        return OF_A_NUMBER[self.name](batch, number)


@pytest.mark.parametrize("name", OF_A_NUMBER)
def test_one_graph_for_all_numbers_of_steps(name: str) -> None:
    call, batch = OF_A_NUMBER[name], signals([7, 6, 9])
    graph = compiled(call)
    shapes = ([{0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}], Dim.DYNAMIC)
    program = export(OfANumber(name), (batch, 2), dynamic_shapes=shapes).module()
    for number in (4, 2, 5):
        assert_close(graph(batch, number), call(batch, number))
        assert_close(program(batch, number), call(batch, number))
    assert graphs() == 1


def test_shifted_targets() -> None:
    def by_map(batch: SequenceBatch) -> Tensor:
        return batch[:, :-1].map(torch.sub, batch[:, 1:]).values.square().sum()

    def by_values(batch: SequenceBatch) -> Tensor:
        inputs = batch[:, :-1]
        targets = inputs.with_values(batch[:, 1:].values)  # so that the graph knows that there are as many steps
        return nn.functional.mse_loss(inputs.values, targets.values, reduction="sum")

    for loss in (by_map, by_values):
        graph = compiled(loss)
        for lengths in PATTERNS.values():
            assert_close(graph(signals(lengths)), loss(signals(lengths)))


STEP = "`index[1]` must name a step of each sequence"
POSITIONS = "`indices` must be positions of steps of their sequences, counted from 0"
RUNS: list[tuple[Callable[..., Any], list[int], list[int], str]] = [
    (lambda batch, steps: batch[:, 1], [3, 2], [3, 1], STEP),
    (lambda batch, steps: batch[:, -2], [3, 2], [1, 3], STEP),
    (lambda batch, steps: batch[:, 0], [3, 2], [0, 3], STEP),
    (lambda batch, steps: batch.take(SequenceBatch(steps, [1, 1])).values, [2, 1], [2, 2], POSITIONS),
    (lambda batch, steps: batch.take(SequenceBatch(steps, [1, 1])).values, [2, 1], [-1, 1], POSITIONS),
    (lambda batch, steps: batch.merge(steps).offsets, [2, 0], [3, 0], "`sizes` must add up to the sequences of this"),
    (lambda batch, steps: batch.merge(steps).offsets, [2, 0], [3, -1], "`sizes` must be at least 0"),
    (lambda batch, steps: batch.split(steps).offsets, [3, 2], [1, 4], "`lengths` must have one that ends where each"),
    (lambda batch, steps: batch.split(steps).offsets, [3, 2], [3, 3], "`lengths` must add up to the steps of `values`"),
]


@pytest.mark.parametrize(("call", "right", "wrong", "said"), RUNS)
def test_what_a_graph_checks_at_run_time(call: Any, right: list[int], wrong: list[int], said: str) -> None:
    def run(numbers: Tensor, batch: SequenceBatch) -> Any:
        if said == STEP:
            batch = SequenceBatch(batch.values[: numbers.sum()], numbers)
        return call(batch, numbers)

    graph, batch = compiled(run), signals([3, 2])
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        assert_close(graph(torch.tensor(right), batch), run(torch.tensor(right), batch))
        with pytest.raises(RuntimeError, match=re.escape(said)):
            graph(torch.tensor(wrong), batch)


def test_batches_of_other_numbers_of_sequences() -> None:
    one, other = signals([3, 2]), signals([1, 2, 2])
    for call in (
        lambda one, other: SequenceBatch.concat_steps([one, other]).values,
        lambda one, other: one.take(other.with_values(other.positions)).values,
    ):
        with pytest.raises(
            (Unsupported, RuntimeError), match=r"must have as many sequences as (batches\[0\]|this batch)"
        ):
            compiled(call)(one, other)


REFUSED: dict[str, tuple[Callable[[SequenceBatch], Any], str]] = {
    "chosen sequences": (lambda batch: batch[[1, 0], 1:].values, "lengths"),
    "one sequence": (lambda batch: batch[0, 1:], "lengths"),
    "a Tensor": (lambda batch: batch[:, torch.tensor(1)], "the value of a Tensor as an index"),
    "map_sequences": (lambda batch: batch.map_sequences(torch.relu).values, "one sequence at a time"),
}


class Refused(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, batch: SequenceBatch) -> Any:
        return REFUSED[self.name][0](batch)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_refuses(name: str) -> None:
    call, what = REFUSED[name]
    said = re.escape(
        f"so that nothing in it may depend on their numbers; got a call that needs {what}. Call it outside"
    )
    with pytest.raises(Unsupported, match=said):
        compiled(call)(signals([4, 3]))
    with pytest.raises(SeqbatchError, match=said):
        export(Refused(name), (signals([4, 3]),))
    with pytest.raises(Unsupported, match=r"For steps back to front call reverse\(\)"):
        compiled(lambda batch: batch[:, ::-1].values)(signals([4, 3]))


class FromATensor(nn.Module):
    def forward(self, batch: SequenceBatch, start: Tensor) -> Tensor:
        return batch[:, start:].values


def test_a_tensor_as_a_bound_is_refused_in_an_export() -> None:
    batch = signals([4, 3])
    with pytest.raises(SeqbatchError, match="got a call that needs the value of a Tensor as an index"):
        export(FromATensor(), (batch, torch.tensor(1)))
    graph = compiled(FromATensor())  # which reads it, and is compiled again for another
    for start in (1, 2):
        assert_close(graph(batch, torch.tensor(start)), batch[:, start:].values)
