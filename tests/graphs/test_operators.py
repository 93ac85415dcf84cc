"""The operators that graphs call: what torch.library asks of one, their gradients, and the records behind them."""

import gc
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from seqbatch import LSTMState, RNNState, SeqbatchError, SequenceBatch, _records, encode_with_state

LENGTHS = [3, 0, 2, 1]
REDUCTIONS = ["first", "last", "max", "mean", "min", "reverse", "softmax", "sum"]
LAYERS: list[Any] = [
    nn.LSTM(4, 3, num_layers=2, bidirectional=True),
    nn.LSTM(4, 3, proj_size=2, bias=False),
    nn.GRU(4, 3, num_layers=2, bias=False),
    nn.GRU(4, 3, bidirectional=True),
    nn.RNN(4, 3),
    nn.RNN(4, 3, num_layers=2, nonlinearity="relu"),
]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)
overload: Any = torch.ops.seqbatch


def arguments(layer: Any, *, wanted: bool, lengths: list[int] = LENGTHS) -> tuple[Any, ...]:
    """Make what the operator of a layer takes, in double precision."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or layer.hidden_size, *([layer.hidden_size] if isinstance(layer, nn.LSTM) else [])]
    hidden = [torch.randn(rows, len(lengths), size, dtype=torch.float64) for size in sizes]
    weights = [weight.detach().double() for ways in layer.all_weights for weight in ways]
    values, others = torch.randn(sum(lengths), 4, dtype=torch.float64), [*hidden, *weights]
    for part in (values, *others):
        part.requires_grad_(wanted)
    options = [layer.num_layers, layer.bidirectional, *([layer.nonlinearity] if isinstance(layer, nn.RNN) else [])]
    return values, torch.tensor(lengths), others, *options, [wanted] * (1 + len(others))


def operator_of(layer: Any) -> Any:
    return getattr(overload, type(layer).__name__.lower()).default


def backward_of(name: str) -> Any:
    return getattr(overload, f"{name}_backward").default


def check(operator: Any, given: tuple[Any, ...]) -> None:
    assert set(opcheck(operator, given).values()) == {"SUCCESS"}


@every_layer
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, [0, 0, 0], [1], [0]], ids=str)
def test_a_layer_passes_the_checks_of_torch(layer: Any, wanted: bool, lengths: list[int]) -> None:
    given = arguments(layer, wanted=wanted, lengths=lengths)
    check(operator_of(layer), given)
    results = operator_of(layer)(*given)
    plain = [part.detach() for part in results[:-1]], results[-1], given[0].detach(), given[1]
    others = [part.detach() for part in given[2]]
    check(backward_of(type(layer).__name__.lower()), (*plain, others, *given[3:-1], [True] * (1 + len(others))))


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, [0, 0, 0], [1], [0]], ids=str)
def test_a_reduction_passes_the_checks_of_torch(how: str, wanted: bool, lengths: list[int]) -> None:
    values = torch.randn(sum(lengths), 2, dtype=torch.float64, requires_grad=wanted)
    given = values, torch.tensor(lengths), how, [wanted]
    check(overload.reduce.default, given)
    result, receipt = overload.reduce(*given)
    check(backward_of("reduce"), ([result.detach()], receipt, values.detach(), *given[1:-1], [True]))


@every_layer
def test_a_layer_gives_what_it_gives_without_a_graph(layer: Any) -> None:
    values, lengths, others, *options = arguments(layer, wanted=True)
    results = operator_of(layer)(values, lengths, others, *options)[:-1]
    plain = type(layer)(4, 3, **options_of(layer), dtype=torch.float64)
    with torch.no_grad():
        for weight, one in zip(plain.parameters(), others[-len(list(plain.parameters())) :], strict=True):
            weight.copy_(one)
    hidden = others[: len(results) - 1]
    state: Any = type_of_state(layer).from_torch(hidden[0] if len(hidden) == 1 else tuple(hidden), plain)
    outputs, end = encode_with_state(plain, SequenceBatch(values, lengths), state)
    wanted = end.to_torch()
    assert_close(results, (outputs.values, *(wanted if isinstance(wanted, tuple) else (wanted,))))


def options_of(layer: Any) -> dict[str, Any]:
    names = ["num_layers", "bidirectional", "bias", *(["proj_size"] if layer.proj_size else [])]
    names += ["nonlinearity"] if isinstance(layer, nn.RNN) else []
    return {name: getattr(layer, name) for name in names}


def type_of_state(layer: Any) -> Any:
    return LSTMState if isinstance(layer, nn.LSTM) else RNNState


@every_layer
def test_gradients_of_gradients(layer: Any) -> None:
    values, lengths, others, *options = arguments(layer, wanted=True)

    def call(values: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = operator_of(layer)(values, lengths, [*others], *options)[:-1]
        return results

    assert torch.autograd.gradcheck(call, (values, *others))
    assert torch.autograd.gradgradcheck(call, (values, *others), fast_mode=True)


def run(receipt: bool = True) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Give what a GRU was given, and gave, with its receipt."""
    torch.manual_seed(0)
    values, lengths, others, *options = arguments(nn.GRU(4, 3), wanted=True)
    wanted = options.pop()
    results = operator_of(nn.GRU(4, 3))(values, lengths, others, *options, wanted if receipt else [False] * len(wanted))
    return [values, *others], results


