"""Under `torch.autocast`, empty sequences and an empty batch have the dtype that other sequences have."""

from typing import Any

import pytest
import torch
from torch import nn

from seqbatch import SequenceBatch, encode, encode_with_state, is_recurrent
from seqbatch.layers import Causal

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
LAYERS: list[tuple[nn.Module, torch.dtype]] = [
    (nn.MultiheadAttention(4, 2), BFLOAT16),
    (Causal(nn.MultiheadAttention(4, 2, add_bias_kv=True)), BFLOAT16),
    (nn.TransformerEncoderLayer(4, 2), FLOAT32),
    (nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2), 2, enable_nested_tensor=False), FLOAT32),
    (nn.Conv1d(4, 3, 2), BFLOAT16),
    (nn.Conv1d(4, 3, 2, padding=1, padding_mode="reflect"), BFLOAT16),
    (nn.Conv2d(1, 3, 2), BFLOAT16),
    (nn.LSTMCell(4, 3), FLOAT32),
    (nn.GRUCell(4, 3), FLOAT32),
    (nn.RNNCell(4, 3), BFLOAT16),
    (nn.LSTM(4, 3, num_layers=2), BFLOAT16),
    (nn.LSTM(4, 3, proj_size=2), BFLOAT16),
    (nn.GRU(4, 3, bidirectional=True), FLOAT32),
    (nn.RNN(4, 3), BFLOAT16),
]
EMPTY: list[Any] = [[torch.zeros(0, 4)] * 2, SequenceBatch(torch.zeros(0, 4), []), [torch.zeros(0, 4)]]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("layer", "dtype"), LAYERS, ids=lambda one: str(one).split("(", 1)[0])
def test_the_dtype(layer: nn.Module, dtype: torch.dtype, training: bool) -> None:
    layer.train(training)
    with torch.autocast("cpu", dtype=BFLOAT16):
        for given in ([torch.zeros(3, 4), torch.zeros(2, 4)], *EMPTY):
            outputs = encode(layer, given)
            assert (outputs[0] if isinstance(outputs, list) else outputs).dtype is dtype
            if is_recurrent(layer):
                assert encode_with_state(layer, given)[1].hidden.dtype is dtype


@pytest.mark.parametrize("layer", [layer for layer, _ in LAYERS], ids=lambda one: type(one).__name__)
def test_gradients_are_zeros_and_not_missing(layer: nn.Module) -> None:
    layer.train().zero_grad()
    with torch.autocast("cpu", dtype=BFLOAT16):
        encode(layer, EMPTY[0])[0].sum().backward()
    for name, weight in layer.named_parameters():
        assert weight.grad is not None, name
        assert not weight.grad.any(), name
