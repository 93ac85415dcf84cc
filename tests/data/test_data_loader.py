"""Batches in a DataLoader: made in it, pinned by it, sent between processes, and as a data set of their own."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from recordings import Recordings
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader

from seqbatch import SequenceBatch


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_gives_it_back_as_it_was(workers: int, context: str) -> None:
    loader: Any = DataLoader(
        Recordings(),
        batch_size=4,
        collate_fn=SequenceBatch.from_sequences,
        num_workers=workers,
        multiprocessing_context=context if workers else None,
    )
    batches = list(loader)
    assert [batch.lengths for batch in batches] == [(0, 1, 2, 3), (0, 1, 2, 3), (0, 1)]
    assert all(isinstance(batch, SequenceBatch) for batch in batches)
    assert_close(SequenceBatch.concat(batches).values, torch.cat([Recordings()[i] for i in range(10)]))


def test_data_loader_pins_it_as_a_whole() -> None:
    from torch.utils.data._utils.pin_memory import pin_memory

    with patch.object(Tensor, "pin_memory", lambda tensor, *device: tensor + 1):
        pinned: Any = pin_memory({"xs": SequenceBatch(torch.zeros(3), [2, 1])})
    assert isinstance(pinned["xs"], SequenceBatch)
    assert_close(pinned["xs"].values, torch.ones(3))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader_with_pinned_memory(workers: int) -> None:
    loader: Any = DataLoader(
        Recordings(),
        batch_size=4,
        collate_fn=SequenceBatch.from_sequences,
        pin_memory=True,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    batches = list(loader)
    assert [batch.lengths for batch in batches] == [(0, 1, 2, 3), (0, 1, 2, 3), (0, 1)]
    assert_close(SequenceBatch.concat(batches).values, torch.cat([Recordings()[i] for i in range(10)]))
    assert {batch.values.is_pinned() for batch in batches} == {torch.accelerator.is_available()}


def test_a_data_set_of_batches() -> None:
    batches = [SequenceBatch(torch.arange(3.0), [2, 1]), SequenceBatch(torch.zeros(0), [0, 0, 0])]
    loader: Any = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]  # a list is a data set
    assert all(found is given for found, given in zip(loader, batches, strict=True))
    copied: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list is a data set
    assert [batch.lengths for batch in copied] == [(2, 1), (0, 0, 0)]
