"""check_encoder on layers of other manners: cells, channels first, attention, complex, learned states, least steps."""

import functools
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import find
from strategies import sequences
from torch import Tensor, nn

from seqbatch import LSTMState, RNNState, SeqbatchTypeError, SequenceBatch, register_encoder, register_recurrent
from seqbatch._encode import registry
from seqbatch.testing import check_alone, check_empty, check_encoder, check_memory, check_order, lengths


@pytest.fixture(autouse=True)
def _registry_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the registry after each test."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.mark.parametrize(
    ("layer", "features"),
    [
        (nn.Conv1d(2, 3, 3, padding=1), (2,)),
        (nn.MaxPool1d(3, 1, 1), (2,)),
        (nn.Conv2d(2, 3, 3, padding=1), (2, 5)),
        (nn.Conv2d(1, 3, 3, padding=1), (5,)),
        (nn.MaxPool2d((3, 2), 1, 1), (2, 5)),
        (nn.BatchNorm2d(2).eval(), (2, 5)),
        (nn.MultiheadAttention(2, 1), (2,)),
        (nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0, batch_first=True), (2,)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_layers_of_pytorch_that_want_another_call(layer: nn.Module, features: tuple[int, ...]) -> None:
    check_encoder(layer.double(), features, examples=2)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind: Any) -> None:
    def make_state(batch: int) -> LSTMState | RNNState:
        parts = [torch.randn(1, 1, batch, 3, dtype=torch.float64).requires_grad_() for _ in range(2)]
        return LSTMState(*parts) if kind is nn.LSTMCell else RNNState(parts[0])

    check_encoder(kind(2, 3).double(), (2,), make_state=make_state, examples=2)


def test_complex_values() -> None:
    check_encoder(nn.Linear(2, 3, dtype=torch.complex128), (2,), examples=2)


def test_a_wrong_gradient_of_complex_values_is_caught() -> None:
    layer = nn.Linear(2, 3, dtype=torch.complex128)
    register_encoder(nn.Linear)(lambda layer, batch: batch.map(lambda x: layer(x.detach() + (x - x.detach()).conj())))
    with pytest.raises(AssertionError, match=r"breaks the law Alone on sequences of \[1\] steps: of gradients"):
        check_encoder(layer, (2,), examples=2)


