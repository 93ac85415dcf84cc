"""Every law for pools, which reduce each sequence to one step, and an empty batch to an empty one."""

from collections.abc import Iterator
from typing import Any

import laws
import pytest
import torch
from hypothesis import strategies as st
from parametrize import for_each_kind
from strategies import features, for_all_lengths, make, sequences
from torch import nn
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch, encode
from seqbatch._ops import reductions
from seqbatch.layers import AttentionPool, FirstStep, LastStep, MaxPool, MeanPool, MinPool, SumPool

POOLS: list[Any] = [FirstStep, LastStep, MaxPool, MeanPool, MinPool, SumPool]


@pytest.fixture(
    scope="module", autouse=True, params=[reductions.REDUCTION_LOOP_LIMIT, 0], ids=["one by one", "all at once"]
)
def few(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test with the loop over sequences, and with the call for all at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reductions, "REDUCTION_LOOP_LIMIT", request.param)
        yield


def attention(size: int, seed: int) -> AttentionPool:
    """Make a pool whose query is no longer zeros."""
    pool = AttentionPool(size, dtype=torch.float64)
    pool.query.data = make((size,), torch.float64, seed)
    return pool


plain: dict[str, st.SearchStrategy[nn.Module]] = {kind.__name__: st.builds(kind) for kind in POOLS}


@for_each_kind("pool", plain, fewer=2, features=features)
def test_alone(lengths: list[int], pool: nn.Module, features: tuple[int, ...]) -> None:
    laws.check_alone(pool, sequences(lengths, features))


@laws.fewer_examples(4)
@for_all_lengths(size=st.integers(1, 4), seed=st.integers(0, 9))
def test_attention_alone(lengths: list[int], size: int, seed: int) -> None:
    laws.check_alone(attention(size, seed), sequences(lengths, (size,)))


pools = {**plain, "AttentionPool": st.builds(attention, st.just(2), st.integers(0, 9))}


@for_each_kind(
    "pool", pools, fewer=3, poison=st.sampled_from([float("nan"), 1e9]), side=st.sampled_from(["left", "right"])
)
def test_padding(lengths: list[int], pool: nn.Module, poison: float, side: Any) -> None:
    laws.check_padding(pool, sequences(lengths or [0], (2,)), poison, side, True)


@for_each_kind("pool", pools, fewer=2, random=st.randoms(use_true_random=False))
def test_other_laws(lengths: list[int], pool: nn.Module, random: Any) -> None:
    xs = sequences(lengths or [0], (2,))
    laws.check_order(pool, xs, random.sample(range(len(xs)), len(xs)))
    laws.check_empty(pool, xs)
    laws.check_called_as_itself(pool, xs)
    laws.check_unmodified(pool, xs)


@for_each_kind("pool", pools, fewer=3)
def test_lengths_are_1_and_0(lengths: list[int], pool: nn.Module) -> None:
    pooled = encode(pool, SequenceBatch.from_sequences(sequences(lengths or [0], (2,))))
    assert pooled.lengths == tuple(min(length, 1) for length in lengths or [0])
    assert pooled.feature_shape == (2,)


@pytest.mark.parametrize("lengths", [[2, 2], [3, 1], [0, 2], [0, 0]])
def test_gradients_of_both_orders(lengths: list[int]) -> None:
    pool = attention(3, 0)
    values = make((sum(lengths), 3), torch.float64).requires_grad_()

    def pooled(values: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        called = torch.func.functional_call(pool, {"query": query}, (values,))
        batch = encode(pool, SequenceBatch(values, lengths))
        assert_close(called, pool(values))
        return batch.values

    assert torch.autograd.gradcheck(lambda values: pooled(values, pool.query), values)
    assert torch.autograd.gradgradcheck(lambda values: pooled(values, pool.query), values)


@pytest.mark.parametrize("pool", [*(kind() for kind in POOLS), AttentionPool(32)])
def test_memory(pool: nn.Module) -> None:
    laws.check_memory(nn.Sequential(nn.Linear(32, 32), pool), 32, times=12)


def test_attention_begins_as_the_mean() -> None:
    xs = sequences([3, 0, 5], (4,), torch.float32)
    assert_close(encode(AttentionPool(4), xs), encode(MeanPool(), xs))


def test_attention_learns_where_to_look() -> None:
    pool = AttentionPool(2)
    pool.query.data = torch.tensor([50.0, 0.0])
    x = torch.tensor([[0.0, 1.0], [1.0, 2.0], [0.0, 3.0]])
    assert_close(encode(pool, [x, x[2:]]), [x[1:2], x[2:]])


def test_attention_in_half_precision() -> None:
    pool = AttentionPool(3, dtype=torch.bfloat16)
    xs = sequences([4, 0, 300], (3,), torch.bfloat16)
    pooled = encode(pool, xs)
    assert [one.dtype for one in pooled] == [torch.bfloat16] * 3
    assert_close(pooled[2][0].float(), xs[2].float().mean(0), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers(dtype: torch.dtype) -> None:
    xs = [make((n, 2), dtype, n) for n in (3, 0, 2)]
    for kind in (FirstStep, LastStep, MaxPool, MinPool):
        assert {one.dtype for one in encode(kind(), xs)} == {dtype}
    assert_close(encode(SumPool(), xs)[0], xs[0].sum(0, keepdim=True))
    with pytest.raises(SeqbatchTypeError, match=r"`values` must have a dtype floating or complex to be averaged; got"):
        encode(MeanPool(), xs)


@pytest.mark.parametrize("lengths", [[2, 2], [3, 0], []])
@pytest.mark.parametrize(
    ("pool", "options", "message"),
    [
        (AttentionPool(4), {}, r"`sequences` must have features \(4,\), for AttentionPool\(4\); got \(3,\)\."),
        (
            AttentionPool(3),
            {"dtype": torch.float64},
            r"have dtype torch\.float32, as the weights of AttentionPool\(3\)",
        ),
        (
            AttentionPool(3),
            {"device": "meta"},
            r"`sequences` must be on cpu, as the weights of AttentionPool\(3\); got",
        ),
    ],
)
def test_what_attention_refuses(pool: nn.Module, options: Any, message: str, lengths: list[int]) -> None:
    batch = SequenceBatch(torch.zeros(sum(lengths), 3, **options), lengths)
    laws.check_refused(pool, batch, SeqbatchValueError, message)


def test_a_classifier() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 3), AttentionPool(3), nn.Linear(3, 2)).double()
    laws.check_alone(model, [torch.tensor([1, 2, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([4])])


def test_a_pool_with_a_parametrization() -> None:
    layer = attention(2, 0)
    nn.utils.parametrizations.weight_norm(layer, "query")
    laws.check_alone(layer, sequences([3, 1, 4], (2,)))
