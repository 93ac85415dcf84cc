"""check_encoder: right encoders pass, and of a wrong one it says which law it breaks, where, and what differs."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import wrong_encoders as wrong
from hypothesis import find
from strategies import state_for
from torch import Tensor, nn

from seqbatch import SequenceBatch, register_encoder
from seqbatch._encode import registry
from seqbatch.testing import check_alone, check_encoder, check_lengths, lengths, maker, sequences
from seqbatch.testing._comparison import tensors_of


@pytest.fixture(autouse=True)
def _registry_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the registry after each test."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(2, 3),
        nn.LSTM(2, 3, num_layers=2, bidirectional=True, batch_first=True),
        nn.GRU(2, 3),
        nn.Sequential(nn.Linear(2, 3), nn.Tanh()),
    ],
    ids=str,
)
def test_layers_of_pytorch_pass(layer: nn.Module) -> None:
    layer = layer.double()
    make_state = functools.partial(state_for, layer) if isinstance(layer, nn.RNNBase) else None
    check_encoder(layer, (2,), make_state=make_state, examples=2)


def test_token_ids() -> None:
    check_encoder(nn.Embedding(5, 2).double(), make=lambda steps: torch.randint(5, (steps,)), examples=2)


@pytest.mark.parametrize(
    ("fault", "law", "smallest"),
    [
        (wrong.mixes_neighbours, "Alone", r"\[1\]"),
        (wrong.detaches_the_weights, "Alone", r"\[1\]"),
        (wrong.counts_the_sequences, "Alone", r"\[1, 1\]"),
        (wrong.averages_over_padding, "Alone", r"\[.*\]"),
    ],
)
def test_it_says_which_law_and_by_which_lengths(fault: Callable[..., Any], law: str, smallest: str) -> None:
    register_encoder(wrong.Scaled)(fault)
    with pytest.raises(AssertionError, match=rf"Scaled\(.*\) breaks the law {law} on sequences of {smallest} steps: "):
        check_encoder(wrong.Scaled(), (2,))


def test_a_wrong_claim_of_treating_every_step_by_itself_is_named() -> None:
    class FromStart(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x[:1]

    def encode_each(layer: FromStart, batch: SequenceBatch) -> SequenceBatch:
        return SequenceBatch.from_sequences([layer(x) for x in batch]) if len(batch) else batch

    register_encoder(FromStart)(encode_each)
    check_encoder(FromStart(), (2,), examples=1)
    register_encoder(FromStart, stepwise=True)(encode_each)
    with pytest.raises(
        AssertionError, match=r"FromStart\(\) breaks the law Stepwise on sequences of \[2\] steps: it is reg"
    ):
        check_encoder(FromStart(), (2,))


def test_the_law_of_memory_is_named_too() -> None:
    register_encoder(nn.Linear)(lambda layer, batch: batch.map(layer))
    with pytest.raises(
        AssertionError, match=r"Linear\(.*\) breaks the law Memory: a peak of [\d.]+ times what the longest"
    ):
        check_encoder(nn.Linear(2, 3).double(), (2,), times=0.1, examples=1)
    check_encoder(nn.Linear(2, 3).double(), (2,), times=None, examples=1)


def test_a_rule_of_lengths() -> None:
    class Every(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[::2]

    @register_encoder(Every)
    def _(layer: Every, batch: SequenceBatch) -> SequenceBatch:
        return SequenceBatch.from_sequences([x[::2] for x in batch]) if len(batch) else batch

    xs = [torch.randn(3, 2), torch.randn(0, 2)]
    check_lengths(Every(), xs, rule=lambda steps: -(-steps // 2))
    with pytest.raises(AssertionError, match=r"lengths must be \[3, 0\]; got \[2, 0\]"):
        check_lengths(Every(), xs)


def test_an_oracle_of_ones_own() -> None:
    with pytest.raises(AssertionError, match="not close"):
        check_alone(nn.Linear(2, 3), [torch.randn(3, 2)], alone=lambda layer, x, state: layer(x) + 1)


def test_what_is_not_a_state_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a Tensor, an attrs class, a tuple or a list of these; got int"):
        tensors_of(3)


def test_strategies() -> None:
    nothing = find(sequences(maker((3,)), lengths("all zero")), lambda drawn: len(drawn) == 2)
    assert [one.shape for one in nothing] == [(0, 3), (0, 3)]
    any_at_all = find(sequences(maker(())), lambda drawn: len(drawn) == 3)
    assert all(one.dim() == 1 and len(one) <= 7 for one in any_at_all)
    assert maker((2,), torch.float32)(4).dtype is torch.float32
