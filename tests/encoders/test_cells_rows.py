"""One Tensor passed with a cell, which PyTorch reads as a batch of single steps: the error names both meanings."""

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SequenceBatch, encode, encode_with_state
from seqbatch.data import encode_chunks
from seqbatch.layers import LayerNormLSTM, LayerNormLSTMCell, Residual, TwoWay


class SubclassOfACell(nn.LSTMCell):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx)


def quantized(cell: nn.Module) -> nn.Module:
    made: nn.Module = torch.ao.quantization.quantize_dynamic(nn.Sequential(cell), {type(cell)}, torch.qint8)[0]
    return made


OBS = torch.randn(4, 5)
HOLD_CELLS: dict[str, Any] = {
    "LSTMCell": lambda: nn.LSTMCell(5, 5),
    "GRUCell": lambda: nn.GRUCell(5, 5),
    "RNNCell": lambda: nn.RNNCell(5, 5),
    "a subclass": lambda: SubclassOfACell(5, 5),
    "LayerNormLSTMCell": lambda: LayerNormLSTMCell(5, 5),
    "quantized": lambda: quantized(nn.LSTMCell(5, 5)),
    "nn.Sequential": lambda: nn.Sequential(nn.Linear(5, 5), nn.GRUCell(5, 5)),
    "nn.Sequential of one": lambda: nn.Sequential(nn.Tanh(), nn.Sequential(nn.GRUCell(5, 5))),
    "nn.ModuleList": lambda: nn.ModuleList([nn.LSTMCell(5, 5)]),
    "Residual": lambda: Residual(nn.LSTMCell(5, 5)),
    "TwoWay": lambda: TwoWay(nn.Linear(5, 5), nn.LSTMCell(5, 5)),
}


# PyTorch means to drop its quantized layers.
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("what", HOLD_CELLS)
def test_one_tensor_for_a_cell_has_two_meanings_and_is_refused(what: str) -> None:
    layer = HOLD_CELLS[what]().eval()
    message = (
        r"^`sequences` must be a list or a SequenceBatch, for \w+\(.*\); got a torch\.Tensor, which PyTorch's cells "
        r"take for one step of each of many sequences\. Write \[sequences\] for one sequence, or "
        r"SequenceBatch\(sequences, \[1\] \* len\(sequences\)\) for one step of each\.$"
    )
    for call in (encode, encode_with_state):
        with pytest.raises(SeqbatchTypeError, match=re.compile(message, re.DOTALL)) as caught:
            call(layer, OBS)
    advice = re.fullmatch(
        r".*Write (.*) for one sequence, or (.*) for one step of each\.", str(caught.value), re.DOTALL
    )
    assert advice
    one, many = (eval(code, {"sequences": OBS, "SequenceBatch": SequenceBatch}) for code in advice.groups())
    # Without the backward half of TwoWay, which has seen later steps in one sequence.
    assert_close(encode(layer, one)[0][:1, :5], encode(layer, many).values[:1, :5])
    assert encode(layer, many).lengths == (1, 1, 1, 1)
    assert len(encode(layer, one)[0]) == 4


def test_one_step_of_each_equals_pytorch() -> None:
    for cell in (nn.LSTMCell(5, 3), nn.GRUCell(5, 3)):
        outputs, state = encode_with_state(cell, SequenceBatch(OBS, [1] * len(OBS)))
        wanted = cell(OBS)
        assert_close(outputs.values, wanted[0] if isinstance(wanted, tuple) else wanted)
        assert state.batch_size == 4


def test_one_tensor_for_a_custom_layer_that_holds_a_cell_is_one_sequence() -> None:
    layer = LayerNormLSTM(5, 3)
    assert_close(encode(layer, OBS), encode(layer, [OBS])[0])


def test_chunks_of_one_tensor_each_are_refused_for_a_cell_too() -> None:
    cell = nn.GRUCell(5, 3)
    with pytest.raises(SeqbatchTypeError, match=r"^`sequences` must be a list .*PyTorch's cells") as caught:
        next(encode_chunks(cell, [OBS]))
    assert caught.value.__notes__ == ["while chunks[0] was encoded"]
    parts = [outputs for (outputs,), _ in encode_chunks(cell, ([chunk] for chunk in OBS.split(3)))]
    assert_close(torch.cat(parts), encode(cell, [OBS])[0])
