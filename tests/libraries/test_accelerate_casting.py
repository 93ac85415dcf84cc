"""accelerate's mixed precision, which calls `float` on what has a dtype."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32, convert_to_fp32
from torch import nn
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode

# What accelerate and PyTorch warn of by themselves.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outputs_become_float32(dtype: torch.dtype) -> None:
    batch = SequenceBatch(torch.randn(3, 2).to(dtype), [2, 1])
    for found in (
        convert_to_fp32(batch),
        convert_to_fp32({"x": [batch]})["x"][0],
        convert_outputs_to_fp32(lambda: (batch, 1))()[0],
    ):
        assert isinstance(found, SequenceBatch)
        assert found.lengths == (2, 1)
        assert_close(found.values, batch.values.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_other_dtypes_are_kept(dtype: torch.dtype) -> None:
    batch = SequenceBatch(torch.ones(3).to(dtype), [2, 1])
    assert convert_to_fp32(batch) is batch


class Model(nn.Module):
    """An LSTM and a linear layer, from a batch to a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(3, 4), nn.Linear(4, 2)

    def forward(self, batch: SequenceBatch) -> SequenceBatch:
        return encode(self.linear, encode(self.lstm, batch))


def test_a_prepared_model() -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = Model()
    batch = SequenceBatch(torch.randn(5, 3), [2, 3])
    wanted = model(batch)
    outputs = accelerator.prepare(model)(batch)
    assert isinstance(outputs, SequenceBatch)
    assert (outputs.dtype, outputs.lengths) == (torch.float32, (2, 3))
    assert_close(outputs.values, wanted.values, rtol=0.1, atol=0.05)  # computed in bfloat16
