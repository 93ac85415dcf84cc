"""Every law for nn.Flatten and nn.Unflatten, and what they and nn.EmbeddingBag refuse."""

from typing import Any

import laws
import pytest
import torch
from hypothesis import strategies as st
from parametrize import for_each_kind
from strategies import sequences
from torch import nn

from seqbatch import SeqbatchValueError, UnsupportedLayerError, encode

FEATURES = (2, 3, 4)
LAYERS = [
    nn.Flatten(),
    nn.Flatten(2),
    nn.Flatten(1, 2),
    nn.Flatten(-2),
    nn.Flatten(-3, -2),
    nn.Flatten(3, 3),
    nn.Unflatten(1, (2, 1)),
    nn.Unflatten(-1, (-1, 2)),
    nn.Unflatten(3, torch.Size([2, 2, 1])),
]
layers = {str(layer): st.just(layer) for layer in LAYERS}


@for_each_kind("layer", layers, fewer=2, random=st.randoms(use_true_random=False))
def test_alone_and_order(lengths: list[int], layer: nn.Module, random: Any) -> None:
    xs = sequences(lengths, FEATURES)
    laws.check_alone(layer, xs)
    laws.check_stepwise(layer, xs)
    laws.check_order(layer, xs, random.sample(range(len(lengths)), len(lengths)))


@for_each_kind("layer", layers, fewer=2, side=st.sampled_from(["left", "right"]), batch_first=st.booleans())
def test_padding(lengths: list[int], layer: nn.Module, side: Any, batch_first: bool) -> None:
    laws.check_padding(layer, sequences(lengths or [0], FEATURES), float("nan"), side, batch_first)


@for_each_kind("layer", layers, fewer=2)
def test_other_laws(lengths: list[int], layer: nn.Module) -> None:
    xs = sequences(lengths, FEATURES)
    laws.check_lengths(layer, xs)
    laws.check_empty(layer, xs or sequences([0], FEATURES))
    laws.check_called_as_itself(layer, xs)
    laws.check_unmodified(layer, xs)


def test_they_keep_any_dtype() -> None:
    x = torch.arange(12).view(2, 2, 3)
    assert encode(nn.Flatten(), x).equal(x.view(2, 6))
    assert encode(nn.Unflatten(2, (3, 1)), x).equal(x[..., None])
    assert encode(nn.Flatten(), [x[:0], x[:1]])[0].shape == (0, 6)


@pytest.mark.parametrize("layer", [nn.Flatten(0), nn.Flatten(0, 0), nn.Flatten(-3)], ids=str)
def test_steps_are_not_flattened(layer: nn.Module) -> None:
    message = (
        r"`layer` must change features, and not the steps of a sequence of 3 dimensions; got Flatten\(start_dim=.*, "
        r"end_dim=.*\)\. Pass start_dim=1 for the first feature\."
    )
    laws.check_refused(layer, [torch.zeros(4, 2, 3), torch.zeros(2, 2, 3)], SeqbatchValueError, message)


@pytest.mark.parametrize("layer", [nn.Unflatten(0, (2, 2)), nn.Unflatten(-1, (4,))], ids=str)
def test_steps_are_not_unflattened(layer: nn.Module) -> None:
    message = (
        r"`layer` must change features, and not the steps of a sequence of 1 dimension; got Unflatten\(dim=(0|-1), "
        r"unflattened_size=.*\)\. Pass dim=1 for the first feature\."
    )
    laws.check_refused(layer, [torch.zeros(4)], SeqbatchValueError, message)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Flatten(2), r"Dimension out of range"),
        (nn.Flatten(1, 3), r"Dimension out of range"),
        (nn.Unflatten(1, (2, 2)), r"unflatten: Provided sizes \[2, 2\] don't multiply up"),
        (nn.Unflatten(2, (1, 1)), r"Dimension out of range"),
    ],
    ids=str,
)
def test_what_pytorch_refuses(layer: nn.Module, words: str) -> None:
    message = rf"`layer` must take features \(6,\) and .*; got {type(layer).__name__}\(.*\)\. PyTorch says: {words}"
    with pytest.raises(SeqbatchValueError, match=message):
        encode(layer, [torch.zeros(3, 6)])


@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
def test_embedding_bag_has_no_encoder(mode: str) -> None:
    message = (
        rf"`layer` must return one step for each step of a sequence; got EmbeddingBag\(9, 4, mode='{mode}'\), which "
        rf"returns one vector for all\. Encode by nn.Embedding, and call {mode}\(\) on the SequenceBatch\."
    )
    laws.check_refused(nn.EmbeddingBag(9, 4, mode=mode), [torch.tensor([1, 2])], UnsupportedLayerError, message)
