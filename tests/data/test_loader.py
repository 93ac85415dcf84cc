"""Collation in a DataLoader: in its process and in others, into pinned memory, and where something goes wrong there."""

import functools
from typing import Any
from unittest.mock import patch

import attrs
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory
from utterances import Text, Utterance, Utterances

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch
from seqbatch.data import collate_sequences

collate = functools.partial(collate_sequences, sequences=["signal", "text.tags", "pitch.f0"])


def check(batches: list[Any]) -> None:
    """Compare the batches of a loader with the data set."""
    assert [type(batch) for batch in batches] == [Utterance] * 3
    data = [Utterances()[i] for i in range(10)]
    for batch, samples in zip(batches, (data[:4], data[4:8], data[8:]), strict=True):
        assert_close(batch.signal.to_sequences(), [one.signal for one in samples], rtol=0, atol=0)
        assert batch.label.tolist() == [one.label for one in samples]
        assert type(batch.text) is Text
        assert_close(batch.text.tags.to_sequences(), [one.text.tags for one in samples])
        assert batch.text.words == [one.text.words for one in samples]
        assert_close(batch.image, torch.stack([one.image for one in samples]))
        assert_close(batch.pitch["f0"].to_sequences(), [torch.from_numpy(one.pitch["f0"]) for one in samples])


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_every_process_gives_the_same(workers: int, context: Any) -> None:
    loader = DataLoader(
        Utterances(), batch_size=4, collate_fn=collate, num_workers=workers, multiprocessing_context=context
    )
    check(list(loader))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
def test_pinned_memory_of_workers() -> None:
    loader = DataLoader(
        Utterances(),
        batch_size=4,
        collate_fn=collate,
        num_workers=2,
        multiprocessing_context="fork",
        pin_memory=True,
    )
    batches: Any = list(loader)
    check(batches)
    assert {batch.signal.values.is_pinned() for batch in batches} == {torch.accelerator.is_available()}


def test_what_is_pinned() -> None:
    @attrs.define
    class Silent:
        signal: Any

    signal = torch.zeros(3)
    samples = [{"x": signal, "text": Text(signal, "a"), "tuple": ((signal,),), "class": Silent(signal), "label": 1}] * 2
    told = [Utterances()[0]] * 2
    with patch.object(Tensor, "pin_memory", lambda tensor, *device: tensor + 7):
        pinned: Any = pin_memory(collate_sequences(samples))
        utterance: Any = pin_memory(collate(told))
    found = [pinned["x"], pinned["text"].tags, pinned["tuple"][0][0]]
    assert all(isinstance(one, SequenceBatch) for one in found)
    assert [one.values.tolist() for one in found] == [[7.0] * 6] * 3
    assert pinned["label"].tolist() == [8, 8]
    assert pinned["text"].words == ["a", "a"]
    assert pinned["class"].signal.values.tolist() == [0.0] * 6  # which torch does not look into
    assert utterance.label.tolist() == [7.0, 7.0]


def test_transfer_without_waiting() -> None:
    batch: Any = collate_sequences([(torch.zeros(3, 2), 1), (torch.zeros(1, 2), 0)])
    asked: list[tuple[Any, ...]] = []

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        asked.append((args, kwargs))
        return tensor

    with patch.object(Tensor, "to", to):
        moved = [one.to("cuda", non_blocking=True) for one in batch]
    assert asked == [(("cuda",), {"non_blocking": True})] * 2
    assert moved[0].lengths == (3, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_wrong_sample_is_named(workers: int) -> None:
    loader = DataLoader(
        Utterances(wrong=6),
        batch_size=4,
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    batches = iter(loader)
    next(batches)
    message = r"`samples\[2\]\.signal` must have features \(2,\), as samples\[0\]; got \(3,\)\."
    with pytest.raises(SeqbatchValueError, match=message):
        next(batches)


def test_a_wrong_sample_has_its_index_of_the_data_set_where_all_of_it_is_collated() -> None:
    data = Utterances(wrong=6)
    message = r"`samples\[6\]\.signal` must have features \(2,\), as samples\[0\]; got \(3,\)\."
    with pytest.raises(SeqbatchValueError, match=message):
        collate_sequences([data[i] for i in range(len(data))])


def test_what_a_class_says_in_a_worker_arrives_with_the_class() -> None:
    @attrs.frozen
    class Checked:
        signal: Any = attrs.field(validator=attrs.validators.instance_of(Tensor))

    data: Any = [Checked(torch.zeros(2))] * 8
    loader = DataLoader(data, batch_size=4, collate_fn=collate_sequences, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(TypeError, match=r"(?s)must be <class 'torch\.Tensor'>.*must be of a class that takes batches"):
        list(loader)


# PyTorch may only notice while it takes the loader down, and then says so twice.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_dies_is_an_error() -> None:
    loader = DataLoader(
        Utterances(last=5),
        batch_size=4,
        collate_fn=collate,
        num_workers=2,
        multiprocessing_context="fork",
        timeout=60,
    )
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid\(?s?\)? .*\) exited unexpectedly"):
        list(loader)


def test_a_data_set_of_nothing() -> None:
    nothing: Any = []
    assert list(DataLoader(nothing, batch_size=4, collate_fn=collate_sequences)) == []
    with pytest.raises(ValueError, match=r"num_samples should be a positive integer value, but got num_samples=0"):
        DataLoader(nothing, batch_size=4, collate_fn=collate_sequences, shuffle=True)
    with pytest.raises(SeqbatchValueError, match=r"^`samples` must hold at least one sample; got none\.$"):
        list(DataLoader(Utterances(), batch_sampler=[[]], collate_fn=collate_sequences))


def test_a_loader_without_batches_gives_single_samples() -> None:
    data: Any = [torch.zeros(3, 2)]
    message = (
        r"^`samples` must be a list of samples; got a torch\.Tensor\. A DataLoader with batch_size=None passes one "
    )
    with pytest.raises(SeqbatchTypeError, match=message):
        list(DataLoader(data, batch_size=None, collate_fn=collate_sequences))
