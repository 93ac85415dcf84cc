"""What collation makes of samples of every kind, and that the samples can be read out of it again, bit by bit."""

import dataclasses
import enum
import functools
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import assert_same_bits
from samples import Form, Frozen, assert_same, forms
from strategies import DTYPES, for_all_lengths, make
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import default_collate

from seqbatch import SequenceBatch
from seqbatch.data import collate_sequences


@dataclasses.dataclass
class Scaled:
    signal: Any
    scale: dataclasses.InitVar[int] = 7

    def __post_init__(self, scale: int) -> None:
        self.scaled = scale


@for_all_lengths(form=forms)
def test_samples_can_be_read_out_again(lengths: list[int], form: Form) -> None:
    lengths = lengths or [3]
    samples, copies = ([form.build(i, steps) for i, steps in enumerate(lengths)] for _ in range(2))
    batch = collate_sequences(samples)
    for i, sample in enumerate(copies):
        assert_same(form.read(batch, i), sample)
        assert_same(samples[i], sample)  # which was not modified


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), dtype=st.sampled_from(DTYPES))
def test_sequences_alone(lengths: list[int], dtype: torch.dtype) -> None:
    samples = [make((steps, 3), dtype, seed=i) for i, steps in enumerate(lengths)]
    batch = collate_sequences(samples)
    assert batch.lengths == tuple(lengths)
    for found, wanted in zip(batch.to_sequences(), samples, strict=True):
        assert_same_bits(found, wanted)


@pytest.mark.parametrize(
    "values", [[True, False], [3, -1], [0.1, 2.0], [torch.tensor(3), torch.tensor(4)], [np.float32(1), np.float32(2)]]
)
def test_plain_values_are_stacked_as_torch_does(values: list[Any]) -> None:
    found = collate_sequences([{"label": value} for value in values])["label"]
    assert_same_bits(found, default_collate(values))


def test_numbers_do_not_follow_the_default_dtype() -> None:
    assert torch.get_default_dtype() is torch.float32
    batch = collate_sequences([(0.1, 1j), (1 / 3, 2j)])
    assert batch[0].tolist() == [0.1, 1 / 3]
    assert batch[1].tolist() == [1j, 2j]


def test_integers_of_an_enumeration() -> None:
    class Tag(enum.IntEnum):
        NOUN = 3

    assert collate_sequences([(Tag.NOUN,), (Tag.NOUN,)])[0].tolist() == [3, 3]


def test_what_is_not_a_container_of_fields_stays_as_it_is() -> None:
    packed = pack_sequence([torch.zeros(2, 3)])
    values: list[Any] = [Path("a"), {1, 2}, b"c", "d", SequenceBatch(torch.zeros(3), [2, 1]), packed, Tensor, range(3)]
    assert isinstance(packed, PackedSequence)
    for value in values:
        batch = collate_sequences([(value, 1), (value, 2)])
        assert [one is value for one in batch[0]] == [True, True]


def test_every_mapping_becomes_a_dict_with_the_keys_in_order() -> None:
    samples = [OrderedDict(b=torch.zeros(2), a="x"), {"a": "y", "b": torch.zeros(3)}]
    batch = collate_sequences(samples)
    assert type(batch) is dict
    assert [*batch] == ["b", "a"]
    assert batch["b"].lengths == (2, 3)
    assert batch["a"] == ["x", "y"]


@pytest.mark.parametrize("sample", [{}, [], ()])
def test_containers_of_nothing(sample: Any) -> None:
    assert collate_sequences([sample, sample]) == sample


def test_batches_share_no_memory_with_samples() -> None:
    for source in (torch.zeros(2, 3), np.zeros((2, 3), np.float32)):
        joined, stacked = collate_sequences([(source, source)], sequences=[0])
        joined.values.add_(1)
        stacked.add_(1)
        assert source.sum() == 0


def test_gradients_flow() -> None:
    signals = [torch.randn(steps, 3, requires_grad=True) for steps in (2, 0, 3)]
    targets = [torch.randn(3, requires_grad=True) for _ in signals]
    batch = collate_sequences([*zip(signals, targets, strict=True)], sequences=[0])
    (batch[0].values.sum() + 2 * batch[1].sum()).backward()
    for leaves, slope in ((signals, 1.0), (targets, 2.0)):
        for leaf in leaves:
            assert leaf.grad is not None
            assert_same_bits(leaf.grad, torch.full_like(leaf, slope))


