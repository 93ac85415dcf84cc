"""Layers that accelerate has prepared, or hung hooks on: the right numbers, or an error that names what to prepare."""

import re
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing import assert_close

from seqbatch import SequenceBatch, UnsupportedLayerError, encode, encode_with_state
from seqbatch._engines import choose, describe_call, packed
from seqbatch.layers import Residual

XS = [torch.randn(n, 4) for n in (5, 2, 0, 5)]


def prepared(layer: nn.Module) -> Any:
    """Prepare a layer under mixed precision, which puts another `forward` in place of its own."""
    result = Accelerator(mixed_precision="bf16", cpu=True).prepare(layer)
    assert "forward" in vars(result)
    return result


def hooked(layer: nn.Module) -> Any:
    return add_hook_to_module(layer, ModelHook())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("change", [prepared, hooked])
def test_a_recurrent_layer(change: Any, kind: Any) -> None:
    layer, seen = change(kind(4, 3, bidirectional=True)), []
    layer.register_forward_hook(lambda module, given, result: seen.append(given[0]))
    outputs, state = encode_with_state(layer, XS)
    (given,) = seen  # once for all sequences
    assert isinstance(given, PackedSequence)
    for i, x in enumerate(XS):
        if len(x):
            output, end = layer(x)
            close: Any = {"rtol": 2e-2, "atol": 2e-2} if change is prepared else {}  # bfloat16 rounds 8 bits
            assert outputs[i].dtype is output.dtype is torch.float32
            assert_close(outputs[i], output, **close)
            hidden = end[0] if isinstance(end, tuple) else end
            assert_close(state.hidden[0, :, i], hidden, **close)
    assert choose(describe_call(layer, XS[0], rounds_by_range=False)) is packed


@pytest.mark.parametrize("change", [prepared, hooked])
@pytest.mark.parametrize(
    ("layer", "alone"),
    [
        (nn.Linear(4, 3), lambda layer, x: layer(x)),
        (nn.LayerNorm(4), lambda layer, x: layer(x)),
        (nn.Conv1d(4, 3, 3, padding=1), lambda layer, x: layer(x.T[None])[0].T),
        (nn.MultiheadAttention(4, 2), lambda layer, x: layer(x, x, x)[0]),
        (nn.LSTMCell(4, 3), lambda layer, x: layer(x)[0]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_is_called_as_itself(change: Any, layer: nn.Module, alone: Any) -> None:
    changed = change(layer)
    xs = [x[:1] for x in XS] if isinstance(layer, nn.LSTMCell) else XS
    close: Any = {"rtol": 2e-2, "atol": 2e-2} if change is prepared else {}
    for output, x in zip(encode(changed, xs), xs, strict=True):
        if len(x):
            assert_close(output, alone(changed, x), **close)
        assert len(output) == len(x)


class Around(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, batch: SequenceBatch) -> Any:
        return encode(self.layer, batch).values


@pytest.mark.parametrize("change", [prepared, hooked])
@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 3)), lambda: Residual(nn.Tanh())])
def test_the_error_for_a_container_says_what_to_prepare(change: Any, make: Any) -> None:
    layer = make()
    message = (
        r"^`layer` must have the `forward` of its class, and not one of accelerate; got a .*: it has a forward of its "
        r"own\. Prepare a module whose `forward` takes a SequenceBatch and calls encode on the layer, and call what "
    )
    with pytest.raises(UnsupportedLayerError, match=re.compile(message)):
        encode(change(make()), XS)
    batch = SequenceBatch.from_sequences(XS)
    wanted: Tensor = encode(layer, batch).values
    assert_close(change(Around(layer))(batch), wanted, rtol=2e-2, atol=2e-2)
