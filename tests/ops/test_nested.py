"""Nested tensors: those with holes, spare rows or narrow offsets, and what can be done with those that are given."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from strategies import make
from torch import nn
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode


def test_nested_tensors_with_holes() -> None:
    source = torch.arange(24.0).view(3, 4, 2)
    starts, counts = torch.tensor([0, 1, 0]), torch.tensor([2, 0, 4])
    nested: Any = torch.nested.narrow(source, 1, starts, counts, layout=torch.jagged)
    batch = SequenceBatch.from_nested(nested)
    assert batch.lengths == (2, 0, 4)
    assert_close(batch.to_sequences(), [source[0, :2], source[1, 1:1], source[2, :4]])


def test_nested_tensors_of_one_structure_can_be_added() -> None:
    batch = SequenceBatch(torch.ones(5, 2), [2, 0, 3])
    total = batch.to_nested() + batch.map(torch.neg).to_nested()
    assert_close(SequenceBatch.from_nested(total).values, torch.zeros(5, 2))


SPARE = [[0, 2, 5], [2, 5, 10], [1, 4, 4, 8], [3, 3]]


@pytest.mark.parametrize("offsets", SPARE, ids=str)
def test_rows_before_the_first_sequence_or_behind_the_last_belong_to_none(offsets: list[int]) -> None:
    rows = make((10, 2), torch.float64).requires_grad_()
    nested = torch.nested.nested_tensor_from_jagged(rows, torch.tensor(offsets))
    batch = SequenceBatch.from_nested(nested)
    assert_close(batch.to_sequences(), [rows[i:j] for i, j in pairwise(offsets)])
    weights = make((offsets[-1] - offsets[0], 2), torch.float64, seed=1)
    (gradient,) = torch.autograd.grad(batch.values, rows, weights)
    wanted = torch.zeros_like(rows)
    wanted[offsets[0] : offsets[-1]] = weights
    assert_close(gradient, wanted, rtol=0, atol=0)
    assert_close(SequenceBatch.from_nested(batch.to_nested()).values, batch.values, rtol=0, atol=0)
    assert_close(SequenceBatch.from_nested(encode(nn.Tanh(), nested)).values, batch.values.tanh())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_offsets_of_every_width_are_kept_for_nested_tensors_only(dtype: torch.dtype) -> None:
    nested: Any = torch.nested.nested_tensor_from_jagged(
        make((5, 2), torch.float64), torch.tensor([0, 2, 2, 5], dtype=dtype)
    )
    batch = SequenceBatch.from_nested(nested)
    assert batch.offsets.dtype is torch.int64
    assert batch.offsets.tolist() == [0, 2, 2, 5]
    back: Any = batch.to_nested()
    assert back.offsets().dtype is dtype
    assert_close((back - nested).values(), torch.zeros(5, 2, dtype=torch.float64))  # torch takes them for of one shape
    assert_close((encode(nn.Tanh(), nested) - nested.tanh()).values(), torch.zeros(5, 2, dtype=torch.float64))
    assert_close(batch.sum(), torch.stack([x.sum(0) for x in batch]))
    assert_close(batch.reverse().reverse().values, batch.values)
