"""Every law for layers of attention, whatever buckets the sequences are put into."""

import warnings
from typing import Any
from unittest.mock import patch

import laws
import pytest
import torch
from attentions import SIZE, every_kind, layers, spread
from hypothesis import given
from hypothesis import strategies as st
from parametrize import for_each_kind
from strategies import make, sequences
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode
from seqbatch._encoders import _buckets
from seqbatch.layers import Causal


def buckets(overhead: int) -> Any:
    """Patch the cost of a bucket; 0 puts each length into its own."""
    return patch.dict(_buckets.OVERHEAD, {"cpu": overhead * SIZE})


overheads = st.sampled_from([0, 40, 200, 10_000])


@for_each_kind("layer", every_kind, overhead=overheads)
def test_alone(lengths: list[int], layer: nn.Module, overhead: int) -> None:
    with buckets(overhead):
        laws.check_alone(layer, sequences(lengths, (SIZE,)))


@for_each_kind("layer", every_kind, overhead=overheads, random=st.randoms(use_true_random=False))
def test_order(lengths: list[int], layer: nn.Module, overhead: int, random: Any) -> None:
    with buckets(overhead):
        laws.check_order(layer, sequences(lengths, (SIZE,)), random.sample(range(len(lengths)), len(lengths)))


@for_each_kind(
    "layer", every_kind, overhead=overheads, side=st.sampled_from(["left", "right"]), batch_first=st.booleans()
)
def test_padding(lengths: list[int], layer: nn.Module, overhead: int, side: Any, batch_first: bool) -> None:
    with buckets(overhead):
        laws.check_padding(layer, sequences(lengths or [0], (SIZE,)), float("nan"), side, batch_first)


@for_each_kind("layer", every_kind)
def test_lengths_empty_and_what_is_the_callers(lengths: list[int], layer: nn.Module) -> None:
    xs = sequences(lengths, (SIZE,))
    laws.check_lengths(layer, xs)
    laws.check_empty(layer, xs or sequences([0], (SIZE,)))
    laws.check_unmodified(layer, xs)


@for_each_kind("layer", every_kind)
def test_hooks(lengths: list[int], layer: nn.Module) -> None:
    laws.check_called_as_itself(layer, sequences(lengths, (SIZE,)))


@for_each_kind("layer", every_kind, overhead=overheads)
def test_in_evaluation_without_gradients(lengths: list[int], layer: nn.Module, overhead: int) -> None:
    xs = [x.detach() for x in sequences(lengths, (SIZE,))]
    with torch.no_grad(), buckets(overhead):
        laws.check_alone(layer.eval(), xs)


def test_many_steps_without_gradients() -> None:
    layer = spread(nn.TransformerEncoderLayer(SIZE, 2, 4, dropout=0.0))
    xs = [x.detach() for x in sequences([*range(60)], (SIZE,))]
    wanted = encode(layer, xs)
    with torch.no_grad():
        assert_close(encode(layer, xs), wanted)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("overhead", [0, 10_000])
@given(layer=layers(), place=st.integers(0, 2), hooked=st.booleans(), dropout=st.booleans())
def test_nothing_comes_of_a_neighbour(
    poison: float, overhead: int, layer: nn.Module, place: int, hooked: bool, dropout: bool
) -> None:
    if hooked:
        layer.register_forward_hook(lambda module, args, output: None)
    if dropout:  # by which PyTorch takes another kernel
        layer.train()
        for module in layer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 1.0
    xs = sequences([3, 5, 3, 4], (SIZE,))
    with torch.no_grad():
        xs[1][place, 2] = poison
    others = [xs[0], xs[2], xs[3]]
    with buckets(overhead):
        outputs = encode(layer, xs)
        wanted = encode(layer, others)
    found = [outputs[0], outputs[2], outputs[3]]
    assert_close(found, wanted)
    # Also if the loss is of the poisoned sequence too.
    for parts in (found, outputs):
        gradients = [
            torch.autograd.grad(torch.cat(ys).cos().sum(), others, retain_graph=True) for ys in (parts, wanted)
        ]
        assert_close(*gradients)


@given(layer=layers(causal=True), cut=st.integers(1, 4))
def test_what_comes_after_reaches_nothing_before(layer: nn.Module, cut: int) -> None:
    xs = [x.detach() for x in sequences([5, 2, 5], (SIZE,))]
    assert_close([y[:cut] for y in encode(layer, xs)], encode(layer, [x[:cut] for x in xs]))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extra", [{}, {"add_bias_kv": True, "add_zero_attn": True}], ids=["", "keys added"])
def test_long_and_skewed_sequences(causal: bool, extra: dict[str, Any]) -> None:
    # Here the buckets are those that users get.
    layer = spread(nn.MultiheadAttention(16, 4, **extra))
    lengths = [1] * 50 + [130] + [*range(40, 100, 3)] + [0, 57]
    laws.check_alone(Causal(layer) if causal else layer, sequences(lengths, (16,)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("layer", "times"),
    [
        (nn.MultiheadAttention(8, 2), 40),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True), 40),
        (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), 40),
        (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0), 2, enable_nested_tensor=False), 60),
    ],
    ids=["attention", "keys added", "layer", "encoder"],
)
def test_memory(layer: nn.Module, times: float, causal: bool) -> None:
    laws.check_memory(Causal(layer) if causal else layer, 8, times=times, ones=1023, longest=2048)


def test_memory_of_layers_that_are_called_themselves() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    layer.register_forward_hook(lambda module, args, output: None)
    laws.check_memory(layer, 8, times=40, ones=1023, longest=2048)


