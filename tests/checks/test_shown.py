"""How errors show the values that they found: in one line of limited length, whatever was passed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from seqbatch import SeqbatchError, SequenceBatch
from seqbatch.data import BucketBatchSampler, collate_sequences
from seqbatch.layers import LockedDropout

BATCH = SequenceBatch(torch.zeros(3), [2, 1])
LONG: list[Any] = [[1] * 1000, "ab" * 1000, torch.rand(99, 9), np.ones((99, 9)), {"key": [1] * 1000}]


@pytest.mark.parametrize("value", LONG, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "call",
    [
        lambda value: BATCH.mask(batch_first=value),
        lambda value: BATCH.to_padded(batch_first=True, total_length=value),
        lambda value: BATCH.to_padded(batch_first=True, padding_side=value),
        lambda value: BucketBatchSampler([1, 2], batch_size=value),
        lambda value: LockedDropout(value),
    ],
)
def test_long_values_are_cut(call: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(SeqbatchError, match=r"; got .+\.\.\.\.") as caught:
        call(value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("name", ["ab" * 1000, ("ab", *range(1000))], ids=["text", "tuple"])
def test_long_names_of_fields_are_cut(name: Any) -> None:
    with pytest.raises(SeqbatchError, match=r"; got .+\.\.\.\.") as caught:
        collate_sequences([(torch.zeros(3),)], sequences=[name])
    assert len(str(caught.value)) < 200
