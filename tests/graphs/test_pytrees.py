"""Batches and states as pytrees: what is in them, and that they come back as they were."""

from typing import Any

import pytest
import torch
from graph_models import signals
from torch import nn
from torch.testing import assert_close
from torch.utils import _pytree

from seqbatch import ContainerState, LSTMState, RNNState, SeqbatchValueError, SequenceBatch, encode_with_state


def test_a_batch_is_its_values_and_its_lengths() -> None:
    batch = signals([3, 0, 2])
    leaves, spec = _pytree.tree_flatten(batch)
    assert leaves[0] is batch.values
    assert leaves[1].tolist() == [3, 0, 2]
    again = _pytree.tree_unflatten(leaves, spec)
    assert isinstance(again, SequenceBatch)
    assert again.values is batch.values
    assert again.lengths == batch.lengths
    keys = [str(path[0]) for path, _ in _pytree.tree_flatten_with_path(batch)[0]]
    assert keys == [".values", ".lengths"]
    assert _pytree.treespec_loads(_pytree.treespec_dumps(spec)) == spec


@pytest.mark.parametrize(
    "state",
    [
        RNNState(torch.randn(2, 1, 3, 4)),
        LSTMState(torch.randn(2, 1, 3, 2), torch.randn(2, 1, 3, 4)),
        encode_with_state(nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 3), nn.GRU(3, 2)), signals([3, 2]))[1],
    ],
    ids=lambda state: type(state).__name__,
)
def test_a_state_is_its_tensors(state: Any) -> None:
    leaves, spec = _pytree.tree_flatten(state)
    again = _pytree.tree_unflatten(leaves, spec)
    assert type(again) is type(state)
    assert all(one is other for one, other in zip(leaves, _pytree.tree_leaves(again), strict=True))
    moved: Any = _pytree.tree_map(lambda leaf: None if leaf is None else leaf.double(), state)
    assert type(moved) is type(state)
    named = [str(path[0]) for path, _ in _pytree.tree_flatten_with_path(state)[0]]
    assert set(named) <= {".hidden", ".cell", ".states"}
    if isinstance(moved, ContainerState):
        assert moved.states[0] is None
        moved = moved.states[1]
    assert moved.hidden.dtype is torch.float64


def test_what_is_mapped_is_a_batch_again_and_checked() -> None:
    batch = signals([3, 2])
    twice: Any = _pytree.tree_map(lambda leaf: 2 * leaf if leaf.is_floating_point() else leaf, batch)
    assert_close(twice.values, 2 * batch.values)
    assert twice.lengths == (3, 2)
    with pytest.raises(SeqbatchValueError, match="`lengths` must add up to 5, the steps of `values`; got 10"):
        _pytree.tree_map(lambda leaf: 2 * leaf, batch)


def test_what_stands_for_tensors_may_be_anything() -> None:
    batch = signals([3, 2])
    shapes: Any = _pytree.tree_map(lambda leaf: str(leaf.shape), batch)
    assert shapes.values == "torch.Size([5, 4])"
    names: Any = _pytree.tree_map(lambda leaf: "leaf", encode_with_state(nn.LSTM(4, 3), batch)[1])
    assert (names.hidden, names.cell) == ("leaf", "leaf")
