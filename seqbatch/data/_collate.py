"""collate_sequences: combines the samples of a batch into the structure of one sample."""

from collections.abc import Collection, Hashable, Iterator, Sequence
from typing import Any, overload

import attrs
import torch
from torch import Tensor
from torch.utils.data import default_collate

from seqbatch._batch import SequenceBatch
from seqbatch._checks.arguments import from_array, require_alike, require_steps, require_tensor
from seqbatch._checks.grammar import complaint, counted, shown, type_name
from seqbatch.data._fields import NUMBERS, Container, container_of, has_steps, is_kept, kind_of
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

# As `torch.utils.data.default_collate`, but independent of the default dtype.
_DTYPES = dict(zip(NUMBERS, (torch.bool, torch.int64, torch.float64, torch.complex128), strict=True))

_SequenceNames = tuple[Hashable, ...] | None


@attrs.frozen
class _FieldPath:
    """The path to a field of a sample: the code that reads it, and its name in `sequences`; empty for the sample."""

    code: str = ""
    name: Hashable = None

    def field(self, container: Container, key: Hashable) -> "_FieldPath":
        return _FieldPath(self.code + container.show(key), f"{self.name}.{key}" if self.code else key)

    def in_sample(self, i: int) -> str:
        return f"samples[{i}]{self.code}"


@overload
def collate_sequences(samples: Sequence[Tensor], *, sequences: None = None) -> SequenceBatch: ...
@overload
def collate_sequences(samples: Sequence[Any], *, sequences: Collection[str | int] | None = None) -> Any: ...
def collate_sequences(samples: Sequence[Any], *, sequences: Collection[str | int] | None = None) -> Any:
    """Combine samples into the structure of one sample; the `collate_fn` of a `torch.utils.data.DataLoader`.

    A sample is a sequence, or a container of fields: a tuple, list, dict, named tuple, dataclass or attrs class, also
    nested. The type of a field alone determines its result, which is the same in every batch:

    - a Tensor or NumPy array `(steps, *features)` is a sequence: a SequenceBatch
    - a Tensor or NumPy array without dimensions: a Tensor `(batch,)`
    - an int, float, bool or complex: a Tensor `(batch,)` of dtype int64, float64, bool or complex128, as in
      `torch.utils.data.default_collate` for the first three
    - anything else, as a str or None: a list of them, `(batch,)`

    A sample that is one Tensor must have a dimension of steps. A list of numbers is a list of fields, and not a
    sequence: make it a Tensor. A list that holds Tensors or arrays with a dimension, at any depth, is an error, because
    lists may differ in length, and all samples must have the same fields. Use a tuple for fields. For a variable number
    of sequences write a `collate_fn` that joins them by `SequenceBatch.from_sequences`. Every mapping becomes a dict.

    Classes are built by their constructor, which must accept and keep batches for a sample's fields. So a converter
    such as `int` is an error. Fields that the constructor does not take are set afterwards. Its other arguments, as an
    `InitVar`, have their defaults.

    With `pin_memory=True`, a DataLoader pins what is in tuples, lists and dicts, but what is in a dataclass or attrs
    class only if that has a method `pin_memory`, which returns the pinned object.

    Args:
        samples: `(batch,)`, at least one, all of the same structure; none is modified. Errors name samples by their
            index here. For the index in a data set, collate all of it: `[data[i] for i in range(len(data))]`.
        sequences: the fields that are sequences, by default all that have a dimension. A field is the name of a key or
            attribute, or a position in a tuple or list. In nested containers these are joined by dots, such as
            "meta.signal". Each must match one field. All other Tensors and arrays must have equal shapes, and are
            stacked to `(batch, *shape)`. As a collate_fn: `functools.partial(collate_sequences, sequences=["signal"])`.

    Returns:
        copies, in the containers of the samples. Gradients flow, but not out of a worker process. The type is annotated
        only if samples are Tensors, because the fields of a batch have other types than those of a sample.

    Raises:
        SeqbatchTypeError: samples are not a Sequence, differ in the type of a field, or have a list that holds
            sequences, or arrays with a mask or of a dtype that torch lacks; a class does not accept or does not keep
            batches; or `sequences` is not a collection of names and positions.
        SeqbatchValueError: `samples` is empty; samples differ in their keys or numbers of fields, or Tensors in
            features, shape, dtype or device; an int is out of the range of int64; or a name in `sequences` matches no
            Tensor, or several.

    >>> from seqbatch.data import collate_sequences
    >>> samples = [{"signal": torch.zeros(10, 5), "label": 1}, {"signal": torch.zeros(7, 5), "label": 0}]
    >>> batch = collate_sequences(samples)
    >>> batch["signal"], batch["label"]
    (SequenceBatch(2 sequences of 7 to 10 steps, features (5,), torch.float32, cpu), tensor([1, 0]))
    """
    if not isinstance(samples, Sequence) or isinstance(samples, (str, bytes)):
        remedy = "A DataLoader with batch_size=None passes one sample and not a list."
        raise complaint(SeqbatchTypeError, "samples", "be a list of samples", type_name(samples), remedy)
    if not samples:
        raise complaint(SeqbatchValueError, "samples", "hold at least one sample", "none")
    return _collate(list(samples), _FieldPath(), _require_names(sequences, samples[0]))


