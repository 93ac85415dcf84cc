"""The types of values in a sample, and how the fields of a container are read, named, and combined again."""

import dataclasses
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

import attrs
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from seqbatch._batch import SequenceBatch

NUMBERS = (bool, int, float, complex)
# Not containers here, although the last two are a class and a named tuple, because their fields do not collate.
_WHOLE = (str, bytes, SequenceBatch, PackedSequence)


@attrs.frozen
class Container:
    """How containers of one type hold their fields.

    Args:
        read: from a container to its fields, by key, position or name.
        make: from a container and other fields to a container of its type with these fields.
        show: how Python writes the field of a key.
    """

    read: Callable[[Any], dict[Any, Any]]
    make: Callable[[Any, dict[Any, Any]], Any]
    show: Callable[[Any], str]


def kind_of(value: object) -> type:
    """Return the type that a value collates as: a number, Tensor (for arrays too), a class, a container or object."""
    if isinstance(value, _WHOLE):
        return object
    for number in NUMBERS:
        if isinstance(value, number):
            return number
    if isinstance(value, Tensor) or hasattr(type(value), "__array__"):
        return Tensor
    if _class_of_fields(type(value)) is not None:
        return type(value)
    for kind in _PLAIN:
        if isinstance(value, kind):
            return kind
    return NoneType if value is None else object


def container_of(kind: type) -> Container | None:
    """Return the container for a result of `kind_of`; None if it has no fields."""
    return _PLAIN.get(kind) or _class_of_fields(kind)


def has_steps(value: object) -> bool:
    """Return True if a value is a Tensor or array with a dimension, or a container that holds one at any depth."""
    kind = kind_of(value)
    if kind is Tensor:
        array: Any = value
        return bool((array if isinstance(value, Tensor) else array.__array__()).ndim)
    container = container_of(kind)
    fields = container.read(value).values() if container else ()
    # Once per type, because long lists are mostly of numbers.
    examples = {type(field): field for field in fields}
    kinds = {one: kind_of(field) for one, field in examples.items()}
    inside = {one for one, kind in kinds.items() if kind is Tensor or container_of(kind) is not None}
    return bool(inside) and any(type(field) in inside and has_steps(field) for field in fields)


def is_kept(found: object, given: object) -> bool:
    """Return True if a field is the given object, or a copy of its container, as by the converter `list`."""
    if found is given:
        return True
    if isinstance(found, SequenceBatch) and isinstance(given, SequenceBatch):  # because its `to` returns a new one
        return found.values is given.values and found.lengths == given.lengths
    container = container_of(kind_of(given))
    if container is None or kind_of(found) is not kind_of(given):
        return False
    fields, wanted = container.read(found), container.read(given)
    return fields.keys() == wanted.keys() and all(is_kept(fields[key], wanted[key]) for key in wanted)


def _class_of_fields(kind: type) -> Container | None:
    if attrs.has(kind):
        return _ATTRS
    if dataclasses.is_dataclass(kind):
        return _DATACLASS
    return _NAMED_TUPLE if issubclass(kind, tuple) and hasattr(kind, "_fields") else None


def _make_attrs(like: Any, fields: dict[str, Any]) -> Any:
    given = {field.alias: fields[field.name] for field in attrs.fields(type(like)) if field.init}
    return _set(attrs.evolve(like, **given), {f.name: fields[f.name] for f in attrs.fields(type(like)) if not f.init})


def _make_dataclass(like: Any, fields: dict[str, Any]) -> Any:
    given = {field.name: fields[field.name] for field in dataclasses.fields(like) if field.init}
    return _set(dataclasses.replace(like, **given), {name: fields[name] for name in fields if name not in given})


def _set(made: Any, fields: dict[str, Any]) -> Any:
    """Set the fields that `__init__` does not take, even of a frozen class."""
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def _in_brackets(key: object) -> str:
    return f'["{key}"]' if isinstance(key, str) else f"[{key!r}]"


_PLAIN: dict[type, Container] = {
    Mapping: Container(dict, lambda _, fields: fields, _in_brackets),
    list: Container(lambda one: dict(enumerate(one)), lambda _, fields: [*fields.values()], _in_brackets),
    tuple: Container(lambda one: dict(enumerate(one)), lambda _, fields: (*fields.values(),), _in_brackets),
}
_NAMED_TUPLE = Container(lambda one: one._asdict(), lambda like, fields: like._replace(**fields), ".{}".format)
_ATTRS = Container(
    lambda one: {field.name: getattr(one, field.name) for field in attrs.fields(type(one))}, _make_attrs, ".{}".format
)
_DATACLASS = Container(
    lambda one: {field.name: getattr(one, field.name) for field in dataclasses.fields(one)},
    _make_dataclass,
    ".{}".format,
)
