"""nn.Dropout1d and nn.Dropout2d: one draw for each channel of each sequence."""

from typing import Any

import laws
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import SeqbatchValueError, SequenceBatch, UnsupportedLayerError, encode

CHANNEL_DROPOUTS = [(nn.Dropout1d, (20,)), (nn.Dropout2d, (20, 3))]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("kind", "features"), CHANNEL_DROPOUTS)
def test_a_channel_is_dropped_at_all_steps_of_a_sequence(kind: Any, features: tuple[int, ...], inplace: bool) -> None:
    laws.seed(0)
    batch = SequenceBatch(torch.ones(90, *features), [40, 0, 20, 30])
    outputs = encode(kind(0.3, inplace=inplace), batch)
    assert bool((batch.values == 1).all())
    masks = torch.stack([x.flatten(1)[0] for x in outputs if len(x)]).view(3, 20, -1)
    for x, mask in zip([x for x in outputs if len(x)], masks, strict=True):
        assert_close(x.view(len(x), 20, -1), mask.expand(len(x), *mask.shape))
    assert_close(masks, masks[..., :1].expand_as(masks))
    assert masks.unique().tolist() == [0, pytest.approx(1 / 0.7)]
    assert not torch.equal(masks[0], masks[1])
    assert encode(kind(0.3, inplace=inplace).eval(), batch).values.equal(batch.values)


@pytest.mark.parametrize(("kind", "features"), CHANNEL_DROPOUTS)
def test_dropout_of_channels_has_the_gradient_of_its_mask_and_is_called_as_itself(
    kind: Any, features: tuple[int, ...]
) -> None:
    batch = SequenceBatch(torch.ones(5, *features, requires_grad=True), [3, 0, 2])
    layer, seen = kind(0.5), []
    layer.register_forward_hook(lambda module, args, output: seen.append(module))
    outputs = encode(layer, batch)
    assert seen == [layer]
    (gradient,) = torch.autograd.grad(outputs.values.sum(), batch.values)
    assert_close(gradient, outputs.values.detach())
    assert encode(layer, [batch[1]])[0].shape == (0, *features)
    assert encode(kind(0.5), []) == []


@pytest.mark.parametrize(("kind", "features"), CHANNEL_DROPOUTS)
def test_what_dropout_of_channels_refuses(kind: Any, features: tuple[int, ...]) -> None:
    for wrong in ((), (2, 3, 4), (2, 3)[: 3 - len(features)]):
        message = rf"`sequences` must have features \(channels,( features)?\), for {kind.__name__}\(.*\); got \(.*\)\.$"
        laws.check_refused(kind(0.5), [torch.zeros(2, *wrong)], SeqbatchValueError, message)

    class Own(kind):  # type: ignore[misc]  # because the base is a variable
        def forward(self, input: Tensor) -> Tensor:
            return input

    message = r"`layer` must have an encoder; got a .*Own: it has a forward of its own\."
    laws.check_refused(Own(0.5), [torch.zeros(2, *features)], UnsupportedLayerError, message)
