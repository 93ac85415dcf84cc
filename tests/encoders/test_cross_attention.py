"""Every law for layers that attend to another batch, whatever buckets the pairs are put into."""

import warnings
from typing import Any
from unittest.mock import patch

import pytest
import torch
from attentions import MEMORY_SIZE, SIZE, memory_size, spread, with_memory
from hypothesis import given
from hypothesis import strategies as st
from parametrize import for_each_kind
from reference import run_alone_with_memory
from strategies import sequences
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode
from seqbatch._encoders import _buckets
from seqbatch._encoders._buckets import bucket_pairs
from seqbatch.layers import AdditiveAttention, Causal, DotProductAttention
from seqbatch.testing import _check_cross_attention as laws

overheads = st.sampled_from([0, 40, 200, 10_000])
memory_lengths = st.lists(st.integers(0, 7), min_size=8, max_size=8)


def buckets(overhead: int) -> Any:
    """Patch the cost of a bucket; 0 puts each pair of lengths into its own."""
    return patch.dict(_buckets.OVERHEAD, {"cpu": overhead * SIZE})


def pairs(layer: nn.Module, lengths: list[int], of_memory: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    size = memory_size(layer.layer if isinstance(layer, Causal) else layer)
    return sequences(lengths, (SIZE,)), sequences(of_memory[: len(lengths)], (size,), seed=50)


@for_each_kind("layer", with_memory, of_memory=memory_lengths, overhead=overheads)
def test_alone(lengths: list[int], layer: nn.Module, of_memory: list[int], overhead: int) -> None:
    with buckets(overhead):
        laws.check_alone_with_memory(
            layer, *pairs(layer, lengths, of_memory), alone=run_alone_with_memory, with_empty_memory=True
        )


@for_each_kind(
    "layer", with_memory, of_memory=memory_lengths, overhead=overheads, random=st.randoms(use_true_random=False)
)
def test_order(lengths: list[int], layer: nn.Module, of_memory: list[int], overhead: int, random: Any) -> None:
    order = random.sample(range(len(lengths)), len(lengths))
    with buckets(overhead):
        laws.check_order_with_memory(layer, *pairs(layer, lengths, of_memory), order)


@for_each_kind(
    "layer",
    with_memory,
    of_memory=memory_lengths,
    overhead=overheads,
    side=st.sampled_from(["left", "right"]),
    batch_first=st.booleans(),
    poison=st.sampled_from([float("nan"), 1e9]),
)
def test_padding(
    lengths: list[int],
    layer: nn.Module,
    of_memory: list[int],
    overhead: int,
    side: Any,
    batch_first: bool,
    poison: float,
) -> None:
    options = {"padding_side": side, "batch_first": batch_first}
    with buckets(overhead):
        laws.check_padding_with_memory(layer, *pairs(layer, lengths, of_memory), poison=poison, **options)


@for_each_kind("layer", with_memory, of_memory=memory_lengths)
def test_empty_and_what_is_the_callers(lengths: list[int], layer: nn.Module, of_memory: list[int]) -> None:
    given = pairs(layer, lengths, of_memory)
    laws.check_empty_with_memory(layer, *given)
    laws.check_unmodified_with_memory(layer, *given)


@for_each_kind("layer", with_memory, of_memory=memory_lengths)
def test_hooks(lengths: list[int], layer: nn.Module, of_memory: list[int]) -> None:
    laws.check_hooks_with_memory(layer, *pairs(layer, lengths, of_memory))


@for_each_kind("layer", with_memory, of_memory=memory_lengths)
def test_in_evaluation_without_gradients(lengths: list[int], layer: nn.Module, of_memory: list[int]) -> None:
    queries, memory = ([x.detach() for x in side] for side in pairs(layer, lengths, of_memory))
    with torch.no_grad():
        laws.check_alone_with_memory(layer.eval(), queries, memory, alone=run_alone_with_memory, with_empty_memory=True)


@pytest.mark.parametrize("extra", [{}, {"add_bias_kv": True, "add_zero_attn": True}], ids=["", "keys added"])
def test_long_and_skewed_sequences(extra: dict[str, Any]) -> None:
    # Here the buckets are those that users get.
    layer = spread(nn.MultiheadAttention(16, 4, kdim=4, vdim=4, **extra))
    lengths = [1] * 50 + [130] + [*range(40, 100, 3)] + [0, 57]
    queries, memory = sequences(lengths, (16,)), sequences([*lengths[20:], *[3] * 20], (4,), seed=200)
    laws.check_alone_with_memory(layer, queries, memory, alone=run_alone_with_memory, with_empty_memory=True)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20),
    st.sampled_from([0, 10, 1000, 100_000]),
    st.sampled_from([0, 1]),
)
def test_buckets_of_pairs(pairs: list[tuple[int, int]], overhead: int, least: int) -> None:
    found = bucket_pairs(pairs, overhead, least)
    kept = [i for i, (steps, others) in enumerate(pairs) if steps and others >= least]
    assert sorted(i for some in found for i in some) == kept
    assert all(some == sorted(some) for some in found)
    if overhead == 0:
        assert all(len({pairs[i] for i in some}) == 1 for some in found)
        assert len(found) == len({pairs[i] for i in kept})
    if overhead == 100_000:
        assert len(found) <= 1