def test_layers_that_need_some_steps() -> None:
    check_encoder(nn.InstanceNorm1d(2).double(), (2,), least=2, examples=2)
    conv = nn.Conv1d(2, 3, 4, stride=2).double()
    check_encoder(conv, (2,), least=4, rule=lambda steps: (steps - 4) // 2 + 1, examples=2)
    with pytest.raises(AssertionError, match=r"law Alone on sequences of \[1\] steps: SeqbatchValueError: .* 4 steps"):
        check_encoder(conv, (2,), examples=2)


def test_lengths_have_the_least_and_stay_ragged() -> None:
    assert find(lengths(least=3), lambda drawn: len(drawn) == 4) == [3, 3, 3, 3]
    assert find(lengths("all zero", least=3), lambda drawn: len(drawn) == 2) == [3, 3]
    assert find(lengths("sorted", least=3), lambda drawn: len({*drawn}) == 2) == [4, 3]
    assert min(find(lengths("with ones", "with zeros", least=1), lambda drawn: len(drawn) == 5)) == 1


def test_memory_is_measured_on_sequences_of_the_least() -> None:
    made: list[int] = []

    def make(steps: int) -> Tensor:
        made.append(steps)
        return torch.randn(steps, 2)

    check_memory(nn.Conv1d(2, 2, 3), make, ones=7, longest=8, least=3)
    assert made == [3 * 7 + 3 * 8, 3 * 8]


class Learned(nn.Module):
    """A GRU of which the initial state is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 3, dtype=torch.float64)
        self.initial = nn.Parameter(torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64))

    def forward(self, steps: Tensor, state: RNNState | None = None) -> tuple[Tensor, RNNState]:
        start = self.start(1) if state is None else state
        output, end = self.gru(steps, start.hidden[0, 0])
        return output, RNNState(end[None, None])

    def start(self, batch: int) -> RNNState:
        return RNNState(self.initial.expand(1, 1, batch, 3))


def run(layer: Learned, batch: SequenceBatch, state: RNNState | None) -> tuple[SequenceBatch, RNNState]:
    outputs, final = [], []
    start = layer.start(len(batch)) if state is None else state
    for i, steps in enumerate(batch):
        output, end = layer(steps, start[i]) if len(steps) else (steps.new_zeros(0, 3), start[i])
        outputs.append(output)
        final.append(end.hidden)
    values = torch.cat([batch.values.new_zeros(0, 3), *outputs])
    return batch.with_values(values), RNNState(torch.cat([start.hidden[:, :, :0], *final], 2))


def make_state(batch: int) -> RNNState:
    return RNNState(torch.randn(1, 1, batch, 3, dtype=torch.float64).requires_grad_())


def test_an_initial_state_that_is_learned() -> None:
    register_recurrent(Learned)(run)
    check_encoder(Learned(), (2,), make_state=make_state, examples=2, times=None)

    @register_recurrent(Learned)
    def _(layer: Learned, batch: SequenceBatch, state: RNNState | None) -> tuple[SequenceBatch, RNNState]:
        outputs, final = run(layer, batch, state)
        return outputs, final.reset([not length and state is None for length in batch.lengths])

    with pytest.raises(AssertionError, match="the state of an empty sequence is not the initial one"):
        check_empty(Learned(), sequences([3, 1], (2,)))


class Counter(nn.Module):
    """Counts steps, from a state of any kind."""

    def forward(self, steps: Tensor, state: Any = None) -> Any:
        return steps, state


@attrs.frozen
class Count:
    """A state that cannot be selected from."""

    count: Tensor


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda count: count, "a torch.Tensor"), (lambda count: (count, count), "a tuple"), (Count, "a .*Count")],
)
def test_a_state_without_select_is_refused(make: Any, name: str) -> None:
    @register_recurrent(Counter)
    def _(layer: Counter, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, Any]:
        return batch.map(lambda steps: layer(steps)[0]), make(torch.tensor(batch.lengths))

    xs = sequences([2, 1], (2,))
    message = rf"`state` must have a method select, .*; got {name}"
    for check in (check_alone, functools.partial(check_order, order=[1, 0]), check_empty):
        with pytest.raises(SeqbatchTypeError, match=message):
            check(Counter(), xs)
    with pytest.raises(AssertionError, match=rf"law Alone on sequences of \[1\] steps: SeqbatchTypeError: {message}"):
        check_encoder(Counter(), (2,))


def test_an_oracle_that_gives_no_state_is_refused() -> None:
    class Plain(nn.Module):
        def forward(self, steps: Tensor) -> Tensor:
            return steps

    @register_recurrent(Plain)
    def _(layer: Plain, batch: SequenceBatch, state: RNNState | None) -> tuple[SequenceBatch, RNNState]:
        return batch.map(layer), make_state(len(batch))

    message = r"`alone\(layer, sequence, state\)` must return a pair \(output, state\), .*; got a torch.Tensor\. Pass"
    with pytest.raises(SeqbatchTypeError, match=message):
        check_alone(Plain(), sequences([2], (2,)))


@pytest.mark.parametrize(
    ("is_wrong", "where"),
    [
        (lambda batch: 0 in batch.lengths, r"Alone on sequences of \[0, 1, 1, 0\] steps"),
        (lambda batch: len(batch) > 99, "Memory"),
    ],
    ids=["Alone", "Memory"],
)
def test_an_error_of_the_encoder_comes_out_with_law_and_lengths(is_wrong: Callable[[Any], bool], where: str) -> None:
    @register_encoder(nn.Linear)
    def _(layer: nn.Linear, batch: SequenceBatch) -> SequenceBatch:
        if is_wrong(batch):
            raise KeyError("nothing there")
        return batch.map(layer)

    message = rf"^Linear\(.*\) breaks the law {where}: KeyError: 'nothing there'"
    with pytest.raises(AssertionError, match=message) as raised:
        check_encoder(nn.Linear(2, 3).double(), (2,), examples=3)
    assert isinstance(raised.value.__cause__, KeyError)


def test_sequences_that_cannot_be_made_break_no_law() -> None:
    def make(steps: int) -> Tensor:
        if steps > 1:
            raise OSError("nothing to read")
        return torch.randn(steps, 2, dtype=torch.float64).requires_grad_()

    with pytest.raises(OSError, match=r"^nothing to read"):
        check_encoder(nn.Linear(2, 3).double(), make=make, times=None)


def test_an_encoder_that_fails_in_two_ways_gives_one_error() -> None:
    @register_encoder(nn.Linear)
    def _(layer: nn.Linear, batch: SequenceBatch) -> SequenceBatch:
        if len(batch) > 3:
            raise KeyError("too many")
        return batch.map(lambda steps: layer(steps) + len(batch) - 1)

    with pytest.raises(AssertionError, match=r"breaks the law Alone on sequences of \[1, 1\] steps: "):
        check_encoder(nn.Linear(2, 3).double(), (2,), examples=20)