@pytest.mark.parametrize("causal", [False, True])
def test_dropout_of_everything(causal: bool) -> None:
    for layer in (nn.MultiheadAttention(SIZE, 2, dropout=1.0), nn.TransformerEncoderLayer(SIZE, 2, 4, dropout=1.0)):
        laws.check_alone(Causal(spread(layer)) if causal else spread(layer), sequences([3, 0, 1, 5], (SIZE,)))


def test_dropout_keeps_the_mean() -> None:
    layer: Any = spread(nn.MultiheadAttention(SIZE, 2, dropout=0.3))
    x, y = (one.detach() for one in sequences([3, 2], (SIZE,)))
    outputs = encode(layer, [*[x] * 4000, y])
    mean, spare = torch.stack(outputs[:-1]).mean(0), outputs[0]
    wanted = encode(layer.eval(), x)
    assert not torch.allclose(spare, wanted)
    assert_close(mean, wanted, atol=0.05, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    xs = sequences([3, 5, 1, 5], (8,), dtype)
    attention = nn.MultiheadAttention(8, 2, dtype=dtype)
    # To give the weights too PyTorch rounds at other places.
    wanted = [attention(x, x, x, need_weights=False)[0] for x in xs]
    assert_close(encode(attention, xs), wanted)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, dtype=dtype)
    wanted = [layer(x) for x in xs]
    outputs = encode(layer, xs)
    assert_close(outputs, wanted)
    gradients = [torch.autograd.grad(torch.cat(ys).cos().sum(), xs) for ys in (outputs, wanted)]
    assert_close(*gradients, atol=0.01, rtol=0.02)  # which are added up in another order


@pytest.mark.parametrize("extra", [False, True])
def test_autocast(extra: bool) -> None:
    layer = nn.MultiheadAttention(8, 2, add_bias_kv=extra)
    xs = [x.detach() for x in sequences([3, 0, 5, 1], (8,), torch.float32)]
    with torch.autocast("cpu"):
        outputs = encode(layer, xs)
        assert outputs[0].dtype is torch.bfloat16
        for x, output in zip(xs, outputs, strict=True):
            assert_close(output, layer(x, x, x, need_weights=False)[0])


def test_second_derivatives_forward_mode_and_inference_mode() -> None:
    layer = spread(nn.MultiheadAttention(4, 2))
    xs = sequences([2, 0, 1, 3], (4,))

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(encode(layer, given))

    with warnings.catch_warnings(action="ignore"), sdpa_kernel(SDPBackend.MATH):  # forward mode loads deprecated code
        assert torch.autograd.gradcheck(run, xs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(run, xs)
    batch = SequenceBatch.from_sequences(xs)
    with torch.inference_mode():
        encode(layer, batch)
    encode(layer, batch).values.sum().backward()  # by plans that were made there


def test_on_another_device() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, device="meta")
    outputs = encode(layer, [torch.zeros(n, 8, device="meta") for n in (3, 0, 5)])
    assert [output.shape for output in outputs] == [(3, 8), (0, 8), (5, 8)]


def test_nothing_at_all() -> None:
    for layer in (nn.MultiheadAttention(8, 2), Causal(nn.TransformerEncoderLayer(8, 2, 16))):
        assert encode(layer, []) == []
        batch = SequenceBatch(torch.zeros(0, 8, requires_grad=True), [0, 0])
        outputs = encode(layer, batch)
        assert outputs.values.shape == (0, 8)
        outputs.values.sum().backward()
        # Distributed training waits for the gradient of every weight.
        assert all(weight.grad is not None and not weight.grad.any() for weight in layer.parameters())


def test_a_tensor_a_batch_and_a_nested_tensor() -> None:
    layer = spread(nn.TransformerEncoderLayer(SIZE, 2, 4, dropout=0.0))
    batch = SequenceBatch.from_sequences([x.detach() for x in sequences([3, 1, 4], (SIZE,))])
    outputs = encode(layer, batch)
    assert_close(encode(layer, batch[2]), outputs[2])
    assert_close(SequenceBatch.from_nested(encode(layer, batch.to_nested())).values, outputs.values)
    assert_close(SequenceBatch.from_packed(encode(layer, batch.to_packed())).values, outputs.values)


def test_inside_a_sequential() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)
    model = spread(nn.Sequential(nn.Linear(3, 4), Causal(layer), nn.GRU(4, 2), nn.MultiheadAttention(2, 1)))
    laws.check_alone(model, sequences([3, 0, 1, 5], (3,)))
    assert encode(model, []) == []


@pytest.mark.parametrize("batch_first", [False, True])
def test_causal_by_itself(batch_first: bool) -> None:
    inner: Any = spread(nn.MultiheadAttention(SIZE, 2, batch_first=batch_first))
    layer = Causal(inner)
    x, padded = make((4, SIZE), torch.float64), make((2, 3, SIZE), torch.float64)
    rows = [inner(x[i : i + 1], x[: i + 1], x[: i + 1])[0] for i in range(4)]
    assert_close(layer(x), torch.cat(rows))
    turned: Tensor = layer(padded if batch_first else padded.transpose(0, 1))
    assert_close(turned if batch_first else turned.transpose(0, 1), torch.stack([layer(one) for one in padded]))
    assert layer(x[:0]).shape == (0, SIZE)


def test_causal_is_saved_and_loaded() -> None:
    one, other = (Causal(nn.TransformerEncoderLayer(8, 2, 16)) for _ in range(2))
    other.load_state_dict(one.state_dict())
    x = make((3, 8), torch.float32)
    assert_close(encode(one.eval(), x), encode(other.eval(), x))
