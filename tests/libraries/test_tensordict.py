"""TensorDict: a batch is kept as it is, as data that is not a Tensor, and never stacked to one."""

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from seqbatch import SequenceBatch

# What tensordict and PyTorch warn of by themselves.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.mark.parametrize("lengths", [[2, 2], [3, 1], [1, 1]])
@pytest.mark.parametrize("batch_size", [[], [2]])
def test_a_batch_is_kept(lengths: list[int], batch_size: list[int]) -> None:
    batch = SequenceBatch(torch.randn(sum(lengths), 3), lengths)
    made: Any = TensorDict({"x": batch, "y": torch.zeros(2)}, batch_size=batch_size)
    later: Any = TensorDict({"y": torch.zeros(2)}, batch_size=batch_size)
    later.set("x", batch)
    for held in (made, later, made.clone(), made.to(torch.float64)):
        kept = held["x"]
        assert isinstance(kept, SequenceBatch)
        assert kept.lengths == batch.lengths
        assert_close(kept.values, batch.values)


def test_the_tensors_of_a_batch_are_converted_with_the_others() -> None:
    batch = SequenceBatch(torch.randn(4, 3), [3, 1])
    held: Any = TensorDict({"values": batch.values, "lengths": torch.tensor(batch.lengths)})
    back = SequenceBatch(held.to("meta")["values"], batch.lengths)
    assert back.device.type == "meta"