def gradients(sources: list[Tensor], results: tuple[Tensor, ...]) -> list[Tensor]:
    return [*torch.autograd.grad(results[0].sin().sum() + results[1].sum(), sources, retain_graph=True)]


def test_gradients_are_those_of_the_record_and_else_of_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    of = _records.Record.of

    def count(*given: Any) -> _records.Record:
        calls.append(1)
        return of(*given)

    monkeypatch.setattr(_records.Record, "of", count)
    sources, results = run()
    first = gradients(sources, results)
    assert_close(gradients(sources, results), first, rtol=0, atol=0)
    assert len(calls) == 1
    sources, results = run(receipt=False)
    assert len(calls) == 1
    assert_close(gradients(sources, results), first)
    assert len(calls) == 2


def test_a_copy_of_a_receipt_finds_no_record() -> None:
    _, results = run()
    assert _records.find_record(results[-1]) is not None
    assert _records.find_record(results[-1].clone()) is None
    assert _records.find_record(run(receipt=False)[1][-1]) is None


def test_what_does_not_depend_on_anything_has_zeros_for_gradients() -> None:
    source = torch.ones(2, requires_grad=True)
    found = _records.gradients_of((torch.ones(2),), [torch.ones(2)], [source, source.detach()], [True, False])
    assert_close(found[0], torch.zeros(2))
    assert found[1] is None


def test_a_record_goes_with_its_receipt() -> None:
    gc.collect()
    before = len(_records._memories)
    sources, results = run()
    view = results[-1].view(1)
    del results
    assert len(_records._memories) == before + 1
    del view, sources
    assert len(_records._memories) == before


def test_what_a_graph_writes_over_what_it_needs_no_more_changes_no_gradient() -> None:
    sources, results = run()
    seeds = [torch.ones_like(part) for part in results[:-1]]
    wanted = torch.autograd.grad(results[:-1], sources, seeds)
    sources, results = run()
    for part in (*sources, *results[:-1]):
        part.data.fill_(9)  # as a graph does: without a word to autograd
    record = _records.find_record(results[-1])
    assert record is not None
    assert_close(record.gradients(seeds), [*wanted])


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_calls_again(reentrant: bool) -> None:
    values, lengths, others, *options = arguments(nn.GRU(4, 3), wanted=True)

    def call(values: Tensor) -> Tensor:
        outputs: Tensor = operator_of(nn.GRU(4, 3))(values, lengths, others, *options)[0]
        return outputs.sin()

    wanted = torch.autograd.grad(call(values).sum(), values)
    values.grad = None
    checkpoint(call, values, use_reentrant=reentrant).sum().backward()
    assert_close(values.grad, wanted[0])


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ([3, 0, 2, 2], "`lengths` must add up to 6, the steps of `values`; got 7."),
        ([7, -1, 0, 0], "`lengths[1]` must be at least 0; got -1."),
    ],
)
def test_lengths_that_a_graph_could_not_look_at(lengths: list[int], said: str) -> None:
    with pytest.raises(SeqbatchError, match=f"^{re.escape(said)}$"):
        overload.reduce(torch.zeros(6), torch.tensor(lengths), "sum", [False])
