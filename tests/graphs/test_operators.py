"""The operators that graphs call: what torch.library asks of one, their gradients, and what they save for backward."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from seqbatch import LSTMState, RNNState, SeqbatchError, SequenceBatch, _kernels, encode_with_state
from seqbatch._ops.reductions import REDUCTIONS

# `opcheck` of torch 2.14 reads the gradients of all Tensors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
LENGTHS = [3, 0, 2, 1]
LAYERS: list[Any] = [
    nn.LSTM(4, 3, num_layers=2, bidirectional=True),
    nn.LSTM(4, 3, proj_size=2, bias=False),
    nn.GRU(4, 3, num_layers=2, bias=False),
    nn.GRU(4, 3, bidirectional=True),
    nn.RNN(4, 3),
    nn.RNN(4, 3, num_layers=2, nonlinearity="relu"),
    nn.LSTM(4, 3, bidirectional=True),  # those of one layer run by the kernels
    nn.GRU(4, 3, bias=False),
    nn.RNN(4, 3, nonlinearity="relu", bidirectional=True, bias=False),
    nn.LSTM(4, 3, proj_size=2, bidirectional=True),
]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)
overload: Any = torch.ops.seqbatch


def arguments(layer: Any, *, wanted: bool, keeps: bool = False, lengths: list[int] = LENGTHS) -> tuple[Any, ...]:
    """Make what the operator of a layer takes, in double precision."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or layer.hidden_size, *([layer.hidden_size] if isinstance(layer, nn.LSTM) else [])]
    hidden = [torch.randn(rows, len(lengths), size, dtype=torch.float64) for size in sizes]
    weights = [weight.detach().double() for ways in layer.all_weights for weight in ways]
    values, others = torch.randn(sum(lengths), 4, dtype=torch.float64), [*hidden, *weights]
    for part in (values, *others):
        part.requires_grad_(wanted)
    nonlinearity = [layer.nonlinearity] if isinstance(layer, nn.RNN) else []
    return (
        values,
        torch.tensor(lengths),
        others,
        layer.num_layers,
        layer.bidirectional,
        [keeps] * (1 + len(others)),
        *nonlinearity,
    )


def number_of_states(layer: Any) -> int:
    return 2 if isinstance(layer, nn.LSTM) else 1


def operator_of(layer: Any) -> Any:
    return getattr(overload, type(layer).__name__.lower()).default


def backward_of(name: str) -> Any:
    return getattr(overload, f"{name}_backward").default


def check(operator: Any, given: tuple[Any, ...]) -> None:
    assert set(opcheck(operator, given).values()) == {"SUCCESS"}


# Lengths, whether gradients are wanted, and whether the operator keeps what the backward pass needs. Small lengths need
# fewer settings, because they only change the shapes of results.
SETTINGS = [
    (LENGTHS, False, False),
    (LENGTHS, True, False),
    (LENGTHS, True, True),
    ([0, 0, 0], True, False),
    ([0, 0, 0], True, True),
    ([1], True, True),
    ([0], True, True),
]


@every_layer
@pytest.mark.parametrize(("lengths", "wanted", "keeps"), SETTINGS, ids=str)
def test_a_layer_passes_the_checks_of_torch(layer: Any, wanted: bool, keeps: bool, lengths: list[int]) -> None:
    given = arguments(layer, wanted=wanted, keeps=keeps, lengths=lengths)
    check(operator_of(layer), given)
    if not wanted:
        return  # because the operator of the backward pass is given the same either way
    results, number = [part.detach() for part in operator_of(layer)(*given)], 1 + number_of_states(layer)
    others = [part.detach() for part in given[2]]
    for asked in (True, False):
        of_which = [asked] * (1 + len(others))
        plain = results[:number], results[number:], of_which, given[0].detach(), given[1], others, *given[3:]
        check(backward_of(type(layer).__name__.lower()), plain)


without_layers = pytest.mark.parametrize(
    ("lengths", "wanted"), [(LENGTHS, False), (LENGTHS, True), ([0, 0, 0], True), ([1], True), ([0], True)], ids=str
)


@pytest.mark.parametrize("how", REDUCTIONS)
@without_layers
def test_a_reduction_passes_the_checks_of_torch(how: str, wanted: bool, lengths: list[int]) -> None:
    values = torch.randn(sum(lengths), 2, dtype=torch.float64, requires_grad=wanted)
    given = values, torch.tensor(lengths), how
    check(overload.reduce.default, given)
    result = overload.reduce(*given)
    if wanted and result.is_floating_point():
        check(backward_of("reduce"), ([result.detach()], [], [True], values.detach(), *given[1:]))


