"""Gradients of attention by the kernels: bits, memory, and the calls whose gradients PyTorch computes."""

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from attentions import record_calls, spread
from hypothesis import given
from hypothesis import strategies as st
from reference import run_alone_with_memory
from strategies import make, sequences
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from seqbatch import SequenceBatch, _kernels, encode
from seqbatch._kernels import flat_attention
from seqbatch.layers import AdditiveAttention, DotProductAttention
from seqbatch.testing._memory_law import peak_by_step

needs_kernels = pytest.mark.skipif(not _kernels.IS_THERE, reason="without kernels, PyTorch computes attention")
QUERIES, MEMORY = [3, 2, 0, 1, 5], [2, 0, 4, 3, 20]
LayerType = type[AdditiveAttention | DotProductAttention]
LAYERS = [AdditiveAttention, DotProductAttention]
of_each_layer = pytest.mark.parametrize("layer_type", LAYERS)
PARTS = ["query_projection", "memory_projection", "score", "queries", "memory"]
FROZEN: list[tuple[LayerType, list[str]]] = [
    *((AdditiveAttention, some) for some in ([PARTS[0]], [PARTS[1]], [PARTS[2]], PARTS[:2])),
    (DotProductAttention, [PARTS[0]]),
    *((one, some) for one in LAYERS for some in ([PARTS[3]], [PARTS[4]], PARTS[3:])),
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the backward passes of the kernel."""
    return record_calls(monkeypatch, "compute_attention_gradients")


def layer_and_inputs(
    layer_type: LayerType, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    layer = spread(layer_type(4, 3, *((5,) if layer_type is AdditiveAttention else ()))).to(dtype)
    return layer, sequences(QUERIES, (4,), dtype), sequences(MEMORY, (3,), dtype, seed=50)


def sources_of(layer: nn.Module, xs: list[Tensor], ms: list[Tensor]) -> list[Tensor]:
    return [one for one in (*layer.parameters(), *xs, *ms) if one.requires_grad and len(one)]


def loss_of(outputs: list[Tensor]) -> Tensor:
    joined = torch.cat([*outputs])
    return (joined * joined.cos()).sum()


def gradients(outputs: list[Tensor], sources: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss_of(outputs), sources, allow_unused=True, materialize_grads=True))


def alone(layer: nn.Module, xs: list[Tensor], ms: list[Tensor]) -> list[Tensor]:
    return [run_alone_with_memory(layer, x, m) for x, m in zip(xs, ms, strict=True)]


Triple = tuple[Tensor, Tensor, Tensor]


def by_kernels(
    parts: list[Triple], weight: Tensor | None, of_outputs: list[Tensor]
) -> tuple[list[Triple], list[Tensor]]:
    """Return the gradients of queries, keys and values of each sequence, and of any weight, from one call."""
    query, key, value = joined = [torch.cat(side).requires_grad_() for side in zip(*parts, strict=True)]
    counts = [[len(part[side]) for part in parts] for side in range(3)]
    starts, key_starts = (torch.tensor([0, *some]).cumsum(0) for some in counts[:2])
    output = flat_attention.attend_with_gradients(query, key, value, weight, starts, key_starts, pytest.fail, scale=0.3)
    weights = [] if weight is None else [weight]
    found = torch.autograd.grad(output, [*joined, *weights], torch.cat(of_outputs))
    split = (part.split(some) for part, some in zip(found[:3], counts, strict=True))
    return list(zip(*split, strict=True)), list(found[3:])


@needs_kernels
@pytest.mark.parametrize("dtype", flat_attention.DTYPES, ids=str)
@given(
    pairs=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 90)), min_size=1, max_size=6),
    is_additive=st.booleans(),
    rng=st.randoms(use_true_random=False),
)
def test_the_bits_of_a_sequence_alone(
    dtype: torch.dtype, pairs: list[tuple[int, int]], is_additive: bool, rng: random.Random
) -> None:
    weight = make((1, 19), dtype, 300).requires_grad_() if is_additive else None
    # The last has more query steps than a task, and so many pairs that several threads run.
    sizes = [((steps, 19), (keys, 19), (keys, 6)) for steps, keys in [*pairs, (400, 60)]]
    parts: Any = [tuple(make(size, dtype, 3 * i + j) for j, size in enumerate(some)) for i, some in enumerate(sizes)]
    rng.shuffle(parts)
    of_outputs = [make((len(part[0]), 6), dtype, 99) for part in parts]
    before = torch.get_num_threads()
    runs = []
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            runs.append(by_kernels(parts, weight, of_outputs))
    finally:
        torch.set_num_threads(before)
    assert all(all(map(torch.equal, run[1], runs[0][1])) for run in runs)
    for i, (part, of_output) in enumerate(zip(parts, of_outputs, strict=True)):
        if len(part[1]):
            wanted = by_kernels([part], weight, [of_output])[0][0]
            assert all(torch.equal(*pair) for run in runs for pair in zip(run[0][i], wanted, strict=True))
        else:
            assert not any(one.any() for run in runs for one in run[0][i])


@needs_kernels
@of_each_layer
@pytest.mark.parametrize("dtype", flat_attention.DTYPES, ids=str)
def test_gradients_are_those_alone(dtype: torch.dtype, layer_type: LayerType, calls: list[Any]) -> None:
    layer, xs, ms = layer_and_inputs(layer_type, dtype)
    sources = sources_of(layer, xs, ms)
    outputs = encode(layer, xs, ms)
    assert_close(outputs, alone(layer, xs, ms))
    assert_close(gradients(outputs, sources), gradients(alone(layer, xs, ms), sources))
    assert len(calls) == 1


@needs_kernels
@of_each_layer
def test_gradients_over_several_blocks_of_keys_and_steps(layer_type: LayerType) -> None:
    layer, _, _ = layer_and_inputs(layer_type)
    xs = sequences([97, 800, 2, 192], (4,), torch.float64)
    ms = sequences([193, 400, 2, 192], (3,), torch.float64, seed=50)
    sources = sources_of(layer, xs, ms)
    # By the layer itself, because the oracle takes a minute for so many pairs of steps.
    outputs = [layer(x, m) for x, m in zip(xs, ms, strict=True)]
    assert_close(gradients(encode(layer, xs, ms), sources), gradients(outputs, sources))


@needs_kernels
@of_each_layer
def test_scores_of_only_one_step_of_memory_have_no_gradient(layer_type: LayerType) -> None:
    """Not even a rounding error, which optimizers such as Adam would enlarge."""
    layer = spread(layer_type(64, 65, *((63,) if layer_type is AdditiveAttention else ()))).float()
    xs, ms = sequences([3, 40], (64,), torch.float32), sequences([1, 1], (65,), torch.float32)
    sources = [one for name, one in layer.named_parameters() if name != "memory_projection.bias"]
    assert not any(one.any() for one in gradients(encode(layer, xs, ms), [*sources, *xs]))


@needs_kernels
@pytest.mark.parametrize(("layer_type", "learns"), FROZEN)
def test_frozen_parts(layer_type: LayerType, learns: list[str], calls: list[Any]) -> None:
    layer, xs, ms = layer_and_inputs(layer_type)
    parts: dict[str, list[Tensor]] = {name: [*child.parameters()] for name, child in layer.named_children()}
    parts |= {"queries": xs, "memory": ms}
    for name, tensors in parts.items():
        for one in tensors:
            one.requires_grad_(name in learns)
    sources = sources_of(layer, xs, ms)
    assert_close(gradients(encode(layer, xs, ms), sources), gradients(alone(layer, xs, ms), sources))
    assert len(calls) == 1


@needs_kernels
@of_each_layer
@pytest.mark.parametrize(
    "change",
    [torch.clone, lambda x: x.mT.contiguous().mT, lambda x: x[:1].expand_as(x)],
    ids=["", "turned", "one step"],
)
def test_strides_of_the_output_gradient(
    change: Callable[[Tensor], Tensor], layer_type: LayerType, calls: list[Any]
) -> None:
    layer, xs, ms = layer_and_inputs(layer_type)
    batch, memory = SequenceBatch.from_sequences(xs), SequenceBatch.from_sequences(ms)
    output = encode(layer, batch, memory).values
    of_output = change(torch.randn_like(output))
    sources = sources_of(layer, xs, ms)
    found = torch.autograd.grad(output, sources, of_output, retain_graph=True)
    assert all(map(torch.equal, found, torch.autograd.grad(output, sources, of_output.contiguous())))
    assert len(calls) == 2


@of_each_layer
def test_gradients_of_gradients(layer_type: LayerType) -> None:
    """With weights that replace those of the layer during the call only."""
    layer, xs, ms = layer_and_inputs(layer_type)
    given: dict[str, Any] = {name: (2 * one).detach().requires_grad_() for name, one in layer.named_parameters()}

    class Model(nn.Module):
        def __init__(self, run: Callable[..., list[Tensor]]) -> None:
            super().__init__()
            self.layer, self.run = layer, run

        def forward(self) -> list[Tensor]:
            return self.run(self.layer, xs, ms)

    sources = [*given.values(), *(one for one in (*xs, *ms) if len(one))]
    found = []
    # Without the kernels, dot products need this backend of PyTorch.
    needs_math = layer_type is DotProductAttention and not _kernels.IS_THERE
    with sdpa_kernel(SDPBackend.MATH) if needs_math else nullcontext():
        for run in (encode, alone):
            outputs = functional_call(Model(run), {f"layer.{name}": one for name, one in given.items()}, ())
            options: Any = {"allow_unused": True, "materialize_grads": True}
            firsts = torch.autograd.grad(loss_of(outputs), sources, create_graph=True, **options)
            found.append((*firsts, *gradients([one.flatten() for one in firsts], sources)))
    assert_close(*found)


@of_each_layer
def test_many_gradients_at_once(layer_type: LayerType) -> None:
    layer, xs, ms = layer_and_inputs(layer_type)
    output = encode(layer, xs, ms)[4]
    sources, weights = sources_of(layer, xs, ms), make((2, *output.shape), torch.float64)
    options: Any = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(output, sources, weights, is_grads_batched=True, **options)
    for i, weight in enumerate(weights):
        assert_close([part[i] for part in found], [*torch.autograd.grad(output, sources, weight, **options)])


def held(tensor: Tensor) -> Tensor:
    """Return what a TwoTensor wraps, and any other tensor as it is."""
    wrapped: Tensor = getattr(tensor, "a", tensor)
    return wrapped


@needs_kernels
@of_each_layer
def test_what_the_kernel_cannot_read(layer_type: LayerType, calls: list[Any]) -> None:
    layer, xs, ms = layer_and_inputs(layer_type)
    sources = sources_of(layer, xs, ms)
    wanted = gradients(alone(layer, xs, ms), sources)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: TwoTensor(saved, saved), lambda saved: saved):
        outputs = encode(layer, xs, ms)
    assert_close([held(part) for part in gradients(outputs, sources)], wanted)
    outputs = encode(layer, xs, ms)
    with FlopCounterMode(display=False) as counter:
        assert_close(gradients(outputs, sources), wanted)
    assert counter.get_total_flops() > 0
    assert not calls
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: saved, lambda saved: torch.stack([saved, saved], -1)[..., 0]
    ):
        outputs = encode(layer, xs, ms)
    assert_close(gradients(outputs, sources), wanted)
    assert len(calls) == 1


@of_each_layer
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant: bool, layer_type: LayerType) -> None:
    layer, xs, ms = layer_and_inputs(layer_type)
    sources = sources_of(layer, xs, ms)
    wanted = gradients(encode(layer, xs, ms), sources)

    def run(*given: Tensor) -> Tensor:
        return torch.cat(encode(layer, [*given[:5]], [*given[5:]]))

    loss_of([checkpoint(run, *xs, *ms, use_reentrant=reentrant)]).backward()
    assert_close([one.grad for one in sources], wanted)


class NoGradient(torch.autograd.Function):
    """Returns its input, and no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        return None


@needs_kernels
@of_each_layer
def test_no_gradient_at_all(layer_type: LayerType) -> None:
    layer, xs, ms = layer_and_inputs(layer_type)
    apply: Any = NoGradient.apply
    apply(encode(layer, SequenceBatch.from_sequences(xs), SequenceBatch.from_sequences(ms)).values).sum().backward()
    assert all(one.grad is None for one in layer.parameters())


@of_each_layer
def test_results_may_be_modified_in_place(layer_type: LayerType) -> None:
    layer, xs, ms = layer_and_inputs(layer_type)
    sources = sources_of(layer, xs, ms)
    batch, memory = SequenceBatch.from_sequences(xs), SequenceBatch.from_sequences(ms)
    wanted = torch.autograd.grad((2 * encode(layer, batch, memory).values).sum(), sources, retain_graph=True)
    assert_close(torch.autograd.grad(encode(layer, batch, memory).values.mul_(2).sum(), sources), wanted)


@needs_kernels
@pytest.mark.parametrize("layer", [AdditiveAttention(32, 32, 32), DotProductAttention(32, 32)], ids=["additive", "dot"])
def test_memory_does_not_grow_with_pairs_of_steps(layer: nn.Module) -> None:
    memory = SequenceBatch(torch.randn(512, 32, requires_grad=True), [512])

    def run(layer: nn.Module, batch: SequenceBatch) -> tuple[SequenceBatch, None]:
        return encode(layer, batch, memory), None

    peak = peak_by_step(layer, SequenceBatch(torch.randn(512, 32, requires_grad=True), [512]), run)
    assert peak < 12 * 32 * 4  # in bytes: 12 times the values; one number for each pair takes 16 times


@needs_kernels
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("layer_type", LAYERS)
@pytest.mark.parametrize("where", ["queries", "memory", "output", "weights"])
def test_what_is_not_finite_does_not_reach_a_neighbour(where: str, layer_type: LayerType, poison: float) -> None:
    layer, xs, ms = layer_and_inputs(layer_type)
    of_outputs = [torch.ones(len(x), 3, dtype=x.dtype) for x in xs]
    with torch.no_grad():
        *_, weight = layer.parameters()  # of the score, or of the projection of queries
        {"queries": xs, "memory": ms, "output": of_outputs, "weights": [weight[0]]}[where][0][1] = poison
    sources, of_output = [xs[0], ms[0], weight, xs[4], ms[4]], torch.cat(of_outputs)
    found, wanted = (torch.autograd.grad(torch.cat(run(layer, xs, ms)), sources, of_output) for run in (encode, alone))
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())
    assert not torch.cat([one.flatten() for one in found[:3]]).isfinite().all()
    assert_close(found[3:], wanted[3:], equal_nan=True)
