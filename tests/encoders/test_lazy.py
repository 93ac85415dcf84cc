"""Lazy layers, which take their sizes from the first batch: they become what PyTorch makes of them, or stay lazy."""

import copy
from collections.abc import Callable
from typing import Any

import laws
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.testing import assert_close

from seqbatch import SeqbatchValueError, UnsupportedLayerError, encode
from seqbatch.layers import TwoWay

MAKERS: list[Callable[[], Any]] = [
    lambda: nn.LazyLinear(3),
    lambda: nn.LazyConv1d(3, 2, padding=1),
    lambda: nn.LazyBatchNorm1d(),
    lambda: nn.LazyBatchNorm1d(affine=False, track_running_stats=False),
]
every_maker = pytest.mark.parametrize("make", MAKERS, ids=lambda make: repr(make()))


def sequences(*lengths: int) -> list[Tensor]:
    return [torch.randn(length, 4) for length in lengths]


@every_maker
@pytest.mark.parametrize("lengths", [[3, 3], [5, 0, 3], [0, 0]])
def test_it_becomes_what_it_stands_for(make: Callable[[], Any], lengths: list[int]) -> None:
    layer = make()
    outputs = encode(layer, sequences(*lengths))
    assert not isinstance(layer, LazyModuleMixin)
    size = 4 if isinstance(layer, nn.BatchNorm1d) else 3
    assert [output.shape[1] for output in outputs] == [size] * len(lengths)
    assert all(parameter.shape for parameter in layer.parameters())
    if layer.state_dict():  # else it is a norm whose statistics are always those of the batch
        laws.check_alone(layer.eval(), sequences(4, 0, 2))


@every_maker
def test_it_does_in_its_first_call_what_it_does_later(make: Callable[[], Any]) -> None:
    layer, xs = make(), sequences(5, 0, 3)
    first = encode(layer, xs)
    later = copy.deepcopy(layer)
    assert_close(first, encode(later, xs))
    if isinstance(layer, nn.BatchNorm1d):
        assert_close(torch.cat(first), layer(torch.cat(xs)))
    elif isinstance(layer, nn.Conv1d):
        assert_close(first[0], layer(xs[0].T).T)
    else:
        assert_close(first[0], layer(xs[0]))


@pytest.mark.parametrize("make", MAKERS[:3], ids=lambda make: repr(make()))
@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ((), {}, r"`sequences` must have features .*any.*, for Lazy\w+\(.*\); got \(\)\."),
        ((4,), {"device": "meta"}, r"`sequences` must be on cpu, as the weights of Lazy\w+\(.*\); got meta\."),
        ((4,), {"dtype": torch.float64}, r"`sequences` must have dtype torch\.float32, as the .* of Lazy\w+\(.*\); g"),
    ],
)
def test_it_stays_lazy_where_it_is_given_what_it_cannot_take(
    make: Callable[[], Any], features: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    layer = make()
    with pytest.raises(SeqbatchValueError, match=message):
        encode(layer, [torch.zeros(3, *features, **options)])
    assert isinstance(layer, LazyModuleMixin)


def test_more_dimensions_than_a_layer_takes() -> None:
    message = r"`sequences` must have features \(any,\), for LazyConv1d\(.*\); got \(2, 4\)\. For a padded Tensor call"
    with pytest.raises(SeqbatchValueError, match=message):
        encode(nn.LazyConv1d(3, 2), [torch.zeros(3, 2, 4)])
    assert encode(nn.LazyLinear(3), [torch.zeros(3, 2, 4)])[0].shape == (3, 2, 3)
    assert encode(nn.LazyBatchNorm1d(), [torch.zeros(3, 2, 4)])[0].shape == (3, 2, 4)


@pytest.mark.parametrize("features", [(4,), (2, 4)])
def test_layers_of_two_dimensions(features: tuple[int, ...]) -> None:
    layer = nn.Sequential(nn.LazyConv2d(3, (2, 3), padding=1), nn.LazyBatchNorm2d())
    xs = [torch.randn(length, *features) for length in (5, 0, 3)]
    first = encode(layer, xs)
    assert (type(layer[0]), type(layer[1])) == (nn.Conv2d, nn.BatchNorm2d)
    assert_close(first, encode(layer, xs))
    assert [output.shape for output in first] == [(6, 3, 4), (0, 3, 4), (4, 3, 4)]
    laws.check_alone(layer.eval(), xs)
    message = r"`sequences` must have features \(channels, features\) or \(features,\), for LazyConv2d.*; got \(\)\."
    with pytest.raises(SeqbatchValueError, match=message):
        encode(nn.LazyConv2d(4, 2), [torch.zeros(3)])


def test_no_sequences_tell_no_size() -> None:
    layer = nn.LazyLinear(3)
    assert encode(layer, []) == []
    assert isinstance(layer, LazyModuleMixin)


def test_weights_that_were_loaded() -> None:
    made = nn.Linear(4, 3)
    layer = nn.LazyLinear(3)
    layer.load_state_dict(made.state_dict())
    xs = sequences(3, 1)
    assert_close(encode(layer, xs), encode(made, xs))


def test_hooks_run_too() -> None:
    seen: list[torch.Size] = []
    layer = nn.LazyConv1d(3, 2)
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    encode(layer, sequences(3, 2))
    assert seen == [(1, 4, 5)]
    assert isinstance(layer, nn.Conv1d)
    assert not isinstance(layer, LazyModuleMixin)


def test_in_other_layers() -> None:
    layer = nn.Sequential(TwoWay(nn.LazyLinear(3), nn.GRU(4, 2)), nn.LazyBatchNorm1d())
    encode(layer, sequences(3, 0, 2))
    laws.check_alone(layer.eval(), sequences(3, 0, 2))


def test_a_lazy_norm_of_one_step() -> None:
    message = r"`sequences` must have 2 steps or more together, because LazyBatchNorm1d\(.*\) computes statistics over "
    with pytest.raises(SeqbatchValueError, match=message):
        encode(nn.LazyBatchNorm1d(), sequences(1, 0))


def test_a_lazy_layer_that_is_not_handled() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"`layer` must have an encoder; got a .*LazyInstanceNorm1d: none"):
        encode(nn.LazyInstanceNorm1d(), sequences(3))
