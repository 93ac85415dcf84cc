"""torch.compile: one graph for all lengths, with the results and gradients of the model without it."""

from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from graph_models import (
    ALL_0,
    LAYERS,
    PATTERNS,
    SMALL,
    Function,
    Tagger,
    check_alone,
    compiled,
    graphs,
    signals,
    tensors,
    tokens,
)
from graph_models import allow_recurrent_layers as allow_recurrent_layers
from reference import REDUCTIONS
from torch import Tensor, nn
from torch._dynamo.decorators import mark_unbacked
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from seqbatch import SequenceBatch, encode, encode_with_state
from seqbatch.layers import AttentionPool, LockedDropout, MeanPool, Residual, TwoWay, WordDropout


def same(function: Function, *batches: Any) -> None:
    """Compare a function with its graph, on every pattern: what it gives, and that there is one graph for all."""
    graph = compiled(function)
    for lengths in PATTERNS.values():
        given = [make(lengths) for make in batches]
        assert_close(tensors(graph(*given)), tensors(function(*given)), equal_nan=True)
    assert graphs() == 1
    given = [make(ALL_0) for make in batches]
    assert_close(tensors(graph(*given)), tensors(function(*given)))


# Sizes of 0 and 1, which torch specializes, are those of test_gradients.py, and of the next test.
@pytest.mark.parametrize("kind", LAYERS)
def test_a_model_is_one_graph_for_all_lengths(kind: str) -> None:
    model = Tagger(kind)
    graph = compiled(model)
    weights = [*model.parameters()]
    for lengths in PATTERNS.values():
        batch = tokens(lengths)
        results = graph(batch)
        check_alone(model, batch, results)
        outputs, means, state = results
        loss = outputs.values.square().sum() + means.sin().sum() + state.last().sum()
        found = torch.autograd.grad(loss, weights)
        outputs, means, state = model(batch)
        loss = outputs.values.square().sum() + means.sin().sum() + state.last().sum()
        assert_close(found, torch.autograd.grad(loss, weights))
    assert graphs() == 1


def unbacked(batch: SequenceBatch) -> SequenceBatch:
    """Keep PyTorch from making graphs of their own for 0 and 1 sequence or step."""
    for leaf in tree_leaves(batch):
        mark_unbacked(leaf, 0)
    return batch


# With ragged lengths first, test_inductor has one graph.
@pytest.mark.parametrize(("kind", "first"), [*((kind, "none") for kind in LAYERS), ("lstm", "all 0")])
def test_a_model_is_one_graph_for_sizes_of_0_and_1_too_if_they_are_marked(kind: str, first: str) -> None:
    model, patterns = Tagger(kind), PATTERNS | SMALL
    graph, weights = compiled(model), [*model.parameters()]
    for lengths in (patterns[first], *patterns.values()):
        batch = unbacked(tokens(lengths))
        results = graph(batch)
        check_alone(model, batch, results)
        found, wanted = (
            torch.autograd.grad(outputs.values.square().sum() + means.sin().sum() + state.last().sum(), weights)
            for outputs, means, state in (results, model(batch))
        )
        assert_close(found, wanted)
    assert graphs() == 1


def test_layouts_are_one_graph_for_sizes_of_0_and_1_too_if_they_are_marked() -> None:
    def call(one: SequenceBatch, other: SequenceBatch) -> Any:
        padded = one.to_padded(batch_first=True, padding_side="left", padding_value=7.0)
        joined = SequenceBatch.concat([one, other.map(torch.relu)])
        return padded, one.mask(batch_first=False), one.offsets, joined, joined.softmax(), one.map(torch.add, one)

    graph = compiled(call)
    for lengths in (PATTERNS | SMALL).values():
        given = unbacked(signals(lengths)), unbacked(signals([2, *lengths[1:]], seed=1))
        assert_close(tensors(graph(*given)), tensors(call(*given)))
    assert graphs() == 1


