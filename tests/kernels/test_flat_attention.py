"""Attention by the kernels: the bits of a sequence alone, any strides, and the calls that PyTorch must run."""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from attentions import SIZE, record_calls, spread
from hypothesis import given
from hypothesis import strategies as st
from reference import run_alone_with_memory
from strategies import make, sequences
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import SequenceBatch, _kernels, encode
from seqbatch._kernels import flat_attention
from seqbatch.layers import AdditiveAttention, Causal, DotProductAttention

needs_kernels = pytest.mark.skipif(not _kernels.IS_THERE, reason="without kernels, PyTorch computes attention")
HEADS, WIDTH = 3, 5
lengths = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the calls of the kernel."""
    return record_calls(monkeypatch, "compute_attention")


def attend(parts: Sequence[Sequence[Tensor]], is_causal: bool, weight: Tensor | None) -> list[Tensor]:
    """Run the kernel once on queries, keys and values of several sequences."""
    query, key, value = (torch.cat(side) for side in zip(*parts, strict=True))
    counts = [[len(part[side]) for part in parts] for side in (0, 1)]
    starts = [torch.tensor([0, *some]).cumsum(0) for some in counts]
    return list(
        flat_attention.attend_flat(query, key, value, *starts, scale=0.3, weight=weight, is_causal=is_causal).split(
            counts[0]
        )
    )


@needs_kernels
@pytest.mark.parametrize("dtype", flat_attention.DTYPES, ids=str)
@given(
    pairs=lengths,
    is_causal=st.booleans(),
    is_additive=st.booleans(),
    threads=st.integers(1, 4),
    rng=st.randoms(use_true_random=False),
)
def test_the_bits_of_a_sequence_alone(
    dtype: torch.dtype,
    pairs: list[tuple[int, int]],
    is_causal: bool,
    is_additive: bool,
    threads: int,
    rng: random.Random,
) -> None:
    weight = make((HEADS, WIDTH), dtype, 300) if is_additive else None
    pairs = [(steps, steps if is_causal else keys) for steps, keys in [*pairs, (300, 700)]]
    parts = [
        (make((steps, HEADS, WIDTH), dtype, i), *(make((keys, HEADS, WIDTH), dtype, i + j) for j in (100, 200)))
        for i, (steps, keys) in enumerate(pairs)
    ]
    rng.shuffle(parts)
    before = torch.get_num_threads()
    with torch.no_grad():
        alone = [attend([part], is_causal, weight)[0] for part in parts]
        torch.set_num_threads(threads)
        try:
            together = attend(parts, is_causal, weight)
        finally:
            torch.set_num_threads(before)
    assert all(map(torch.equal, together, alone))
    for (query, key, value), found in zip(parts, alone, strict=True):
        scores = torch.einsum("qhf,khf->hqk", query, key) * 0.3
        if weight is not None:
            scores = torch.einsum("qkhf,hf->hqk", torch.tanh(query[:, None] + key), weight) * 0.3
        if is_causal:
            scores = scores.masked_fill(torch.ones(len(query), len(key)).triu(1).bool(), -torch.inf)
        assert_close(found, torch.einsum("hqk,khf->qhf", scores.softmax(-1), value))


@needs_kernels
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.mT.contiguous().mT,
        lambda x: x.repeat_interleave(2, 0)[::2],
        lambda x: x[:1].expand_as(x),
        lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    ],
    ids=["features apart", "every other step", "one step", "wide steps"],
)
def test_strides(change: Callable[[Tensor], Tensor], calls: list[Any]) -> None:
    queries, memory = (SequenceBatch(change(torch.randn(9, 4)), some) for some in ([2, 3, 4], [4, 0, 5]))
    with torch.no_grad():
        for layer in (DotProductAttention(4, 4), AdditiveAttention(4, 4, 6)):
            wanted = [run_alone_with_memory(layer, x, m) for x, m in zip(queries, memory, strict=True)]
            assert_close(encode(layer, queries, memory).to_sequences(), wanted)
        for each in (nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2, bias=False)):
            assert_close(encode(each, queries).to_sequences(), [encode(each, [x.clone()])[0] for x in queries])
    assert len(calls) == 10


def ways() -> list[tuple[str, Callable[[], nn.Module], AbstractContextManager[Any], torch.dtype]]:
    """Return the calls that the kernel does not serve: a layer, what is active, and a dtype."""

    def plain(**options: Any) -> nn.MultiheadAttention:
        return nn.MultiheadAttention(SIZE, 2, **options)

    none, single = torch.no_grad(), torch.float32
    return [
        ("gradients", plain, nullcontext(), single),
        ("half precision", lambda: plain().bfloat16(), none, torch.bfloat16),
        ("autocast", plain, torch.autocast("cpu", torch.bfloat16), single),
        ("a key added", lambda: plain(add_zero_attn=True), none, single),
        ("dropout", lambda: plain(dropout=0.5).train(), none, single),
    ]


@pytest.mark.parametrize(("make_layer", "active", "dtype"), [way[1:] for way in ways()], ids=[way[0] for way in ways()])
def test_what_pytorch_runs(
    make_layer: Callable[[], nn.Module], active: AbstractContextManager[Any], dtype: torch.dtype, calls: list[Any]
) -> None:
    layer, xs = make_layer(), [torch.randn(n, SIZE, dtype=dtype) for n in (3, 5)]
    with active:
        assert [len(y) for y in encode(layer, xs)] == [3, 5]
        assert [len(y) for y in encode(layer, xs, xs[::-1])] == [3, 5]
    assert not calls


@needs_kernels
def test_what_the_kernels_run(calls: list[Any]) -> None:
    frozen = nn.MultiheadAttention(SIZE, 2, dropout=0.5).eval().requires_grad_(False)
    xs = [torch.randn(n, SIZE) for n in (3, 5)]
    encode(frozen, xs)  # no gradient is wanted, so none is recorded
    with torch.inference_mode():
        layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(SIZE, 2, 4), 3, enable_nested_tensor=False).eval()
        encode(Causal(layer), xs)
        encode(nn.TransformerDecoderLayer(SIZE, 2, 4).eval(), xs, xs[::-1])
    assert len(calls) == 1 + 3 + 2
    for attends in (DotProductAttention(SIZE, SIZE), AdditiveAttention(SIZE, SIZE, 4)):
        attends.requires_grad_(False).attend(xs, xs)  # whose weights only PyTorch returns
    torch.func.vmap(lambda x: encode(frozen, [x])[0])(torch.randn(2, 3, SIZE))
    assert len(calls) == 1 + 3 + 2


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "make_layer", [lambda: nn.MultiheadAttention(SIZE, 2), lambda: DotProductAttention(SIZE, SIZE)]
)
def test_what_is_not_finite_is_as_alone_and_does_not_reach_a_neighbour(
    make_layer: Callable[[], nn.Module], poison: float
) -> None:
    layer: Any = spread(make_layer())
    queries, memory = ([x.detach() for x in sequences(some, (SIZE,))] for some in ([3, 2, 4], [2, 5, 3]))
    memory[1][2, 0] = poison
    with torch.no_grad():
        wanted = [run_alone_with_memory(layer, x, m) for x, m in zip(queries, memory, strict=True)]
        found = encode(layer, queries, memory)
    assert_close(found, wanted, equal_nan=True)
    assert not found[1].isfinite().all()
    assert torch.cat([found[0], found[2]]).isfinite().all()


@needs_kernels
def test_a_causal_step_has_nothing_of_a_later_one() -> None:
    query, key, value = (torch.randn(40, 1, 9) for _ in range(3))
    starts = torch.tensor([0, 40])
    wanted = flat_attention.attend_flat(query, key, value, starts, starts, is_causal=True)
    key[20:], value[20:] = float("inf"), float("nan")
    found = flat_attention.attend_flat(query, key, value, starts, starts, is_causal=True)
    assert torch.equal(found[:20], wanted[:20])
    assert found[20:].isnan().all()


@needs_kernels
def test_the_network_of_the_scores(calls: list[Any]) -> None:
    xs = [torch.randn(n, 4) for n in (3, 5)]
    layer = AdditiveAttention(4, 4, 6).requires_grad_(False)

    def zeros(module: nn.Module, args: Any, output: Any) -> Any:
        return torch.zeros_like(output)

    def is_as_alone() -> bool:
        assert_close(encode(layer, xs, xs), [run_alone_with_memory(layer, x, x) for x in xs])
        made = bool(calls)
        calls.clear()
        return made

    assert is_as_alone()
    layer.score.weight.data = torch.randn(1, 12)[:, ::2]
    assert is_as_alone()
    handle = layer.score.register_forward_hook(zeros)
    assert not is_as_alone()
    handle.remove()
    layer.score.forward = lambda hidden: hidden[..., :1]  # type: ignore[method-assign,assignment]
    assert not is_as_alone()
    del layer.score.forward
    layer.score.bias = nn.Parameter(torch.ones(1))  # through which a gradient of 0 flows
    assert not is_as_alone()
    layer.score = nn.Sequential(nn.Linear(6, 1, bias=False))  # type: ignore[assignment]
    assert not is_as_alone()
    layer.score = nn.Linear(6, 2, bias=False).requires_grad_(False)
    with pytest.raises(RuntimeError):
        encode(layer, xs, xs)


@needs_kernels
def test_what_does_not_fit_is_not_read() -> None:
    query, starts = torch.randn(3, 1, 4), torch.tensor([0, 3])
    fits = {"query": query, "key": query, "value": query, "query_starts": starts, "key_starts": starts}
    for wrong in (
        {"query": query[:2]},
        {"key": query[..., :3]},
        {"value": query[:2]},
        {"key_starts": torch.tensor([0, 4])},
        {"key_starts": torch.tensor([0, 0, 3])},
        {"weight": torch.randn(1, 3)},
        {
            "query_starts": torch.tensor([0, 1, 3]),
            "key_starts": torch.tensor([0, 2, 3]),
            "is_causal": True,
        },
    ):
        with pytest.raises(ValueError, match="must be of shapes that fit each other"):
            flat_attention.attend_flat(**{**fits, **wrong})  # type: ignore[arg-type]


def test_what_cannot_be_read() -> None:
    x = torch.randn(3, 4)
    assert flat_attention.can_attend(x, x) == _kernels.IS_THERE
    for others in ([x.double()], [x[:0]], [x.to_sparse()], [x.bfloat16()], [torch.empty(3, 4, device="meta")]):
        assert not flat_attention.can_attend(x, *others)
        assert not flat_attention.can_attend(*others, x)


@pytest.mark.parametrize("make_layer", [lambda: nn.MultiheadAttention(1, 1), lambda: DotProductAttention(1, 1)])
def test_where_all_scores_are_infinitely_low(make_layer: Callable[[], nn.Module]) -> None:
    layer: Any = make_layer()
    for weight in layer.parameters():
        nn.init.zeros_(weight) if weight.dim() == 1 else nn.init.ones_(weight)
    far = [torch.full((3, 1), 1e30)]
    found = [encode(layer, [-far[0]], far)[0].detach()]
    with torch.no_grad():
        found += encode(layer, [-far[0]], far)
    assert_close(found, [torch.zeros(3, 1)] * 2)


@needs_kernels
@torch.no_grad()
def test_where_denormal_numbers_are_flushed() -> None:
    """The flag belongs to the calling thread, as for recurrent layers."""
    query, key = (torch.randn(4000, 1, 8) for _ in range(2))
    value, starts = key * torch.finfo(torch.float32).tiny, torch.arange(0, 4001, 100)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        kept = flat_attention.attend_flat(query, key, value, starts, starts)
        torch.set_flush_denormal(True)
        flushed = flat_attention.attend_flat(query, key, value, starts, starts)
        torch.set_num_threads(1)
        alone = flat_attention.attend_flat(query, key, value, starts, starts)
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)
    assert not torch.equal(flushed, kept)
    assert torch.equal(flushed, alone)


def test_a_hook_of_the_projection_may_return_another_size() -> None:
    layer = DotProductAttention(4, 4)
    layer.query_projection.register_forward_hook(lambda module, args, output: output[:, :2])
    with torch.no_grad(), pytest.raises(RuntimeError):
        encode(layer, [torch.randn(3, 4)], [torch.randn(2, 4)])
