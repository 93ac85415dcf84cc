"""What every encoder asks of a layer: features, dtype, device, its name; also where hooks or other weights stand in."""

import re
import sys
from collections.abc import Callable
from typing import Any

import laws
import pytest
import torch
import torch.ao.nn.quantized.dynamic as quantized
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

from seqbatch import SeqbatchError, SeqbatchValueError, SequenceBatch, encode
from seqbatch._encoders._layer_checks import quantized_layers

EQUAL, RAGGED = [2, 2, 2], [1, 3, 2]  # which take other kernels in PyTorch, and not all of them see wrong features
both_lengths = pytest.mark.parametrize("lengths", [EQUAL, RAGGED], ids=["equal", "ragged"])


def zeros(lengths: list[int], *features: int, **options: Any) -> list[Tensor]:
    return [torch.zeros(length, *features, **options) for length in lengths]


def with_hook_before(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, args: None)
    return layer


def with_hook_behind(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, args, output: None)
    return layer


def pruned(layer: nn.Module) -> nn.Module:
    """Prune a weight, which puts a hook before the layer."""
    pruned: nn.Module = prune.l1_unstructured(layer, weight_of(layer), 0.5)
    return pruned


def parametrized(layer: nn.Module) -> nn.Module:
    parametrizations.weight_norm(layer, weight_of(layer))
    return layer


def weight_of(layer: nn.Module) -> str:
    return "weight_hh_l0" if isinstance(layer, nn.RNNBase) else "weight"


WAYS: list[Callable[[nn.Module], nn.Module]] = [with_hook_before, with_hook_behind, pruned, parametrized]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


@both_lengths
@every_way
@pytest.mark.parametrize(
    ("make_layer", "wrong", "must"),
    [
        (lambda: nn.LSTM(3, 2), (4,), r"\(3,\), for "),
        (lambda: nn.LSTM(3, 2), (1,), r"\(3,\), for "),
        (lambda: nn.GRU(3, 2, bidirectional=True), (2, 3), r"\(3,\), for "),
        (lambda: nn.LayerNorm([2, 3]), (3,), r"that end with \(2, 3\), for "),
        (lambda: nn.LayerNorm([2, 3]), (1, 3), r"that end with \(2, 3\), for "),
        (lambda: nn.Linear(3, 2), (2,), r"that end with \(3,\), for "),
        (lambda: nn.RMSNorm(3), (), r"that end with \(3,\), for "),
    ],
)
def test_features_are_checked_whatever_stands_before_the_layer(
    make_layer: Callable[[], nn.Module], wrong: tuple[int, ...], must: str, way: Any, lengths: list[int]
) -> None:
    layer = way(make_layer())
    message = rf"`sequences` must have features {must}.*; got {re.escape(str(wrong))}"
    laws.check_refused(layer, zeros(lengths, *wrong), SeqbatchValueError, message)


@both_lengths
@every_way
@pytest.mark.parametrize("make_layer", [lambda: nn.LSTM(3, 2), lambda: nn.LayerNorm(3), lambda: nn.Linear(3, 2)])
def test_right_features_pass(make_layer: Callable[[], nn.Module], way: Any, lengths: list[int]) -> None:
    torch.manual_seed(0)
    laws.check_alone(way(make_layer()), [torch.randn(length, 3, requires_grad=True) for length in lengths])


def test_a_hook_before_the_layer_may_change_dtype_and_device() -> None:
    layer = nn.Linear(3, 2)
    layer.register_forward_pre_hook(lambda module, args: (torch.ones_like(args[0], dtype=torch.float32, device="cpu"),))
    for given in (zeros(RAGGED, 3, dtype=torch.float64), zeros(RAGGED, 3, device="meta")):
        assert_close(encode(layer, given), [layer(x) for x in given])


class ToDouble(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.double()


def test_a_parametrization_may_make_weights_of_another_dtype() -> None:
    linear, gru = nn.Linear(3, 2, bias=False), nn.GRU(3, 2, bias=False)
    for layer in (linear, gru):
        for name, _ in [*layer.named_parameters()]:
            parametrize.register_parametrization(layer, name, ToDouble(), unsafe=True)
    xs = [torch.randn(length, 3, dtype=torch.float64) for length in RAGGED]
    assert_close(encode(linear, xs), [linear(x) for x in xs])
    assert_close(encode(gru, xs), [gru(x)[0] for x in xs])


def test_wrong_dtype_behind_a_hook_or_a_parametrization_is_left_to_pytorch() -> None:
    xs = zeros(RAGGED, 3, dtype=torch.float64)
    message = r"`layer` must take .*; got ParametrizedLinear\(.*\)\. PyTorch says: .* must have the same dtype"
    with pytest.raises(SeqbatchValueError, match=message):
        encode(parametrized(nn.Linear(3, 2)), xs)
    for layer in (with_hook_before(nn.Linear(3, 2)), pruned(nn.GRU(3, 2))):
        with pytest.raises((RuntimeError, ValueError), match=r"dtype|must have the type") as caught:
            encode(layer, xs)
        assert not isinstance(caught.value, SeqbatchError)


@both_lengths
def test_a_hook_behind_the_layer_changes_nothing_of_what_it_takes(lengths: list[int]) -> None:
    message = r"`sequences` must have dtype torch\.float32, as the weights of .*; got torch\.float64\."
    for layer in (with_hook_behind(nn.LSTM(3, 2)), with_hook_behind(nn.Linear(3, 2))):
        laws.check_refused(layer, zeros(lengths, 3, dtype=torch.float64), SeqbatchValueError, message)


class WritingLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.add_(1))


class WritingGRU(nn.GRU):
    def forward(self, input: Any, hx: Any = None) -> Any:
        input.data.add_(1)
        return super().forward(input, hx)


def writing_instance() -> nn.Module:
    layer = nn.Tanh()
    setattr(layer, "forward", torch.tanh_)  # noqa: B010  # to a type checker it is a method, which it stands before
    return layer


@pytest.mark.parametrize("lengths", [[3], EQUAL, RAGGED, [2, 0]], ids=str)
@pytest.mark.parametrize("make_layer", [lambda: WritingLinear(3, 2), lambda: WritingGRU(3, 2), writing_instance])
def test_a_layer_whose_own_forward_writes_to_its_input_leaves_that_of_the_caller(
    make_layer: Callable[[], nn.Module], lengths: list[int]
) -> None:
    layer = make_layer()
    given = [torch.randn(length, 3) for length in lengths]
    wanted = encode(layer, [x.clone() for x in given])
    laws.check_unmodified(layer, given)
    assert_close(encode(layer, SequenceBatch.from_sequences(given)).to_sequences(), wanted)


class Mute(nn.Linear):
    def extra_repr(self) -> str:
        raise RuntimeError("no words")


def test_a_layer_that_cannot_tell_its_sizes_does_not_hide_the_error() -> None:
    message = r"`sequences` must have features that end with \(2,\), for Mute\(\.\.\.\); got \(5,\)\."
    with pytest.raises(SeqbatchValueError, match=message) as caught:
        encode(Mute(2, 3), [torch.zeros(4, 5)])
    note = "while Mute(...) ran on SequenceBatch(1 sequence of 4 steps, features (5,), torch.float32, cpu)"
    assert caught.value.__notes__ == [note]


def test_quantized_layers_are_those_that_pytorch_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantized_layers("LSTM", "GRU") == [quantized.LSTM, quantized.GRU]
    monkeypatch.setitem(sys.modules, "torch.ao.nn.quantized.dynamic", None)  # which makes its import fail
    assert quantized_layers("LSTM", "GRU") == []
