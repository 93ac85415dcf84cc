"""Batches that are made in a graph of masks and of offsets, and what the graph refuses when it runs."""

import itertools
from typing import Any

import pytest
import torch
from graph_models import PATTERNS, SMALL, compiled, signals
from graph_models import allow_recurrent_layers as allow_recurrent_layers
from torch import Tensor, nn
from torch._dynamo.decorators import mark_unbacked
from torch._dynamo.exc import Unsupported
from torch.export import Dim, export
from torch.testing import assert_close

from seqbatch import ContainerState, RNNState, SeqbatchTypeError, SeqbatchValueError, SequenceBatch

STEPS, BATCH, TIME = Dim("steps", min=0), Dim("batch", min=0), Dim("time", min=0)


class Masked(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first

    def forward(self, padded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = SequenceBatch.from_mask(padded, mask, batch_first=self.batch_first)
        return batch.values, batch.offsets, batch.sum()


def padded_and_mask(lengths: list[int], batch_first: bool, side: Any) -> tuple[Tensor, Tensor]:
    batch, options = signals(lengths), {"batch_first": batch_first, "padding_side": side}
    time = batch.max_length + 2
    padded = batch.to_padded(**options, padding_value=float("nan"), total_length=time)
    return padded, batch.mask(**options, total_length=time)


@pytest.mark.parametrize("batch_first", [False, True])
def test_from_mask(batch_first: bool) -> None:
    """One graph serves masks of both sides, because the side is only in their numbers."""
    model, given = Masked(batch_first), padded_and_mask([3, 2, 4], batch_first, "right")
    sizes = {0: BATCH, 1: TIME} if batch_first else {0: TIME, 1: BATCH}
    program = export(model, given, dynamic_shapes=(sizes, sizes)).module()
    graph = compiled(model)
    for lengths, side in itertools.product((PATTERNS | SMALL).values(), ("left", "right")):
        padded, mask = padded_and_mask(lengths, batch_first, side)
        wanted = model(padded, mask)
        assert_close(program(padded, mask), wanted)
        padded.requires_grad_()
        found = graph(padded, mask)
        assert_close(found, wanted)
        (gradient,) = torch.autograd.grad(found[0].sin().sum(), padded)
        real = mask[..., None].expand_as(padded)
        assert_close(gradient, torch.where(real, padded.detach().cos(), 0))


def test_from_mask_of_padding_on_both_sides_and_of_holes() -> None:
    graph, padded = compiled(Masked(True)), torch.arange(8.0).view(2, 4)
    mask = torch.tensor([[False, True, True, False], [True, False, False, False]])
    assert_close(graph(padded, mask), Masked(True)(padded, mask))
    mask[1, 2] = True
    with pytest.raises(RuntimeError, match="`mask` must have its True steps side by side in each sequence"):
        graph(padded, mask)


@pytest.mark.parametrize(
    ("mask", "kind", "said"),
    [
        (torch.ones(2, 3), SeqbatchTypeError, r"be a bool Tensor, True on real steps; got torch\.float32"),
        (
            torch.ones(2, 3).long(),
            SeqbatchTypeError,
            r"be a bool Tensor, .*; got torch\.int64\. If 1 marks a step",
        ),
        (torch.ones(2, 4, dtype=torch.bool), SeqbatchValueError, "have the first two axes of `padded`; got others"),
        (torch.ones(2, dtype=torch.bool), SeqbatchValueError, "have the first two axes of `padded`; got others"),
    ],
)
def test_masks_that_fit_nothing(mask: Tensor, kind: type[Exception], said: str) -> None:
    given = torch.ones(2, 3), mask
    with pytest.raises(Unsupported, match=f"`mask` must {said}"):
        compiled(Masked(True))(*given)
    with pytest.raises(kind, match=f"`mask` must {said}"):
        export(Masked(True), given)


class Again(nn.Module):
    """Pads a batch and a mask in a graph, which alone knows their sizes, and reads the steps out again."""

    def __init__(self, batch_first: bool, side: Any) -> None:
        super().__init__()
        self.options = {"batch_first": batch_first, "padding_side": side}

    def forward(self, one: SequenceBatch, other: SequenceBatch) -> tuple[Tensor, Tensor, Tensor]:
        padded, mask = 2 * one.to_padded(**self.options), other.mask(**self.options)
        batch = SequenceBatch.from_mask(padded, mask, batch_first=self.options["batch_first"])
        return batch.values, batch.offsets, batch.sum()


# The side is a matter of numbers and the order that of axes, so that neither needs both of the other.
@pytest.mark.parametrize(("side", "batch_first"), [("left", True), ("right", False)])
def test_from_mask_of_what_is_padded_in_the_same_graph(batch_first: bool, side: Any) -> None:
    model, example, sizes = Again(batch_first, side), signals([3, 2, 4]), [{0: STEPS}, {0: BATCH}]
    program = export(model, (example, example), dynamic_shapes=(sizes, sizes)).module()
    graph = compiled(model)
    for lengths in (PATTERNS | SMALL).values():
        batch = signals(lengths)
        wanted = model(batch, batch)
        assert_close(wanted[0], 2 * batch.values)
        for made in (graph, program):
            assert_close(made(batch, batch), wanted)
    for made in (graph, program):
        with pytest.raises(RuntimeError, match=r"Runtime assertion failed for expression Eq\(u"):
            made(signals([3, 2, 4]), signals([3, 3, 3]))


def test_lengths_and_what_is_padded_of_sizes_that_only_the_graph_knows() -> None:
    graph = compiled(lambda padded, lengths: SequenceBatch.from_padded(padded, lengths, batch_first=True).values)
    for lengths in ([3, 2], [4], [], [0, 5, 1]):
        batch = signals(lengths)
        padded, counts = batch.to_padded(batch_first=True), torch.tensor(lengths, dtype=torch.int64)
        for tensor in (padded, counts):
            mark_unbacked(tensor, 0)
        assert_close(graph(padded, counts), batch.values)


class Between(nn.Module):
    def forward(self, values: Tensor, offsets: Any) -> tuple[Tensor, Tensor]:
        batch = SequenceBatch.from_offsets(values, offsets)
        return batch.sum(), batch.offsets


def test_from_offsets() -> None:
    model, batch = Between(), signals([3, 2, 4])
    sizes = {0: STEPS}, {0: Dim("offsets", min=3)}  # PyTorch wants 2 sequences at least where one number is another + 1
    graph, program = compiled(model), export(model, (batch.values, batch.offsets), dynamic_shapes=sizes).module()
    for lengths in (PATTERNS | SMALL).values():
        given = signals(lengths).values, signals(lengths).offsets
        assert_close(graph(*given), model(*given))
        if len(lengths) > 1:
            assert_close(program(*given), model(*given))
    for offsets, said in (
        ([1, 3, 5], "start with 0"),
        ([0, 3, 4], "end with the steps of `values`"),
        ([0, 6, 5], "never fall"),
        ([0, -1, 5], "never fall"),
    ):
        for made in (graph, program):
            with pytest.raises(RuntimeError, match=f"`offsets` must {said}"):
                made(torch.ones(5, 4), torch.tensor(offsets))
    with pytest.raises(RuntimeError, match="`offsets` must start with 0; got no offsets"):
        graph(torch.ones(0, 4), torch.tensor([], dtype=torch.int64))
    assert_close(
        compiled(lambda values: model(values, [0, 2, 5]))(batch.values[:5]), model(batch.values[:5], [0, 2, 5])
    )


@pytest.mark.parametrize("name", ["shape", "dim", "no_such_attribute"])
def test_code_may_ask_for_an_attribute_that_is_not_there(name: str) -> None:
    def twice_or_more(batch: SequenceBatch) -> Tensor:
        assert not hasattr(batch, name)
        return batch.values * getattr(batch, name, 2)

    def thrice(state: RNNState) -> Tensor:
        return state.hidden * (2 if hasattr(state, name) else getattr(state, name, 3))

    batch, state = signals([3, 1]), RNNState(torch.randn(1, 1, 2, 3))
    assert_close(torch.compile(twice_or_more, fullgraph=True, backend="eager")(batch), 2 * batch.values)
    assert_close(torch.compile(thrice, fullgraph=True, backend="eager")(state), 3 * state.hidden)


def test_repr_of_a_structure_in_a_graph_shows_no_lengths() -> None:
    shown = "Lengths(unknown while tracing)"
    batch = signals([3, 1])
    compiled = torch.compile(
        lambda batch: batch.values * (repr(batch.structure) == shown), fullgraph=True, backend="eager"
    )
    assert_close(compiled(batch), batch.values)


def test_a_state_of_a_container_says_in_a_graph_which_part_to_read() -> None:
    state = ContainerState((None, RNNState(torch.randn(1, 1, 2, 3))))
    with pytest.raises(Unsupported, match=r"(?s)AttributeError.*`last` must be .* Use state\.states\[1\]\.last\."):
        torch.compile(lambda state: state.last(), fullgraph=True, backend="eager")(state)


def test_reading_such_an_attribute_in_a_graph_says_what_to_call() -> None:
    def wrong(batch: Any) -> Any:
        return batch.shape

    with pytest.raises(
        Unsupported, match=r"(?s)AttributeError.*`shape` is an attribute of a Tensor, .*; got a .* Call encode"
    ):
        torch.compile(wrong, fullgraph=True, backend="eager")(signals([3, 1]))