@without_layers
def test_the_expansion_of_rows_passes_the_checks_of_torch(wanted: bool, lengths: list[int]) -> None:
    rows = torch.randn(len(lengths), 2, dtype=torch.float64, requires_grad=wanted)
    given = rows, torch.tensor(lengths), sum(lengths)
    check(overload.expand.default, given)
    if not wanted:
        return
    result = overload.expand(*given).detach()
    check(backward_of("expand"), ([result], [], [True], rows.detach(), *given[1:]))
    assert torch.autograd.gradcheck(lambda rows: overload.expand(rows, *given[1:]), rows)
    assert torch.autograd.gradgradcheck(lambda rows: overload.expand(rows, *given[1:]), rows)


@every_layer
@pytest.mark.parametrize("keeps", [False, True])
def test_a_layer_returns_what_it_returns_without_a_graph(layer: Any, keeps: bool) -> None:
    values, lengths, others, *options = arguments(layer, wanted=True, keeps=keeps)
    results = operator_of(layer)(values, lengths, others, *options)[: 1 + number_of_states(layer)]
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
@pytest.mark.parametrize("keeps", [False, True])
def test_gradients_of_gradients(layer: Any, keeps: bool) -> None:
    values, lengths, others, *options = arguments(layer, wanted=True, keeps=keeps)

    def call(values: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = operator_of(layer)(values, lengths, [*others], *options)
        return results[: 1 + number_of_states(layer)]

    assert torch.autograd.gradcheck(call, (values, *others))
    assert torch.autograd.gradgradcheck(call, (values, *others), fast_mode=True)


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with the name of each call of a kernel."""
    made: list[str] = []

    def count(name: str, run: Any, *given: Any, **options: Any) -> Any:
        made.append(name)
        return run(*given, **options)

    for name in ("forward", "backward"):
        monkeypatch.setattr(_kernels, name, partial(count, name, getattr(_kernels, name)))
    return made


needs_kernels = pytest.mark.skipif(not _kernels.IS_THERE, reason="it is about their calls")
ONE_LAYER = [layer for layer in LAYERS if layer.num_layers == 1]


def gradients(layer: Any, given: tuple[Any, ...], results: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the gradients of everything that has one."""
    loss = torch.stack([part.sin().sum() for part in results[: 1 + number_of_states(layer)]]).sum()
    return [*torch.autograd.grad(loss, [given[0], *given[2]], retain_graph=True)]


@needs_kernels
@pytest.mark.parametrize("layer", ONE_LAYER, ids=str)
def test_gradients_come_from_what_the_operator_returned_and_else_from_another_run(
    layer: Any, kernel_calls: list[str]
) -> None:
    given = arguments(layer, wanted=True, keeps=True)
    results = operator_of(layer)(*given)
    first = gradients(layer, given, results)
    assert_close(gradients(layer, given, results), first, rtol=0, atol=0)
    assert kernel_calls == ["forward", "backward", "backward"]
    again = *given[:5], [False] * len(given[5]), *given[6:]
    results = operator_of(layer)(*again)
    assert_close(gradients(layer, again, results), first, rtol=0, atol=0)
    assert kernel_calls[3:] == ["forward", "forward", "backward"]


def test_saved_tensors_are_copied_by_hooks_of_autograd(kernel_calls: list[str]) -> None:
    layer = nn.LSTM(4, 3)
    given = arguments(layer, wanted=True, keeps=True)
    wanted = gradients(layer, given, operator_of(layer)(*given))
    number = len(kernel_calls)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        results = operator_of(layer)(*given)
    assert_close(gradients(layer, given, results), wanted, rtol=0, atol=0)
    assert kernel_calls[number:] == kernel_calls[:number], "and the layer does not run again"


CHANGES: dict[str, Any] = {
    "another dtype": lambda part: part.float(),
    "another shape": lambda part: part[:1, :2],
    "another order in memory": lambda part: part.transpose(0, 1).contiguous().transpose(0, 1),
}


@needs_kernels
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("what", [0, 1], ids=["outputs", "gates"])
@pytest.mark.parametrize("projection", [0, 2])
def test_no_kernel_reads_saved_tensors_that_hooks_changed(
    change: str, what: int, projection: int, kernel_calls: list[str]
) -> None:
    given = arguments(nn.LSTM(4, 3, bidirectional=True, proj_size=projection), wanted=False, keeps=True)
    *results, output, gates = overload.lstm(*given)
    saved, wanted = [output, gates], [True] * (1 + len(given[2]))
    right = overload.lstm_backward(results, saved, wanted, *given)
    kernel_calls.clear()
    saved[what] = CHANGES[change](saved[what])
    assert_close(overload.lstm_backward(results, saved, wanted, *given), right)
    assert kernel_calls == (["backward"] if change == "another order in memory" else ["forward", "backward"])


@pytest.mark.parametrize("layer", ONE_LAYER, ids=str)
@pytest.mark.parametrize("lengths", [LENGTHS, [0, 0], [2, 3]], ids=str)
def test_what_is_saved_where_the_kernels_are_missing(
    layer: Any, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(layer, wanted=True, keeps=True, lengths=lengths)
    here = operator_of(layer)(*given)
    wanted = gradients(layer, given, here)
    monkeypatch.setattr(_kernels, "IS_THERE", False)
    there = operator_of(layer)(*given)
    assert_close(gradients(layer, given, there), wanted)
    number = 1 + number_of_states(layer)
    assert_close(there[:number], here[:number])
    assert [part.shape for part in there[number:]] == [part.shape for part in here[number:]]
    assert not any(part.any() for part in there[number:])


def test_outputs_may_be_modified_in_place_before_the_backward_pass() -> None:
    layer = nn.LSTM(4, 3)
    given = arguments(layer, wanted=True, keeps=True)
    outputs = operator_of(layer)(*given)[0]
    wanted = torch.autograd.grad((2 * outputs).relu().sum(), given[0])
    outputs = operator_of(layer)(*given)[0]
    assert_close(torch.autograd.grad(outputs.mul_(2).relu_().sum(), given[0]), wanted)


def test_results_that_depend_on_nothing_have_zeros_for_gradients() -> None:
    for name, rows, option in (("reduce", 2, "sum"), ("expand", 1, 2)):
        found = backward_of(name)([None], [], [True], torch.ones(rows), torch.tensor([2]), option)
        assert_close(found, [torch.zeros(rows)])


def test_weights_of_other_sizes_than_those_of_the_layer_reach_no_kernel(kernel_calls: list[str]) -> None:
    layer = nn.LSTM(4, 3)
    values, lengths, others, *options = arguments(layer, wanted=False)
    for i, wrong in ((3, others[3][:, :2]), (4, others[4][:6]), (2, others[2].float()), (0, others[0][:, :2])):
        given = [wrong if place == i else one for place, one in enumerate(others)]
        with pytest.raises((RuntimeError, ValueError)):
            operator_of(layer)(values, lengths, given, *options)
    assert kernel_calls == []


def test_weights_of_other_sizes_than_those_of_a_projection_reach_no_kernel(kernel_calls: list[str]) -> None:
    layer = nn.LSTM(4, 3, proj_size=2)
    values, lengths, others, *options = arguments(layer, wanted=False)
    for i, wrong in ((3, others[3][:, :1]), (6, others[6][:1]), (6, others[6][:, :2]), (6, others[6].float())):
        given = [wrong if place == i else one for place, one in enumerate(others)]
        with pytest.raises((RuntimeError, ValueError)):
            operator_of(layer)(values, lengths, given, *options)
    assert kernel_calls == []


@pytest.mark.parametrize(
    "layer", [nn.LSTM(4, 3), nn.LSTM(4, 3, proj_size=2), nn.GRU(4, 3), nn.LSTM(4, 3, num_layers=2)]
)
@pytest.mark.parametrize("change", [lambda part: part[..., :1], lambda part: part[:, :1], Tensor.float])
def test_states_that_do_not_fit_the_weights(
    layer: nn.RNNBase, change: Callable[[Tensor], Tensor], kernel_calls: list[str]
) -> None:
    values, lengths, others, *options = arguments(layer, wanted=False)
    for i in range(2 if isinstance(layer, nn.LSTM) else 1):
        given = [change(one) if place == i else one for place, one in enumerate(others)]
        with pytest.raises(SeqbatchError, match=rf"^`others\[{i}\]` must have shape \("):
            operator_of(layer)(values, lengths, given, *options)
    assert kernel_calls == []


@pytest.mark.parametrize("bias", [True, False])
def test_only_an_lstm_has_a_projection(bias: bool, kernel_calls: list[str]) -> None:
    layer = nn.GRU(4, 3, bias=bias)
    values, lengths, others, *options = arguments(layer, wanted=False)
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        operator_of(layer)(values, lengths, [*others, values.new_zeros(3, 3)], *options)
    assert kernel_calls == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_calls_again(reentrant: bool) -> None:
    values, lengths, others, *options = arguments(nn.GRU(4, 3), wanted=True, keeps=True)

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
        overload.reduce(torch.zeros(6), torch.tensor(lengths), "sum")
    with pytest.raises(SeqbatchError, match=f"^{re.escape(said)}$"):
        overload.expand(torch.zeros(4), torch.tensor(lengths), 6)