@pytest.mark.parametrize("kind", LAYERS)
def test_inductor(kind: str) -> None:
    model = Tagger(kind)
    graph = compiled(model, backend="inductor")
    for lengths in (*PATTERNS.values(), ALL_0):
        batch = unbacked(tokens(lengths))
        with torch.no_grad():
            check_alone(model, batch, graph(batch))
        model.zero_grad()
        graph(batch)[0].values.square().sum().backward()
        found = [weight.grad for weight in model.parameters()]
        model.zero_grad()
        model(batch)[0].values.square().sum().backward()
        assert_close(found, [weight.grad for weight in model.parameters()])
    assert graphs() == 2  # with gradients and without


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str) -> None:
    call = REDUCTIONS[name].of
    same(call, signals)
    dynamo.reset()
    given = tokens([3, 0, 2]).to(torch.int64 if REDUCTIONS[name].can_take(torch.int64) else torch.float16)
    assert_close(tensors(compiled(call)(given)), tensors(call(given)))


@pytest.mark.parametrize("name", [name for name, how in REDUCTIONS.items() if how.options])  # composed of others
def test_gradients_of_reductions(name: str) -> None:
    def loss(values: Tensor, lengths: Tensor) -> Tensor:
        found = REDUCTIONS[name].of(SequenceBatch(values, lengths))
        return (found.values if isinstance(found, SequenceBatch) else found).sin().sum()

    values, lengths = torch.randn(5, 3, requires_grad=True), torch.tensor([3, 0, 2])
    (found,) = torch.autograd.grad(compiled(loss)(values, lengths), values)
    assert_close(found, *torch.autograd.grad(loss(values, lengths), values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_rows_are_expanded_to_steps(dtype: torch.dtype) -> None:
    def call(batch: SequenceBatch, rows: SequenceBatch) -> Any:
        return batch.expand(rows.values), batch.map(torch.add, batch.expand(rows.values))

    same(call, signals, lambda lengths: signals([1] * len(lengths)).to(dtype))


def test_gradients_of_expanded_rows() -> None:
    def loss(rows: Tensor, lengths: Tensor, values: Tensor) -> Tensor:
        return SequenceBatch(values, lengths).expand(rows).map(torch.mul, SequenceBatch(values, lengths)).sum().sum()

    rows, values = torch.randn(3, 2, requires_grad=True), torch.full((60_002, 2), 0.1)
    lengths = torch.tensor([60_000, 0, 2])
    (found,) = torch.autograd.grad(compiled(loss)(rows, lengths, values), rows)
    # Added one after another, equal terms in single precision drift by 1e-3.
    assert_close(found, torch.tensor([[6000.0], [0.0], [0.2]]).expand(3, 2))


def test_more_or_fewer_rows_than_sequences_are_refused_when_the_graph_runs() -> None:
    graph = compiled(lambda batch, rows: batch.expand(rows))
    graph(signals([3, 2]), torch.zeros(2, 4))
    with pytest.raises(RuntimeError, match="`tensor` must have a row for each sequence"):
        graph(signals([3, 2]), torch.zeros(5, 4))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_layouts(batch_first: bool, side: Any) -> None:
    def call(batch: SequenceBatch) -> Any:
        options: Any = {"batch_first": batch_first, "padding_side": side}
        padded = batch.to_padded(**options, padding_value=float("nan"))
        again = SequenceBatch.from_padded(padded, batch.structure.tensor, **options)
        longer = batch.to_padded(**options, total_length=12)
        return longer, batch.mask(**options, total_length=12).int(), again, batch.offsets, batch.batch_size

    same(call, signals)


def test_gradients_of_layouts() -> None:
    def call(values: Tensor, lengths: Tensor) -> Tensor:
        padded = SequenceBatch(values, lengths).to_padded(batch_first=True, padding_value=7.0)
        return SequenceBatch.from_padded(padded, lengths, batch_first=True).values

    values = torch.randn(5, 3, requires_grad=True)
    (found,) = torch.autograd.grad(compiled(call)(values, torch.tensor([3, 0, 2])).sin().sum(), values)
    assert_close(found, values.cos())


def test_batches_are_mapped_joined_and_shared() -> None:
    def call(one: SequenceBatch, other: SequenceBatch) -> Any:
        joined = SequenceBatch.concat(
            [one.map(torch.add, other), other.map(torch.relu).detach().to(torch.float64).to(torch.float32)]
        )
        return joined, one.with_values(other.values), len(joined)

    same(call, signals, lambda lengths: signals(lengths, seed=1))


def test_batches_of_other_lengths_are_refused_when_the_graph_runs() -> None:
    graph = compiled(lambda one, other: one.map(torch.add, other))
    graph(signals([3, 2]), signals([3, 2]))
    with pytest.raises(RuntimeError, match=r"`others\[0\]` must have the lengths of this batch"):
        graph(signals([3, 2]), signals([2, 3]))
    with pytest.raises(RuntimeError, match=r"`total_length` must be at least the longest of `lengths`"):
        compiled(lambda batch: batch.to_padded(batch_first=True, total_length=4))(signals([3, 5]))


def test_lists_and_single_sequences() -> None:
    gru = nn.GRU(4, 3)
    graph = compiled(lambda *sequences: encode(gru, [*sequences]))
    for lengths in ([3, 5], [7, 2]):
        xs = [torch.randn(length, 4) for length in lengths]
        assert_close(graph(*xs), encode(gru, xs))
    assert graphs() == 1
    x = torch.randn(6, 4)
    assert_close(compiled(lambda x: encode(gru, x))(x), gru(x)[0])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 3), nn.LayerNorm(3), nn.ReLU(inplace=True), nn.LSTM(3, 2)),
        nn.ModuleList([nn.BatchNorm1d(4), nn.GRU(4, 3), nn.Softmax(-1)]),
        TwoWay(nn.GRU(4, 3), nn.LSTM(4, 2)),
        Residual(nn.Sequential(nn.GELU(), nn.GRU(4, 4))),
        nn.Sequential(LockedDropout(0.5), WordDropout(0.5), nn.Dropout(0.5), MeanPool()),
        AttentionPool(4),
        nn.utils.parametrizations.weight_norm(nn.GRU(4, 3), "weight_hh_l0"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers(layer: nn.Module) -> None:
    same(lambda batch: encode(layer.eval(), batch), signals)


def test_states_go_in_and_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 3), nn.GRU(3, 2))

    def call(start: SequenceBatch, end: SequenceBatch) -> Any:
        first, state = encode_with_state(model, start)
        second, state = encode_with_state(model, end, state.detach())
        return first, second, state

    same(call, signals, lambda lengths: signals(lengths[::-1], seed=1))