def _require_names(sequences: object, sample: object) -> _SequenceNames:
    """Return the names of the sequences, each of which must be in the sample, else raise."""
    if sequences is None:
        return None
    if not isinstance(sequences, Collection) or isinstance(sequences, (str, bytes)) or kind_of(sequences) is Tensor:
        remedy = f"Pass [{sequences!r}] for one field." if isinstance(sequences, str) else ""
        found = shown(sequences) if isinstance(sequences, str) else type_name(sequences)
        raise complaint(SeqbatchTypeError, "sequences", "be a collection of fields", found, remedy)
    there = [path for path in _tensors_in(sample, _FieldPath()) if path.code]
    for name in sequences:
        fitting = [path.in_sample(0) for path in there if path.name == name]
        if isinstance(name, bool):  # because it would match the position 0 or 1
            raise complaint(SeqbatchTypeError, "sequences", "hold names and positions", shown(name))
        if not fitting:
            must = f"name Tensors or arrays in the samples, of {[path.name for path in there]}"
            raise complaint(SeqbatchValueError, "sequences", must, shown(name))
        if len(fitting) > 1:
            found = f"{name!r}, which fits `{'` and `'.join(fitting)}`"
            raise complaint(SeqbatchValueError, "sequences", "name one field each", found, "Rename a key.")
    return tuple(sequences)


def _tensors_in(value: object, path: _FieldPath) -> Iterator[_FieldPath]:
    """Yield the path of every Tensor and array in a sample."""
    kind = kind_of(value)
    if kind is Tensor:
        yield path
    if container := container_of(kind):
        for key, field in container.read(value).items():
            yield from _tensors_in(field, path.field(container, key))


def _collate(values: list[Any], path: _FieldPath, names: _SequenceNames) -> Any:
    """Combine the values of one field of all samples."""
    first = values[0]
    kind = kind_of(first)
    for i, value in enumerate(values):
        if type(value) is not type(first) and kind_of(value) is not kind:
            raise complaint(
                SeqbatchTypeError, path.in_sample(i), f"be {type_name(first)}, as samples[0]", type_name(value)
            )
    if kind is Tensor:
        return _collate_tensors(values, path, names)
    if kind in _DTYPES:
        return _collate_numbers(values, path, _DTYPES[kind])
    if kind is list:
        _refuse_lists_of_sequences(values, path)
    container = container_of(kind)
    return values if container is None else _collate_fields(values, path, names, container)


def _refuse_lists_of_sequences(values: list[Any], path: _FieldPath) -> None:
    """Raise if a list holds sequences, because its items are fields, which collate only if all lists are as long."""
    for i, value in enumerate(values):
        if has_steps(value):
            items = f"[item for sample in samples for item in sample{path.code}]"
            are_tensors = all(isinstance(item, Tensor) for one in values for item in one)
            join = f"SequenceBatch.from_sequences({items})" if are_tensors else f"collate_sequences({items})"
            numbers = f"[len(sample{path.code}) for sample in samples]"
            must = "not be a list that holds Tensors or arrays with a dimension, because lists may differ in length"
            remedy = (
                "If its items are fields, make it a tuple. If it holds any number of items, write a collate_fn that "
                f"joins those of all samples, `{join}`, and keeps their numbers, `{numbers}`."
            )
            raise complaint(
                SeqbatchTypeError, path.in_sample(i), must, f"a list of {counted(len(value), 'item')}", remedy
            )