def test_few_buckets_and_little_padding_for_pairs_of_any_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [(int(q), int(m)) for q, m in torch.randint(1, 500, (1000, 2), generator=generator)]
    found = bucket_pairs(pairs, 100_000, 1)
    padded = sum(len(some) * max(pairs[i][0] for i in some) * max(pairs[i][1] for i in some) for some in found)
    assert padded < 1.4 * sum(steps * others for steps, others in pairs)
    assert len(found) < 150
    skewed = [(1, 1)] * 1000 + [(4096, 1), (1, 4096)]
    assert sorted(map(len, bucket_pairs(skewed, 4096, 1))) == [1, 1, 1000]


@pytest.mark.parametrize(
    ("layer", "times"),
    [
        (nn.MultiheadAttention(8, 2), 3),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True), 3),
        (nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0), 3),
        (nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, 0.0), 2), 3),
        (Causal(nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0)), 3),
        (AdditiveAttention(8, 8, 8), 3),
        (DotProductAttention(8, 8), 3),
    ],
    ids=["attention", "keys added", "layer", "decoder", "causal", "additive", "dot product"],
)
def test_memory(layer: nn.Module, times: float) -> None:
    def make(steps: int) -> Tensor:
        return torch.randn(steps, 8).requires_grad_()

    laws.check_peak_with_memory(layer, make, make, times=times, ones=1023, longest=2048)
    if not isinstance(layer, (AdditiveAttention, DotProductAttention)):
        layer.register_forward_hook(lambda module, args, output: None)
        laws.check_peak_with_memory(layer, make, make, times=times, ones=1023, longest=2048)


def test_dropout_of_everything() -> None:
    queries, memory = sequences([3, 0, 1, 5, 2], (SIZE,)), sequences([2, 3, 7, 1, 0], (SIZE,), seed=50)
    for layer in (
        nn.MultiheadAttention(SIZE, 2, dropout=1.0),
        nn.TransformerDecoderLayer(SIZE, 2, 4, dropout=1.0),
        Causal(nn.TransformerDecoderLayer(SIZE, 2, 4, dropout=1.0)),
    ):
        laws.check_alone_with_memory(
            spread(layer), queries, memory, alone=run_alone_with_memory, with_empty_memory=True
        )


def test_dropout_keeps_the_mean() -> None:
    layer: Any = spread(nn.MultiheadAttention(SIZE, 2, dropout=0.3))
    x, y, m = (one.detach() for one in sequences([3, 2, 4], (SIZE,)))
    outputs = encode(layer, [*[x] * 4000, y], [*[m] * 4000, y])
    mean, spare = torch.stack(outputs[:-1]).mean(0), outputs[0]
    wanted = encode(layer.eval(), x, m)
    assert not torch.allclose(spare, wanted)
    assert_close(mean, wanted, atol=0.05, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    xs, ms = sequences([3, 5, 1, 5], (8,), dtype), sequences([2, 6, 4, 1], (8,), dtype, seed=9)
    attention = nn.MultiheadAttention(8, 2, dtype=dtype)
    # To return the weights too PyTorch rounds at other places.
    wanted = [attention(x, m, m, need_weights=False)[0] for x, m in zip(xs, ms, strict=True)]
    assert_close(encode(attention, xs, ms), wanted)
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, dtype=dtype)
    wanted = [layer(x, m) for x, m in zip(xs, ms, strict=True)]
    outputs = encode(layer, xs, ms)
    assert_close(outputs, wanted)
    gradients = [torch.autograd.grad(torch.cat(ys).cos().sum(), [*xs, *ms]) for ys in (outputs, wanted)]
    assert_close(*gradients, atol=0.02, rtol=0.02)  # which are added up in another order


@pytest.mark.parametrize("empty", [False, True])
def test_autocast(empty: bool) -> None:
    xs = [x.detach() for x in sequences([3, 0, 5, 1], (8,), torch.float32)]
    ms = [m.detach() for m in sequences([0] * 4 if empty else [2, 3, 1, 6], (8,), torch.float32, seed=9)]
    for layer in (
        nn.MultiheadAttention(8, 2),
        nn.MultiheadAttention(8, 2, add_bias_kv=True, kdim=8, vdim=8),
        AdditiveAttention(8, 8, 4),
        DotProductAttention(8, 8),
    ):
        with torch.autocast("cpu"):
            outputs = encode(layer, xs, ms)
            assert outputs[0].dtype is torch.bfloat16
            for x, m, output in zip(xs, ms, outputs, strict=True):
                if isinstance(layer, nn.MultiheadAttention):
                    assert_close(output, layer(x, m, m, need_weights=False)[0])
                else:
                    assert_close(output, layer(x, m))


