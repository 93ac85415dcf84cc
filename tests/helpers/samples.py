"""Samples of every kind: containers, and Hypothesis strategies for forms that samples may have."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import attrs
import torch
from hypothesis import strategies as st
from laws import assert_same_bits
from strategies import DTYPES, features, make
from torch import Tensor

from seqbatch import SequenceBatch


class Named(NamedTuple):
    one: Any
    other: Any


@attrs.frozen
class Frozen:
    _one: Any
    other: Any = attrs.field(kw_only=True, alias="others")


@attrs.define(slots=False)
class Defined:
    one: Any
    other: Any = attrs.field(init=False, default=None)


@dataclasses.dataclass
class Data:
    one: Any
    other: Any = dataclasses.field(init=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slotted:
    one: Any
    other: Any = dataclasses.field(default=None, init=False)


def set_after(kind: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a function that builds an object of a class whose `__init__` does not take `other`."""

    def build(one: Any, other: Any) -> Any:
        made = kind(one)
        object.__setattr__(made, "other", other)
        return made

    return build


# For each type of container of two fields: how it is built from them, and how they are read from it.
CONTAINERS: dict[type, tuple[Callable[[Any, Any], Any], Callable[[Any], tuple[Any, Any]]]] = {
    tuple: (lambda one, other: (one, other), lambda it: (it[0], it[1])),
    list: (lambda one, other: [one, other], lambda it: (it[0], it[1])),
    dict: (lambda one, other: {"one": one, 2: other}, lambda it: (it["one"], it[2])),
    Named: (Named, lambda it: (it.one, it.other)),
    Frozen: (lambda one, other: Frozen(one, others=other), lambda it: (it._one, it.other)),
    Defined: (set_after(Defined), lambda it: (it.one, it.other)),
    Data: (set_after(Data), lambda it: (it.one, it.other)),
    Slotted: (set_after(lambda one: Slotted(one=one)), lambda it: (it.one, it.other)),
}


@attrs.frozen
class Form:
    """A form that samples may have: how one is made, from its position and its steps, and read out of a batch."""

    build: Callable[[int, int], Any]
    read: Callable[[Any, int], Any]


def contained(kind: type, one: Form, other: Form) -> Form:
    put, get = CONTAINERS[kind]

    def read(batch: Any, i: int) -> Any:
        assert type(batch) is kind
        fields = get(batch)
        return put(one.read(fields[0], i), other.read(fields[1], i))

    return Form(lambda i, steps: put(one.build(i, steps), other.build(i, steps)), read)


def sequence(feature_shape: tuple[int, ...], dtype: torch.dtype) -> Form:
    def read(batch: Any, i: int) -> Any:
        assert isinstance(batch, SequenceBatch)
        return batch.to_sequences()[i]

    return Form(lambda i, steps: make((steps, *feature_shape), dtype, seed=i), read)


def number(values: list[Any]) -> Form:
    def read(batch: Any, i: int) -> Any:
        assert isinstance(batch, Tensor)
        return batch[i].item()

    return Form(lambda i, _: values[i % len(values)], read)


def as_it_is(values: list[Any]) -> Form:
    def read(batch: Any, i: int) -> Any:
        assert type(batch) is list
        return batch[i]

    return Form(lambda i, _: values[i % len(values)], read)


_without_steps: st.SearchStrategy[Form] = st.one_of(
    st.sampled_from(DTYPES).map(lambda dtype: Form(lambda i, _: make((), dtype, i), lambda batch, i: batch[i])),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1).map(number),
    st.lists(st.floats(), min_size=1).map(number),
    st.lists(st.booleans(), min_size=1).map(number),
    st.lists(st.complex_numbers(), min_size=1).map(number),
    st.lists(st.text() | st.binary(), min_size=1).map(as_it_is),
    st.just(as_it_is([None])),
)
_leaves = st.one_of(
    st.builds(sequence, features, st.sampled_from(DTYPES)),
    _without_steps,
    st.builds(contained, st.just(list), _without_steps, _without_steps),  # lists hold no sequences
)
_containers = st.sampled_from([kind for kind in CONTAINERS if kind is not list])
_parts = st.recursive(_leaves, lambda inner: st.builds(contained, _containers, inner, inner), max_leaves=4)
forms = st.builds(contained, _containers, _parts, _parts)


def assert_same(found: Any, wanted: Any) -> None:
    """Compare samples: Tensors and floats bit by bit, the rest by type and value."""
    assert type(found) is type(wanted)
    if type(wanted) in CONTAINERS:
        _, get = CONTAINERS[type(wanted)]
        for one, other in zip(get(found), get(wanted), strict=True):
            assert_same(one, other)
    elif isinstance(wanted, Tensor):
        assert_same_bits(found, wanted)
    else:
        assert repr(found) == repr(wanted)  # which distinguishes -0.0 from 0.0, and shows nan