def test_dropout_between_layers_is_that_of_pytorch() -> None:
    gru = nn.GRU(4, 64, num_layers=2, dropout=0.5)
    graph = compiled(lambda batch: encode(gru, batch))
    batch = signals([40, 30])
    torch.manual_seed(0)
    first = graph(batch).values
    torch.manual_seed(0)
    assert_close(graph(batch).values, first)
    assert not torch.equal(graph(batch).values, first)
    gru.eval()
    assert_close(compiled(lambda batch: encode(gru, batch))(batch).values, encode(gru, batch).values)


BRAIN = torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "given"),
    [("LSTM", torch.float32), ("LSTM", BRAIN), ("LSTM", torch.float64), ("GRU", torch.float32), ("RNN", torch.float32)],
)
def test_autocast_gives_the_dtypes_that_it_gives_without_a_graph(kind: str, given: torch.dtype) -> None:
    layer = getattr(nn, kind)(4, 3)
    if given is torch.float64:
        layer.double()
    batch = signals([3, 2]).to(given)
    graph = compiled(lambda batch: encode_with_state(layer, batch))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = tensors(graph(batch)), tensors(encode_with_state(layer, batch))
    assert_close(found, expected, rtol=2e-2, atol=2e-2)
    weights = [*layer.parameters()]
    gradients = [
        torch.autograd.grad(torch.stack([part.float().sum() for part in parts]).sum(), weights)
        for parts in (found, expected)
    ]
    assert_close(*gradients, rtol=2e-2, atol=2e-2)
