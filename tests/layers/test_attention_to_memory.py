"""AdditiveAttention and DotProductAttention: their weights, themselves on one sequence, and what they refuse."""

import re
from typing import Any
from unittest.mock import patch

import pytest
import torch
from attentions import spread
from hypothesis import given
from hypothesis import strategies as st
from reference import attention_weights, run_alone_with_memory
from strategies import for_all_lengths, sequences
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch, UnsupportedLayerError, encode
from seqbatch.layers import AdditiveAttention, DotProductAttention, attention_to_memory
from seqbatch.testing import check_cross_attention

AnyAttention = AdditiveAttention | DotProductAttention


def attentions() -> list[AnyAttention]:
    return [spread(AdditiveAttention(4, 3, 2)), spread(DotProductAttention(4, 3))]


each = pytest.mark.parametrize("layer", attentions(), ids=lambda layer: type(layer).__name__)


@for_all_lengths(layer=st.sampled_from(attentions()), of_memory=st.lists(st.integers(0, 5), min_size=8, max_size=8))
def test_weights(lengths: list[int], layer: AnyAttention, of_memory: list[int]) -> None:
    queries, memory = sequences(lengths, (4,)), sequences(of_memory[: len(lengths)], (3,), seed=50)
    contexts, weights = layer.attend(queries, memory)
    assert_close(contexts, encode(layer, queries, memory))
    assert weights.lengths == tuple(len(m) for x, m in zip(queries, memory, strict=True) for _ in x)
    wanted = [each for x, m in zip(queries, memory, strict=True) for each in attention_weights(layer, x, m)]
    assert_close(weights.to_sequences(), wanted)
    assert_close(weights.sum(), torch.tensor([float(n > 0) for n in weights.lengths], dtype=torch.float64))
    if wanted and weights.values.requires_grad:
        sources = [one for one in (*queries, *memory, *layer.parameters()) if len(one)]
        found, expected = (
            torch.autograd.grad(cosines(ys), sources, allow_unused=True, materialize_grads=True)
            for ys in ([*contexts, *weights], [*run_all(layer, queries, memory), *wanted])
        )
        assert_close(found, expected)


def cosines(tensors: list[Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in tensors]).cos().sum()


def run_all(layer: nn.Module, queries: list[Tensor], memory: list[Tensor]) -> list[Tensor]:
    return [run_alone_with_memory(layer, x, m) for x, m in zip(queries, memory, strict=True)]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "layer", [AdditiveAttention(4, 3, 2), DotProductAttention(4, 3)], ids=lambda layer: type(layer).__name__
)
def test_quantized_parts_round_each_pair_alone(layer: AnyAttention) -> None:
    quantized = quantize_dynamic(layer, {nn.Linear}, torch.qint8)
    queries, memory = (
        [scale * torch.randn(n, size) for scale, n in ((1, 3), (1000, 4), (1, 0), (1, 2))] for size in (4, 3)
    )
    pairs = [*zip(queries, memory, strict=True)]
    contexts, weights = quantized.attend(queries, memory)
    for found in (encode(quantized, queries, memory), contexts):
        assert_close(found, [quantized(x, m) for x, m in pairs])
    assert_close(weights.to_sequences(), [each for x, m in pairs for each in quantized.attend(x, m)[1]])
    assert encode(quantized, [], []) == []


def test_hidden_numbers_in_groups_are_those_of_all() -> None:
    layer = AdditiveAttention(4, 3, 5).double()
    queries, memory = sequences([30] * 6, (4,)), sequences([40] * 6, (3,), seed=50)
    sources = [*queries, *memory, *layer.parameters()]
    found = [torch.autograd.grad(cosines(layer.attend(queries, memory)[0]), sources)]
    with patch.object(attention_to_memory, "_HIDDEN_AT_ONCE", 2 * 30 * 40 * 5):  # two sequences in a group
        found.append(torch.autograd.grad(cosines(layer.attend(queries, memory)[0]), sources))
    assert_close(*found)
    assert_close(found[0], torch.autograd.grad(cosines(run_all(layer, queries, memory)), sources))


@each
def test_weights_of_one_query_step_have_the_structure_of_memory(layer: AnyAttention) -> None:
    queries = SequenceBatch(torch.randn(3, 4).double(), [1, 1, 1])
    memory = SequenceBatch(torch.randn(5, 3).double(), [2, 0, 3])
    contexts, weights = layer.attend(queries, memory)
    assert weights.structure is memory.structure
    assert contexts.structure is queries.structure
    products = memory.map(lambda values, shares: values * shares[:, None], weights)
    assert_close(contexts.values, products.sum())


@each
def test_weights_of_every_layout(layer: AnyAttention) -> None:
    x, m = torch.randn(3, 4).double(), torch.randn(2, 3).double()
    wanted = attention_weights(layer, x, m)
    one, weights = layer.attend(x, m)
    assert_close(one, layer(x, m))
    assert_close(weights.to_sequences(), wanted)
    several, weights = layer.attend([x, x], [m, m])
    assert_close(several, [one, one])
    assert_close(weights.to_sequences(), wanted * 2)
    nothing, weights = layer.attend([], [])
    assert nothing == []
    assert weights.lengths == ()


