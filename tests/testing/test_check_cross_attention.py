"""check_cross_attention: right layers pass, and of a wrong encoder it names the law that it breaks."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqbatch import SequenceBatch, register_cross_attention
from seqbatch._encode import registry
from seqbatch.testing import _check_cross_attention, check_cross_attention


@pytest.fixture(autouse=True)
def _registry_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the registry after each test."""
    monkeypatch.setattr(registry, "_cross_attentions", dict(registry._cross_attentions))


@pytest.mark.parametrize(
    "layer",
    [nn.MultiheadAttention(4, 2, batch_first=True), nn.TransformerDecoderLayer(4, 2, 4, 0.0)],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_pytorch_pass(layer: nn.Module) -> None:
    check_cross_attention(layer.double(), (4,), (4,), examples=2)


class PlusMean(nn.Module):
    """Adds a multiple of the mean of memory; for an empty one zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.calls = 0

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        return query + self.factor * memory.mean(0)


def means(memory: SequenceBatch, queries: SequenceBatch) -> Tensor:
    return memory.mean()[queries.segment_ids]


def right(layer: PlusMean, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    return queries.with_values(called(layer, queries.values, means(memory, queries)))


def called(layer: PlusMean, values: Tensor, each: Tensor) -> Tensor:
    """Call the layer on each step and the mean of its memory, so that its hooks run."""
    if not len(values):
        return values + layer.factor * each
    return torch.stack([layer(value, one[None]) for value, one in zip(values, each, strict=True)])


def looks_at_another_memory(layer: PlusMean, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    return right(layer, queries, SequenceBatch.from_sequences([*memory][::-1]) if len(memory) else memory)


def detaches_memory(layer: PlusMean, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    return right(layer, queries, memory.detach())


def divides_by_nothing(layer: PlusMean, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    lengths = torch.tensor(memory.lengths)[:, None].to(memory.dtype)
    each = (memory.sum() / lengths)[queries.segment_ids]
    return queries.with_values(called(layer, queries.values, each))


def mixes_a_little_of_others(layer: PlusMean, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    outputs = right(layer, queries, memory)
    return outputs.map(lambda values: values + 0 * memory.values.sum(0))


def forgets_the_hooks(layer: PlusMean, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    return queries.map(lambda values: values + layer.factor * means(memory, queries))


def counts_its_calls(layer: PlusMean, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    layer.calls = layer.calls + 1000
    return right(layer, queries, memory)


def writes_to_memory(layer: PlusMean, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    with torch.no_grad():
        memory.values.mul_(1)
    return right(layer, queries, memory)


def takes_equal_lengths_for_self_attention(
    layer: PlusMean, queries: SequenceBatch, memory: SequenceBatch
) -> SequenceBatch:
    several = len(set(queries.lengths)) > 1
    return right(layer, queries, queries if several and queries.lengths == memory.lengths else memory)


def pads(layer: PlusMean, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    pairs = queries.to_padded(batch_first=True)[:, :, None] + 0 * memory.to_padded(batch_first=True)[:, None]
    outputs = right(layer, queries, memory)
    padded = SequenceBatch.from_padded(pairs.abs().sum(2), queries.lengths, batch_first=True)
    return outputs.map(lambda values, others: values + 0 * others, padded)


def drops_a_step(layer: PlusMean, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    return SequenceBatch.from_sequences([*right(layer, queries, memory)[:-1], queries[-1][1:]] if len(queries) else [])


def test_a_right_encoder_passes() -> None:
    register_cross_attention(PlusMean)(right)
    check_cross_attention(PlusMean(), (3,), (3,), examples=3)


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        (looks_at_another_memory, "Alone"),
        (detaches_memory, "Alone"),
        (drops_a_step, "Alone"),
        (divides_by_nothing, "Alone|Padding|Empty"),
        (mixes_a_little_of_others, "Padding"),
        (forgets_the_hooks, "No surprise"),
        (counts_its_calls, r"Errors \(nothing is modified\)"),
        (writes_to_memory, r"Errors \(nothing is modified\)"),
        (takes_equal_lengths_for_self_attention, "Alone"),
    ],
    ids=lambda given: getattr(given, "__name__", given),
)
def test_a_wrong_encoder_is_caught(fault: Callable[..., Any], law: str) -> None:
    register_cross_attention(PlusMean)(fault)
    lengths = r"\[.*\]"
    message = rf"^PlusMean\(.*\) breaks the law ({law}) on sequences of {lengths} steps and memory of {lengths} steps: "
    with pytest.raises(AssertionError, match=message):
        check_cross_attention(PlusMean(), (3,), (3,), examples=5, times=None)


def test_hooks_that_are_lost_are_reported() -> None:
    register_cross_attention(PlusMean)(forgets_the_hooks)
    remedy = "call the layer itself, and not a function of its weights"
    with pytest.raises(AssertionError, match=f"a hook before the layer must run at least once; {remedy}$"):
        _check_cross_attention.check_hooks_with_memory(PlusMean(), [torch.randn(2, 3)], [torch.randn(3, 3)])


def test_padding_to_the_longest_of_both_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    small = functools.partial(_check_cross_attention.check_peak_with_memory, ones=63, longest=64)
    monkeypatch.setattr(_check_cross_attention, "check_peak_with_memory", small)
    monkeypatch.setattr(_check_cross_attention, "PATTERNS", {})
    register_cross_attention(PlusMean)(forgets_the_hooks)
    check_cross_attention(PlusMean(), (3,), (3,), times=5)
    register_cross_attention(PlusMean)(pads)
    with pytest.raises(AssertionError, match=r"^PlusMean\(.*\) breaks the law Memory: a peak of .* times what"):
        check_cross_attention(PlusMean(), (3,), (3,), times=5)
    check_cross_attention(PlusMean(), (3,), (3,), times=None)


def test_an_oracle_of_ones_own() -> None:
    class Negated(PlusMean):
        forward: Any = None

    @register_cross_attention(Negated)
    def _(layer: Negated, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
        return queries.map(torch.neg)

    with pytest.raises(AssertionError, match=r"breaks the law Alone .*'NoneType' object is not callable"):
        check_cross_attention(Negated(), (3,), (3,), examples=3)