def _collate_fields(values: list[Any], path: _FieldPath, names: _SequenceNames, container: Container) -> Any:
    """Combine containers, field by field."""
    fields = [container.read(value) for value in values]
    for i, found in enumerate(fields):
        if found.keys() != fields[0].keys():
            if isinstance(values[0], (list, tuple)):
                must = f"have {counted(len(fields[0]), 'field')}, as samples[0]"
                remedy = "If these are the steps of a sequence, make it a Tensor."
                raise complaint(SeqbatchValueError, path.in_sample(i), must, len(found), remedy)
            raise complaint(SeqbatchValueError, path.in_sample(i), f"have keys {[*fields[0]]}, as samples[0]", [*found])
    made = {key: _collate([one[key] for one in fields], path.field(container, key), names) for key in fields[0]}
    return _rebuild(values[0], made, path, container)


def _rebuild(like: Any, fields: dict[Any, Any], path: _FieldPath, container: Container) -> Any:
    """Build a container of batches; raise if its class refuses or converts them."""
    remedy = "Its converters, validators and __post_init__ meet batches too; a dict has none."
    try:
        made = container.make(like, fields)
    except Exception as error:
        found = f"{type_name(like)}, which raised {type(error).__name__}"
        must = "be of a class that takes batches"
        raise complaint(SeqbatchTypeError, path.in_sample(0), must, found, remedy) from error
    for key, field in container.read(made).items():
        if not is_kept(field, fields[key]):
            subject = path.field(container, key).in_sample(0)
            must = f"be kept as it is by {type_name(like)}, in a batch {type_name(fields[key])}"
            raise complaint(SeqbatchTypeError, subject, must, f"{type_name(field)} made of it", remedy)
    return made


def _collate_numbers(values: list[Any], path: _FieldPath, dtype: torch.dtype) -> Tensor:
    if dtype is torch.int64:
        for i, value in enumerate(values):
            if not -(2**63) <= value < 2**63:
                raise complaint(SeqbatchValueError, path.in_sample(i), "be in the range of int64", value)
    return torch.tensor(values, dtype=dtype)


def _collate_tensors(values: list[Any], path: _FieldPath, names: _SequenceNames) -> SequenceBatch | Tensor:
    """Join or stack Tensors and arrays."""
    tensors = [
        value if isinstance(value, Tensor) else from_array(path.in_sample(i), value) for i, value in enumerate(values)
    ]
    first = require_tensor(path.in_sample(0), tensors[0])
    # A sample that is a Tensor is a sequence whatever its shape, because the annotation says so.
    is_sequence = (first.dim() > 0 or not path.code) if names is None else path.name in names
    free_axes = 1 if is_sequence else 0
    for i, tensor in enumerate(tensors):
        if not _is_like(tensor, first, free_axes):
            _raise_difference(tensor, path.in_sample(i), first, free_axes)
    if is_sequence:
        return SequenceBatch(torch.cat(tensors), [tensor.shape[0] for tensor in tensors])
    stacked: Tensor = default_collate(tensors)  # because in a worker process it writes to shared memory
    return stacked


def _is_like(tensor: Tensor, first: Tensor, free_axes: int) -> bool:
    """Fast path: return True if a tensor is dense and like the first; the first `free_axes` axes may differ."""
    return (
        not tensor.is_nested
        and tensor.layout is torch.strided
        and tensor.dim() >= free_axes
        and tensor.shape[free_axes:] == first.shape[free_axes:]
        and tensor.dtype is first.dtype
        and tensor.device == first.device
    )


def _raise_difference(tensor: Tensor, subject: str, first: Tensor, free_axes: int) -> None:
    """Raise the error that says how a tensor differs from the first."""
    require_tensor(subject, tensor)
    if free_axes:
        require_steps(subject, tensor)
    elif tensor.shape != first.shape:
        remedy = "Name it in `sequences` if it is one." if first.dim() else ""
        must = f"have shape {tuple(first.shape)}, as samples[0]"
        raise complaint(SeqbatchValueError, subject, must, tuple(tensor.shape), remedy)
    require_alike(subject, tensor, "samples[0]", first)
