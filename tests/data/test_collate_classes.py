"""Classes of samples that refuse batches, or make something else of them: always an error, and never in silence."""

import dataclasses
import re
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from seqbatch import SeqbatchTypeError, SequenceBatch
from seqbatch.data import collate_sequences


@attrs.frozen
class Checked:
    signal: Any = attrs.field(validator=attrs.validators.instance_of(Tensor))


@dataclasses.dataclass
class CheckedAfter:
    signal: Any

    def __post_init__(self) -> None:
        if not isinstance(self.signal, Tensor):
            raise ValueError("no Tensor")


@dataclasses.dataclass
class Seeded:
    signal: Any
    seed: dataclasses.InitVar[int]


@attrs.frozen
class Numbered:
    signal: Any
    number: int = attrs.field(converter=int)


BATCHES_TOO = r"Its converters, validators and __post_init__ meet batches too; a dict has none\."


def kind(value: object) -> str:
    return rf"a {re.escape(type(value).__module__)}\.{re.escape(type(value).__qualname__)}"


@pytest.mark.parametrize(
    ("sample", "cause"),
    [
        (Checked(torch.ones(3, 5)), TypeError),
        (CheckedAfter(torch.ones(3, 5)), ValueError),
        (Seeded(torch.ones(3, 5), 3), (TypeError, ValueError)),
        (Numbered(torch.ones(3, 5), 3), (TypeError, ValueError, RuntimeError)),
    ],
)
def test_a_class_that_refuses_batches(sample: Any, cause: Any) -> None:
    with pytest.raises(SeqbatchTypeError) as caught:
        collate_sequences([{"x": sample}, {"x": sample}])
    assert isinstance(caught.value.__cause__, cause)
    found = f"{kind(sample)}, which raised {type(caught.value.__cause__).__name__}"
    message = rf"^`samples\[0\]\[\"x\"\]` must be of a class that takes batches; got {found}\. {BATCHES_TOO}$"
    assert re.search(message, str(caught.value))


def changing(converter: Any) -> Any:
    return attrs.make_class("Changing", {"field": attrs.field(converter=converter)})


@dataclasses.dataclass
class ChangedAfter:
    field: Any

    def __post_init__(self) -> None:
        self.field = float(self.field)


@pytest.mark.parametrize(
    ("make", "value", "count", "given", "found"),
    [
        (changing(int), 1, 1, "torch.Tensor", "an int"),
        (changing(bool), True, 1, "torch.Tensor", "a bool"),
        (changing(lambda value: value / 2), 1.0, 2, "torch.Tensor", "a torch.Tensor"),
        (changing(str), "a", 2, "list", "a str"),
        (
            changing(lambda one: one if isinstance(one, Tensor) else one.values),
            torch.ones(1),
            2,
            "seqbatch.SequenceBatch",
            "a torch.Tensor",
        ),
        (changing(lambda one: one[:2]), torch.ones(2), 3, "seqbatch.SequenceBatch", "a seqbatch.*SequenceBatch"),
        (changing(lambda one: [one[0] + 1]), [1], 2, "list", "a list"),
        (changing(lambda one: {f"{key}+": one[key] for key in one}), {"a": 1}, 2, "dict", "a dict"),
        (changing(lambda one: {"a": one["a"] + 1}), {"a": 1}, 2, "dict", "a dict"),
        (ChangedAfter, 1.0, 1, "torch.Tensor", "a float"),
    ],
)
def test_a_class_that_makes_something_else_of_a_batch(
    make: Any, value: Any, count: int, given: str, found: str
) -> None:
    sample = make(value)
    message = rf"must be kept as it is by {kind(sample)}, in a batch a {re.escape(given)}; got {found} made of it\."
    with pytest.raises(SeqbatchTypeError, match=rf"^`samples\[0\]\.field` {message} {BATCHES_TOO}$"):
        collate_sequences([sample] * count)


def test_a_class_that_gives_the_steps_to_other_sequences() -> None:
    def halve(one: Any) -> Any:
        return SequenceBatch(one.values, [1] * one.total_steps) if isinstance(one, SequenceBatch) else one

    sample = changing(halve)(torch.ones(2))
    with pytest.raises(SeqbatchTypeError, match=r"^`samples\[0\]\.field` must be kept as it is "):
        collate_sequences([sample])