LAYERS = [
    spread(nn.MultiheadAttention(4, 2, kdim=3, vdim=3)),
    spread(nn.MultiheadAttention(4, 2, kdim=3, vdim=3, add_zero_attn=True, add_bias_kv=True)),
    spread(AdditiveAttention(4, 3, 2)),
    spread(DotProductAttention(4, 3)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_second_derivatives_forward_mode_and_inference_mode(layer: nn.Module) -> None:
    xs, ms = sequences([2, 0, 1, 3, 2], (4,)), sequences([1, 2, 3, 2, 0], (3,), seed=9)

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(encode(layer, [*given[:5]], [*given[5:]]))

    with warnings.catch_warnings(action="ignore"), sdpa_kernel(SDPBackend.MATH):  # forward mode loads deprecated code
        assert torch.autograd.gradcheck(run, [*xs, *ms], check_forward_ad=True)
        assert torch.autograd.gradgradcheck(run, [*xs, *ms])
    batch, memory = SequenceBatch.from_sequences(xs), SequenceBatch.from_sequences(ms)
    with torch.inference_mode():
        encode(layer, batch, memory)
    encode(layer, batch, memory).values.sum().backward()  # by plans that were made there


@pytest.mark.parametrize("layer", [*LAYERS, spread(nn.TransformerDecoderLayer(4, 2, 4, 0.0))], ids=str)
def test_gradients_per_sample_by_transforms(layer: nn.Module) -> None:
    size = memory_size(layer) if memory_size(layer) == 3 else 4
    xs = torch.stack([sequences([5], (4,), seed=i)[0].detach() for i in range(3)])
    ms = torch.stack([sequences([4], (size,), seed=9 + i)[0].detach() for i in range(3)])

    def loss(values: Tensor, memory: Tensor) -> Tensor:
        queries, source = SequenceBatch(values, [3, 2]), SequenceBatch(memory, [1, 3])
        return encode(layer, queries, source).values.cos().sum()

    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(xs, ms)
    wanted = [torch.func.grad(loss, argnums=(0, 1))(x, m) for x, m in zip(xs, ms, strict=True)]
    assert_close(found, tuple(torch.stack(parts) for parts in zip(*wanted, strict=True)))


def test_on_another_device() -> None:
    for layer in (
        nn.TransformerDecoderLayer(8, 2, 16, device="meta"),
        AdditiveAttention(8, 8, 4, device="meta"),
        DotProductAttention(8, 8, device="meta"),
    ):
        xs, ms = ([torch.zeros(n, 8, device="meta") for n in some] for some in ((3, 0, 5), (2, 4, 0)))
        assert [output.shape for output in encode(layer, xs, ms)] == [(3, 8), (0, 8), (5, 8)]


@pytest.mark.parametrize(
    "layer",
    [
        nn.MultiheadAttention(8, 2, kdim=4, vdim=4),
        nn.TransformerDecoderLayer(8, 2, 16),
        Causal(nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 1)),
        AdditiveAttention(8, 4, 3),
        DotProductAttention(8, 4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_nothing_at_all(layer: nn.Module) -> None:
    size = memory_size(layer.layer if isinstance(layer, Causal) else layer)
    features = 8 if size == SIZE else size
    outputs = encode(layer, [], [])
    assert outputs == []
    nothing = SequenceBatch.from_sequences([])
    width = encode(layer, torch.zeros(2, 8), torch.zeros(3, features)).shape[1]
    assert encode(layer, nothing, nothing).feature_shape == (width,)
    for steps, others in (([0, 0], [0, 0]), ([0, 0], [2, 0]), ([2, 0], [0, 0]), ([3, 0], [0, 4])):
        layer.zero_grad()
        queries = SequenceBatch(torch.zeros(sum(steps), 8, requires_grad=True), steps)
        memory = SequenceBatch(torch.zeros(sum(others), features, requires_grad=True), others)
        result = encode(layer, queries, memory)
        assert result.values.shape == (sum(steps), width)
        result.values.sum().backward()
        # Distributed training waits for the gradient of every weight.
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in layer.parameters())
        assert queries.values.grad is not None
        assert memory.values.grad is not None
        assert not memory.values.grad.any()


def test_attention_over_an_empty_sequence_is_the_bias_of_the_output_projection() -> None:
    layer = nn.MultiheadAttention(SIZE, 2)
    x, m = torch.randn(3, SIZE), torch.randn(2, SIZE)
    assert not encode(layer, [x, x], [m[:0], m])[0].any()
    hooked = nn.MultiheadAttention(SIZE, 2)
    hooked.load_state_dict(spread(layer).float().state_dict())
    hooked.register_forward_hook(lambda module, args, output: None)
    for one in (layer, hooked):
        assert_close(encode(one, [x, x], [m[:0], m])[0], layer.out_proj.bias.expand(3, SIZE))


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, nn.TransformerDecoderLayer])
def test_a_neighbour_is_not_seen_where_a_layer_with_hooks_has_no_memory(kind: Any) -> None:
    # PyTorch itself mixes queries that it runs together without memory, if one of them has a NaN.
    layer = kind(SIZE, 2).eval()
    layer.register_forward_hook(lambda module, args, output: None)
    x, m = torch.randn(2, SIZE), torch.zeros(0, SIZE)
    poisoned = torch.full_like(x, float("nan"))
    assert_close(encode(layer, [poisoned, x], [m, m])[1], encode(layer, [x], [m])[0])


def test_every_layout_of_queries_and_memory() -> None:
    layer = spread(nn.TransformerDecoderLayer(SIZE, 2, 4, dropout=0.0))
    queries = SequenceBatch.from_sequences([x.detach() for x in sequences([3, 1, 4], (SIZE,))])
    memory = SequenceBatch.from_sequences([x.detach() for x in sequences([2, 5, 1], (SIZE,), seed=9)])
    wanted = encode(layer, queries, memory)
    assert wanted.structure is queries.structure
    layouts: list[Any] = [memory, memory.to_sequences(), tuple(memory), memory.to_packed(), memory.to_nested()]
    for source in layouts:
        assert_close(encode(layer, queries, source).values, wanted.values)
        assert_close(encode(layer, queries.to_sequences(), source), wanted.to_sequences())
        packed = encode(layer, queries.to_packed(), source)
        assert_close(SequenceBatch.from_packed(packed).values, wanted.values)
        nested = encode(layer, queries.to_nested(), source)
        assert_close(SequenceBatch.from_nested(nested).values, wanted.values)
    assert_close(encode(layer, queries[2], memory[2]), wanted[2])
    assert_close(encode(layer, queries, queries).values, torch.cat([layer(x, x) for x in queries]))


def test_plans_are_kept_for_equal_lengths_of_queries() -> None:
    layer = DotProductAttention(4, 4).bfloat16()  # because the kernels need no plan
    memory = SequenceBatch(torch.randn(5, 4).bfloat16(), [2, 3])
    for _ in range(3):
        encode(layer, SequenceBatch(torch.randn(2, 4).bfloat16(), [1, 1]), memory)
    assert len(memory.structure._plans) == 1


@pytest.mark.parametrize("batch_first", [False, True])
def test_causal_by_itself(batch_first: bool) -> None:
    inner: Any = spread(nn.TransformerDecoderLayer(SIZE, 2, 4, dropout=0.0, batch_first=batch_first))
    for layer in (Causal(inner), Causal(nn.TransformerDecoder(inner, 2))):
        x, m = (one.detach() for one in sequences([4, 3], (SIZE,)))
        wanted = run_alone_with_memory(layer, x, m)
        assert_close(layer(x, m), wanted)
        assert_close(layer(x[:2], m), wanted[:2])
        padded, source = (torch.stack([one, -one]) for one in (x, m))
        if batch_first:
            assert_close(layer(padded, source)[0], wanted)
        else:
            assert_close(layer(padded.transpose(0, 1), source.transpose(0, 1))[:, 0], wanted)


@given(layer=st.one_of(with_memory["decoder layer, causal"], with_memory["decoder, causal"]), cut=st.integers(1, 4))
def test_what_comes_after_reaches_nothing_before(layer: nn.Module, cut: int) -> None:
    xs, ms = ([x.detach() for x in sequences(some, (SIZE,))] for some in ([5, 2, 5], [3, 0, 1]))
    assert_close([y[:cut] for y in encode(layer, xs, ms)], encode(layer, [x[:cut] for x in xs], ms))


def test_many_steps_without_gradients() -> None:
    layer = spread(nn.TransformerDecoderLayer(SIZE, 2, 4, dropout=0.0))
    xs, ms = ([x.detach() for x in sequences([*range(60)], (SIZE,), seed=s)] for s in (0, 99))
    wanted = encode(layer, xs, ms)
    with torch.no_grad():
        assert_close(encode(layer, xs, ms), wanted)


def test_memory_size_is_another() -> None:
    layer = spread(AdditiveAttention(SIZE, MEMORY_SIZE, 3))
    x, m = sequences([2], (SIZE,))[0], sequences([4], (MEMORY_SIZE,))[0]
    assert encode(layer, x, m).shape == (2, MEMORY_SIZE)