@given(steps=st.integers(0, 4), others=st.integers(0, 4))
def test_the_layer_itself_on_one_sequence(steps: int, others: int) -> None:
    x, m = sequences([steps], (4,))[0], sequences([others], (3,), seed=9)[0]
    for layer in attentions():
        output = layer(x, m)
        assert_close(output, run_alone_with_memory(layer, x, m))
        assert_close(encode(layer, x, m), output)
        if not others:
            assert not output.any()


@each
def test_the_laws(layer: AnyAttention) -> None:
    check_cross_attention(layer, (4,), (3,), examples=2)


@each
def test_second_derivatives_of_attend(layer: AnyAttention) -> None:
    queries, memory = sequences([2, 0, 1, 3, 2], (4,)), sequences([1, 2, 3, 2, 0], (3,), seed=9)

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        contexts, weights = layer.attend([*given[:5]], [*given[5:]])
        return *contexts, weights.values

    assert torch.autograd.gradgradcheck(run, [*queries, *memory])


@each
def test_hooks_run_for_attend_too(layer: AnyAttention) -> None:
    seen: list[Any] = []

    def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append((module, *(tuple(one.shape) for one in args)))
        return 2 * output

    x, m = torch.randn(3, 4).double(), torch.randn(2, 3).double()
    plain, wanted = layer.attend(x, m)
    handle = layer.register_forward_hook(double)
    try:
        doubled, weights = layer.attend(x, m)
        assert_close(encode(layer, x, m), doubled)
    finally:
        handle.remove()
    assert_close(doubled, 2 * plain)
    assert_close(weights.values, wanted.values)
    assert seen == [(layer, (3, 4), (2, 3))] * 2


def test_sizes_and_representation() -> None:
    layer = AdditiveAttention(4, 3, 2)
    assert repr(layer).startswith("AdditiveAttention(\n  4, 3, 2\n")
    assert repr(DotProductAttention(4, 3)).startswith("DotProductAttention(\n  4, 3\n")
    for wrong, kind, message in (
        (-1, SeqbatchValueError, r"^`{}` must be at least 0; got -1\."),
        (2.5, SeqbatchTypeError, r"^`{}` must be an integer; got 2\.5\."),
    ):
        for i, name in enumerate(["query_size", "memory_size", "hidden_size"]):
            sizes: list[Any] = [4, 3, 2]
            sizes[i] = wrong
            with pytest.raises(kind, match=message.format(name)):
                AdditiveAttention(*sizes)
            if i < 2:
                with pytest.raises(kind, match=message.format(name)):
                    DotProductAttention(*sizes[:2])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_no_features_at_all() -> None:
    for layer in (AdditiveAttention(0, 0, 0), DotProductAttention(0, 0)):
        assert encode(layer, torch.zeros(3, 0), torch.zeros(2, 0)).shape == (3, 0)
        _, weights = layer.attend(torch.zeros(3, 0), torch.zeros(2, 0))
        assert_close(weights.values, torch.full((6,), 0.5))


@each
def test_what_is_not_a_sequence(layer: AnyAttention) -> None:
    one: Any = [torch.zeros(3, 4)]
    with pytest.raises(SeqbatchTypeError, match=r"^`query` must be a Tensor; got a list\."):
        layer(one, torch.zeros(2, 3))
    with pytest.raises(SeqbatchTypeError, match=r"^`memory` must be a Tensor; got a list\."):
        layer(torch.zeros(3, 4).double(), one)
    right: dict[str, tuple[int, ...]] = {"query": (3, 4), "memory": (2, 3)}
    for subject, (_, size) in right.items():
        for shape in ((2, 3, size), (size,), (3, size + 1)):
            message = f"`{subject}` must have shape (steps, {size}); got {shape}. For several sequences call encode("
            with pytest.raises(SeqbatchValueError, match=f"^{re.escape(message)}"):
                layer(*(torch.zeros(one) for one in {**right, subject: shape}.values()))
    with pytest.raises(SeqbatchValueError, match=r"^`memory` must have 1 sequence, as many as `sequences`; got 2\."):
        layer.attend(one, [torch.zeros(2, 3)] * 2)


class Own(DotProductAttention):
    """Has a forward of its own."""

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        return -super().forward(query, memory)


def test_a_forward_of_its_own_is_refused() -> None:
    layer = Own(4, 3)
    for call in (lambda *pair: encode(layer, *pair), layer.attend):
        with pytest.raises(UnsupportedLayerError, match=r"got .*Own: it has a forward of its own"):
            call([torch.zeros(3, 4)], [torch.zeros(2, 3)])
    with pytest.raises(UnsupportedLayerError, match=r"got .*Own: it has a forward of its own"):
        layer.attend([], [])


def test_scores_have_no_bias_because_a_softmax_would_cancel_it() -> None:
    assert AdditiveAttention(4, 3, 2).score.bias is None