SAMPLES: list[Any] = [
    {
        "signal": torch.ones(steps, 5),
        "image": torch.ones(3, 4),
        "meta": {"pitch": torch.ones(steps), "wide": (torch.ones(2),)},
    }
    for steps in (4, 0, 2)
]


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        (None, (SequenceBatch, SequenceBatch, SequenceBatch, SequenceBatch)),
        (["signal", "meta.pitch"], (SequenceBatch, Tensor, SequenceBatch, Tensor)),
        ({"meta.pitch", "meta.wide.0", "signal"}, (SequenceBatch, Tensor, SequenceBatch, SequenceBatch)),
    ],
)
def test_which_fields_are_sequences_can_be_said(sequences: Any, expected: tuple[type, ...]) -> None:
    batch: Any = collate_sequences(SAMPLES, sequences=sequences)
    found = (batch["signal"], batch["image"], batch["meta"]["pitch"], batch["meta"]["wide"][0])
    assert tuple(map(type, found)) == expected
    assert found[2].lengths == (4, 0, 2)
    if expected[1] is Tensor:
        assert found[1].shape == (3, 3, 4)


def test_fields_of_tuples_and_classes_can_be_said() -> None:
    pair = (torch.ones(2), torch.ones(2))
    assert [*map(type, collate_sequences([pair, pair], sequences=(1,)))] == [Tensor, SequenceBatch]
    sample = Frozen(torch.ones(2), others=pair)
    batch = collate_sequences([sample, sample], sequences=["_one", "other.1"])
    assert [type(batch._one), *map(type, batch.other)] == [SequenceBatch, Tensor, SequenceBatch]


def test_what_a_field_becomes_does_not_depend_on_the_other_samples() -> None:
    # They have one shape, so `torch.utils.data.default_collate` would stack them; the next batch may differ.
    same = [torch.ones(4, 2), torch.ones(4, 2)]
    assert isinstance(collate_sequences(same), SequenceBatch)
    assert isinstance(collate_sequences([torch.ones(4, 2)]), SequenceBatch)
    assert isinstance(collate_sequences(same, sequences=[]), Tensor)


def test_a_class_is_made_by_its_constructor() -> None:
    @attrs.frozen
    class Doubled:
        signal: Any
        total: Any = attrs.field(init=False)

        def __attrs_post_init__(self) -> None:
            object.__setattr__(self, "total", len(self.signal))

    samples = [Doubled(torch.zeros(3)), Doubled(torch.zeros(2))]
    batch = collate_sequences(samples)
    assert batch.total.tolist() == [3, 2]  # of the samples, and not the 2 that the constructor found


@pytest.mark.parametrize(
    ("converter", "value"),
    [
        (list, (1, "a", torch.tensor(2.0))),
        (tuple, [1, "a", [2.0]]),
        (MappingProxyType, {"a": {"b": torch.ones(2)}, "c": 1}),
        (lambda one: one.to(torch.float64), torch.ones(2)),
        (lambda one: torch.as_tensor(one, dtype=torch.float64), torch.tensor(1)),
    ],
)
def test_a_class_may_convert_what_its_converter_has_converted(converter: Any, value: Any) -> None:
    sample = attrs.make_class("Converting", {"field": attrs.field(converter=converter)})(value)
    found, wanted = (collate_sequences([one, one]) for one in (sample, (sample.field,)))
    assert_same_batch(found.field, wanted[0])


def assert_same_batch(found: Any, wanted: Any) -> None:
    if isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same_batch(one, other)
    elif isinstance(wanted, dict):
        assert_same_batch([*found.items()], [*wanted.items()])
    elif isinstance(wanted, SequenceBatch):
        assert found.lengths == wanted.lengths
        assert_same_bits(found.values, wanted.values)
    elif isinstance(wanted, Tensor):
        assert_same_bits(found, wanted)
    else:
        assert found == wanted


def test_what_a_constructor_takes_besides_the_fields_has_its_default() -> None:
    sample = Scaled(torch.ones(2), 5)
    assert (sample.scaled, collate_sequences([sample]).scaled) == (5, 7)


def test_it_can_be_sent_to_workers() -> None:
    partial = functools.partial(collate_sequences, sequences=["signal", "meta.pitch"])
    sent = pickle.loads(pickle.dumps(partial))
    assert type(sent(SAMPLES)["image"]) is Tensor
    assert pickle.loads(pickle.dumps(collate_sequences)) is collate_sequences


def test_a_batch_as_samples_gives_an_equal_batch() -> None:
    batch = SequenceBatch(torch.arange(5), [2, 0, 3])
    assert isinstance(batch, Sequence)
    assert collate_sequences(batch).lengths == (2, 0, 3)
