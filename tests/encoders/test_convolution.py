"""Every law for convolution, pooling and padding, with the options of each, against each sequence alone."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import laws
import pytest
import torch
from hypothesis import strategies as st
from parametrize import for_each_kind
from reference import run_alone
from strategies import for_all_lengths, sequences
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import encode, testing
from seqbatch._encoders import convolution

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
CHANNELS, FEATURES = 2, 13
MODES = ("zeros", "reflect", "replicate", "circular")
OF_TWO_DIMENSIONS = (
    nn.AvgPool2d,
    nn.CircularPad2d,
    nn.ConstantPad2d,
    nn.Conv2d,
    nn.LPPool2d,
    nn.MaxPool2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)


def sizes(draw: st.DrawFn, kind: Any, drawn: st.SearchStrategy[Any]) -> Any:
    """Draw a size of a layer: for one of two dimensions a pair, or one number for both."""
    return draw(drawn) if kind not in OF_TWO_DIMENSIONS or draw(st.booleans()) else (draw(drawn), draw(drawn))


def paddings(draw: st.DrawFn, kind: Any, kernel: Any) -> Any:
    """Draw the padding of a pool, half of the kernel at most."""
    if isinstance(kernel, tuple):
        return tuple(draw(st.integers(0, one // 2)) for one in kernel)
    return sizes(draw, kind, st.integers(0, kernel // 2))


@st.composite
def convolutions(draw: st.DrawFn, kind: Any, padding_mode: Any) -> nn.Conv1d | nn.Conv2d:
    padding = draw(st.none() | st.sampled_from(["same", "valid"])) or sizes(draw, kind, st.integers(0, 3))
    laws.seed(0)
    layer: nn.Conv1d | nn.Conv2d = kind(
        CHANNELS,
        2 * draw(st.integers(1, 2)),
        sizes(draw, kind, st.integers(1, 4)),
        stride=1 if padding == "same" else sizes(draw, kind, st.integers(1, 5)),
        padding=padding,
        dilation=sizes(draw, kind, st.integers(1, 3)),
        groups=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        padding_mode=padding_mode,
        dtype=torch.float64,
    )
    return layer


@st.composite
def maxima(draw: st.DrawFn, kind: Any = nn.MaxPool1d) -> nn.MaxPool1d | nn.MaxPool2d:
    kernel = sizes(draw, kind, st.integers(1, 5))
    stride = sizes(draw, kind, st.integers(1, 5)) if draw(st.booleans()) else None
    padding, dilation = paddings(draw, kind, kernel), sizes(draw, kind, st.integers(1, 3))
    if isinstance(kernel, int) and draw(st.booleans()):
        kernel = (kernel,)
    layer: nn.MaxPool1d | nn.MaxPool2d = kind(kernel, stride, padding, dilation, ceil_mode=draw(st.booleans()))
    return layer


@st.composite
def means(draw: st.DrawFn, kind: Any) -> nn.AvgPool1d | nn.AvgPool2d:
    kernel = sizes(draw, kind, st.integers(1, 5))
    stride = sizes(draw, kind, st.integers(1, 5)) if draw(st.booleans()) else None
    options: dict[str, Any] = {name: draw(st.booleans()) for name in ("ceil_mode", "count_include_pad")}
    if kind is nn.AvgPool2d:
        options["divisor_override"] = draw(st.none() | st.integers(1, 9))
    layer: nn.AvgPool1d | nn.AvgPool2d = kind(kernel, stride, paddings(draw, kind, kernel), **options)
    return layer


@st.composite
def power_means(draw: st.DrawFn, kind: Any) -> nn.LPPool1d | nn.LPPool2d:
    stride = sizes(draw, kind, st.integers(1, 5)) if draw(st.booleans()) else None
    norm = draw(st.sampled_from([1.0, 2.0, 4.0]))
    layer: nn.LPPool1d | nn.LPPool2d = kind(
        norm, sizes(draw, kind, st.integers(1, 5)), stride, ceil_mode=draw(st.booleans())
    )
    return layer


side = st.integers(-2, 3)
sides = st.integers(0, 3) | st.tuples(side, side)
four_sides = st.integers(0, 3) | st.tuples(side, side, side, side)
layers: dict[str, st.SearchStrategy[nn.Module]] = {
    **{f"Conv1d, {mode}": convolutions(nn.Conv1d, mode) for mode in MODES},
    **{f"Conv2d, {mode}": convolutions(nn.Conv2d, mode) for mode in MODES},
    "MaxPool1d": maxima(),
    "MaxPool2d": maxima(nn.MaxPool2d),
    "AvgPool1d": means(nn.AvgPool1d),
    "AvgPool2d": means(nn.AvgPool2d),
    "LPPool1d": power_means(nn.LPPool1d),
    "LPPool2d": power_means(nn.LPPool2d),
    "ConstantPad1d": st.builds(nn.ConstantPad1d, sides, st.just(1.5)),
    "ConstantPad2d": st.builds(nn.ConstantPad2d, four_sides, st.just(1.5)),
    "ZeroPad1d": st.builds(nn.ZeroPad1d, sides),
    "ZeroPad2d": st.builds(nn.ZeroPad2d, four_sides),
    "ReflectionPad1d": st.builds(nn.ReflectionPad1d, sides),
    "ReflectionPad2d": st.builds(nn.ReflectionPad2d, four_sides),
    "ReplicationPad1d": st.builds(nn.ReplicationPad1d, sides),
    "ReplicationPad2d": st.builds(nn.ReplicationPad2d, four_sides),
    "CircularPad1d": st.builds(nn.CircularPad1d, sides),
    "CircularPad2d": st.builds(nn.CircularPad2d, four_sides),
}


def one(size: Any) -> int:
    """Return a number that may be in a tuple, in which that of the steps comes first."""
    return int(size[0] if isinstance(size, tuple) else size)


def sides_of_steps(layer: Any) -> tuple[int, int]:
    """Return what a layer pads before and after the steps, which come after the sides of the features."""
    before, after = layer.padding[-2:]
    return before, after


def features_of(layer: nn.Module) -> tuple[int, ...]:
    return (CHANNELS, FEATURES) if isinstance(layer, OF_TWO_DIMENSIONS) else (CHANNELS,)


def fewest(layer: Any) -> int:
    """Return the fewest steps that the layer takes, by trying."""
    for steps in range(1, 60):
        try:
            output = layer(torch.zeros(1, CHANNELS, steps, *features_of(layer)[1:], dtype=torch.float64))
        except RuntimeError:
            continue
        if isinstance(layer, (nn.ReflectionPad2d, nn.ReplicationPad2d)) and not output.shape[2]:
            continue  # which PyTorch accepts only if there are features left, and never in one dimension
        if isinstance(layer, (nn.MaxPool1d, nn.MaxPool2d)) and one(layer.padding):
            return max(steps, one(layer.dilation))  # below, PyTorch writes its gradients out of bounds
        if isinstance(layer, (nn.CircularPad1d, nn.CircularPad2d)):
            padding = sides_of_steps(layer)  # PyTorch gives what stands in memory if it cuts too much off
            return max(steps, max(padding) - sum(min(side, 0) for side in padding))
        return steps
    raise AssertionError(f"{layer} takes no sequence")


def given(layer: nn.Module, lengths: list[int], **options: Any) -> list[Tensor]:
    """Make sequences of lengths that the layer takes, none shorter by what the lengths are longer than 1."""
    return sequences([length + fewest(layer) - 1 if length else 0 for length in lengths], features_of(layer), **options)


@for_each_kind("layer", layers)
def test_alone(lengths: list[int], layer: nn.Module) -> None:
    laws.check_alone(layer, given(layer, lengths))


large_layers = {name: layers[name] for name in layers if name.startswith(("Conv2d", "MaxPool", "AvgPool2d"))}


@for_each_kind("layer", large_layers, fewer=2)
def test_large_sequences(lengths: list[int], layer: nn.Module) -> None:
    with patch.object(convolution, "_LARGE", 0):  # so that these are large
        laws.check_alone(layer, given(layer, lengths))
        laws.check_called_as_itself(layer, given(layer, lengths))


@for_each_kind("layer", layers, fewer=2, random=st.randoms(use_true_random=False))
def test_order(lengths: list[int], layer: nn.Module, random: Any) -> None:
    laws.check_order(layer, given(layer, lengths), random.sample(range(len(lengths)), len(lengths)))


@for_each_kind("layer", layers, fewer=2, side=st.sampled_from(["left", "right"]), batch_first=st.booleans())
def test_padding(lengths: list[int], layer: nn.Module, side: Any, batch_first: bool) -> None:
    laws.check_padding(layer, given(layer, lengths or [0]), float("nan"), side, batch_first)


def rule_of(layer: Any) -> Callable[[int], int]:
    """Return the formula from the steps of a sequence to the steps of a layer's output."""
    if not hasattr(layer, "kernel_size"):
        return lambda steps: steps + sum(sides_of_steps(layer))
    if getattr(layer, "padding", 0) == "same":
        return lambda steps: steps
    kernel, dilation = one(layer.kernel_size), one(getattr(layer, "dilation", 1))
    padding = 0 if getattr(layer, "padding", 0) == "valid" else one(getattr(layer, "padding", 0))
    stride = kernel if layer.stride is None else one(layer.stride)
    if not getattr(layer, "ceil_mode", False):
        return lambda steps: (steps + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1

    def upwards(steps: int) -> int:
        number = -(-(steps + 2 * padding - dilation * (kernel - 1) - 1) // stride) + 1
        return number - 1 if (number - 1) * stride - padding >= steps else number

    return upwards


@for_each_kind("layer", layers, fewer=2)
def test_lengths_empty_hooks_and_what_is_the_callers(lengths: list[int], layer: nn.Module) -> None:
    xs = given(layer, lengths)
    testing.check_lengths(layer, xs, rule=rule_of(layer))
    laws.check_empty(layer, xs or sequences([0], features_of(layer)))
    laws.check_called_as_itself(layer, xs)
    laws.check_unmodified(layer, xs)


@for_each_kind(
    "layer", layers, fewer=2, poison=st.sampled_from([float("nan"), float("inf"), -float("inf")]), data=st.data()
)
def test_what_stands_in_one_sequence_reaches_no_other(
    lengths: list[int], layer: nn.Module, poison: float, data: st.DataObject
) -> None:
    xs = given(layer, lengths)
    if not any(lengths):
        return
    chosen = data.draw(st.sampled_from([i for i, x in enumerate(xs) if len(x)]))
    step = data.draw(st.integers(0, len(xs[chosen]) - 1))
    with torch.no_grad():
        xs[chosen][step] = poison
    outputs = encode(layer, xs)
    wanted, _ = run_alone(layer, xs)
    assert_close(outputs, wanted, equal_nan=True)
    sources = [*xs, *layer.parameters()]
    found, expected = (
        torch.autograd.grad(torch.cat(results).sum(), sources, materialize_grads=True) for results in (outputs, wanted)
    )
    for i in range(len(xs)):
        assert_close(found[i], expected[i], equal_nan=True)
    for gradient, other in zip(found[len(xs) :], expected[len(xs) :], strict=True):
        if other.isfinite().all():  # else it is of no use, and NaN may stand at more places of the kernel
            assert_close(gradient, other)


@laws.fewer_examples(2)
@for_all_lengths(layer=maxima() | maxima(nn.MaxPool2d), where=st.lists(st.booleans(), min_size=9, max_size=9))
def test_maxima_of_minus_infinity_have_the_gradient_of_pytorch(
    lengths: list[int], layer: nn.Module, where: list[bool]
) -> None:
    xs = given(layer, lengths)
    with torch.no_grad():
        for x in xs:
            x.view(-1)[torch.tensor([where[i % 9] for i in range(x.numel())], dtype=torch.bool)] = -float("inf")
    laws.check_alone(layer, xs)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(CHANNELS, 3, 3, padding=1),
        nn.Conv1d(CHANNELS, 3, 3, 2, 4, 2),
        nn.Conv1d(CHANNELS, 3, 1, padding=2),  # some of its windows read nothing but padding
        nn.Conv1d(CHANNELS, 3, 1, padding=3, padding_mode="reflect"),
        nn.Conv1d(CHANNELS, 3, 4, padding="same", padding_mode="circular"),
        nn.Conv1d(CHANNELS, 3, 2, 3, padding=1, padding_mode="replicate"),
        nn.MaxPool1d(3, 2, 1, ceil_mode=True),
        nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool1d(3, 2, 1, ceil_mode=True),
        nn.LPPool1d(2.0, 3, 2),
        nn.ReflectionPad1d(2),
        nn.Conv2d(CHANNELS, 3, 3, padding=1),
        nn.Conv2d(CHANNELS, 3, (3, 11), (2, 2), padding=(4, 5), dilation=(2, 1)),
        nn.Conv2d(CHANNELS, 3, (1, 5), padding=(2, 0)),
        nn.Conv2d(CHANNELS, 3, (4, 2), padding="same", padding_mode="circular"),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d((3, 4), 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(3, 2, 1, divisor_override=5),
        nn.LPPool2d(2.0, 3, 2),
        nn.ReflectionPad2d((1, 3, 2, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("lengths", [[5, 5, 5], [9, 7, 4, 4], [4, 9, 0, 6], [0, 0]], ids=str)
def test_single_precision(lengths: list[int], layer: nn.Module) -> None:
    xs = sequences(lengths, features_of(layer), torch.float32)
    laws.check_alone(layer, xs)
    laws.check_order(layer, xs, [*range(len(xs))][::-1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [[4, 4], [5, 3, 0, 4]], ids=str)
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_derivatives_of_second_order(lengths: list[int], mode: Any, kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(CHANNELS, 2, 2, stride=2, padding=1, padding_mode=mode, dtype=torch.float64)
    features = (CHANNELS, 3)[: len(layer.stride)]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        *xs, weight, bias = tensors
        names = {"weight": weight, "bias": bias}
        kept = torch.func.functional_call(Encoding(layer), {f"layer.{name}": one for name, one in names.items()}, (xs,))
        return tuple(one for one in kept if len(one))

    assert torch.autograd.gradgradcheck(run, [*sequences(lengths, features), *layer.parameters()])


class Encoding(nn.Module):
    """A layer that encodes by another, so that its weights can be given from outside."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return encode(self.layer, xs)


@pytest.mark.parametrize(
    ("layer", "times"),
    [
        (nn.Conv1d(8, 8, 3, padding=1), 14),
        (nn.Conv1d(8, 8, 3, 2, padding=1, padding_mode="replicate"), 16),
        (nn.Sequential(nn.Linear(8, 8), nn.MaxPool1d(3, 2, 1)), 20),
        (nn.Sequential(nn.Linear(8, 8), nn.AvgPool1d(3, 1, 1, count_include_pad=False)), 12),
        (nn.Sequential(nn.Linear(8, 8), nn.LPPool1d(2.0, 1)), 14),
        (nn.Sequential(nn.Linear(8, 8), nn.ConstantPad1d(1, 0.0)), 10),
        # PyTorch's kernels copy a single channel to a block of several, and so for one long sequence too.
        (nn.Conv2d(1, 1, 3, padding=1), 26),
        (nn.Conv2d(1, 1, 3, (2, 1), padding=1, padding_mode="replicate"), 32),
        (nn.Sequential(nn.Linear(8, 8), nn.MaxPool2d(3, (2, 1), 1)), 12),
        (nn.Sequential(nn.Linear(8, 8), nn.AvgPool2d(3, 1, 1, count_include_pad=False)), 10),
        (nn.Sequential(nn.Linear(8, 8), nn.ZeroPad2d((0, 0, 1, 1))), 8),
    ],
    ids=str,
)
def test_memory(layer: nn.Module, times: float) -> None:
    laws.check_memory(layer, 8, times)
    laws.check_memory(layer, 8, times, ones=4095, longest=16384)
