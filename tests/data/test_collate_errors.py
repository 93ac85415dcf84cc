"""What collation refuses, and how it says it: always with the sample and the field."""

import re
import warnings
from typing import Any, NamedTuple
from unittest.mock import patch

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seqbatch import SeqbatchError, SeqbatchTypeError, SeqbatchValueError, SequenceBatch
from seqbatch.data import _fields, collate_sequences


class Pair(NamedTuple):
    signal: Any
    label: Any


@attrs.frozen
class Spoken:
    signal: Any


def signal(steps: int = 3, features: int = 5, **options: Any) -> Tensor:
    return torch.ones(steps, features, **options)


def refused(message: str, kind: type[SeqbatchError], samples: Any, sequences: Any = None) -> None:
    with pytest.raises(kind, match=f"^{message}$"):
        collate_sequences(samples, sequences=sequences)


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (torch.zeros(2, 3), "a torch.Tensor"),
        ({"x": torch.zeros(2)}, "a dict"),
        ("ab", "a str"),
        (b"ab", "a bytes"),
        (iter([torch.zeros(2)]), "a list_iterator"),
        (3, "an int"),
        (None, "None"),
    ],
)
def test_samples_that_are_not_a_list(samples: Any, found: str) -> None:
    remedy = r"A DataLoader with batch_size=None passes one sample and not a list\."
    refused(rf"`samples` must be a list of samples; got {found}\. {remedy}", SeqbatchTypeError, samples)


@pytest.mark.parametrize("samples", [[], ()])
@pytest.mark.parametrize("sequences", [None, ["signal"]])
def test_no_samples(samples: Any, sequences: Any) -> None:
    refused(r"`samples` must hold at least one sample; got none\.", SeqbatchValueError, samples, sequences)


FIELDS = [
    (lambda value: value, ""),
    (lambda value: {"signal": value}, r"\[\"signal\"\]"),
    (lambda value: {7: value}, r"\[7\]"),
    (lambda value: (1, value), r"\[1\]"),
    (lambda value: Pair(value, 1), r"\.signal"),
    (Spoken, r"\.signal"),
    (lambda value: {"meta": (Spoken(value),)}, r"\[\"meta\"\]\[0\]\.signal"),
]


@pytest.mark.parametrize(("build", "where"), FIELDS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            signal(features=4),
            r"have features \(5,\), as samples\[0\]; got \(4,\)\. A sequence has shape \(steps, \*features\)\.",
        ),
        (torch.ones(3), r"have features \(5,\), as samples\[0\]; got \(\)\."),
        (signal().double(), r"have dtype torch\.float32, as samples\[0\]; got torch\.float64\."),
        (signal(device="meta"), r"have device cpu, as samples\[0\]; got meta\."),
        (torch.tensor(1.0), r"have shape \(steps, \*features\); got a Tensor of no dimension\."),
    ],
)
def test_a_sequence_unlike_the_first(build: Any, where: str, wrong: Tensor, message: str) -> None:
    samples = [build(signal(3)), build(signal(0)), build(signal(4)), build(wrong)]
    refused(rf"`samples\[3\]{where}` must {message}", SeqbatchValueError, samples)


@pytest.mark.parametrize(("build", "where"), FIELDS)
@pytest.mark.parametrize("i", [0, 1])
def test_tensors_that_are_not_dense(build: Any, where: str, i: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that they are a prototype
        nested = [torch.nested.nested_tensor([torch.zeros(2)], layout=one) for one in (torch.jagged, torch.strided)]
    for wrong, found in (
        (nested[0], "a nested Tensor"),
        (nested[1], "a nested Tensor"),
        (torch.eye(2).to_sparse(), r"layout torch\.sparse_coo"),
    ):
        samples = [build(torch.eye(2)), build(torch.eye(2))]
        samples[i] = build(wrong)
        refused(rf"`samples\[{i}\]{where}` must be a dense Tensor; got {found}\.", SeqbatchTypeError, samples)


@pytest.mark.parametrize(("build", "where"), FIELDS[1:])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (signal(), None, r"be a torch\.Tensor, as samples\[0\]; got None\."),
        (None, signal(), r"be None, as samples\[0\]; got a torch\.Tensor\."),
        (None, "a", r"be None, as samples\[0\]; got a str\."),
        ("a", None, r"be a str, as samples\[0\]; got None\."),
        (1, 1.5, r"be an int, as samples\[0\]; got a float\."),
        (1.5, 1, r"be a float, as samples\[0\]; got an int\."),
        (True, 0, r"be a bool, as samples\[0\]; got an int\."),
        (0, np.int64(1), r"be an int, as samples\[0\]; got a numpy\.int64\."),
        (1.5, torch.tensor(1.5), r"be a float, as samples\[0\]; got a torch\.Tensor\."),
        (np.ones(2), [1.0, 2.0], r"be a numpy\.ndarray, as samples\[0\]; got a list\."),
        ((1,), [1], r"be a tuple, as samples\[0\]; got a list\."),
        ([1], {0: 1}, r"be a list, as samples\[0\]; got a dict\."),
        (Pair(1, 2), (1, 2), r"be a .*\.Pair, as samples\[0\]; got a tuple\."),
        ({"signal": 1}, Spoken(1), r"be a dict, as samples\[0\]; got a .*\.Spoken\."),
    ],
)
def test_fields_of_different_kinds(build: Any, where: str, first: Any, second: Any, message: str) -> None:
    refused(rf"`samples\[1\]{where}` must {message}", SeqbatchTypeError, [build(first), build(second)])


@pytest.mark.parametrize(("build", "where"), FIELDS)
@pytest.mark.parametrize(
    ("first", "third", "message"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, r"have keys \['a', 'b'\], as samples\[0\]; got \['a'\]\."),
        ({"a": 1}, {"a": 1, "b": 2}, r"have keys \['a'\], as samples\[0\]; got \['a', 'b'\]\."),
        (
            [5, 6, 7],
            [5, 6],
            r"have 3 fields, as samples\[0\]; got 2\. If these are the steps of a sequence, make it a Tensor\.",
        ),
        ((5,), (), r"have 1 field, as samples\[0\]; got 0\. If these are the steps of a sequence, make it a Tensor\."),
    ],
)
def test_containers_of_other_fields(build: Any, where: str, first: Any, third: Any, message: str) -> None:
    refused(rf"`samples\[2\]{where}` must {message}", SeqbatchValueError, [build(first), build(first), build(third)])


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            torch.ones(3, 8),
            torch.ones(3, 9),
            r"have shape \(3, 8\), as samples\[0\]; got \(3, 9\)\. Name it in `sequences` if it is one\.",
        ),
        (torch.tensor(1.0), torch.ones(3), r"have shape \(\), as samples\[0\]; got \(3,\)\."),
        (torch.ones(3), torch.ones(3).int(), r"have dtype torch\.float32, as samples\[0\]; got torch\.int32\."),
        (torch.tensor(1), torch.tensor(1.0), r"have dtype torch\.int64, as samples\[0\]; got torch\.float32\."),
        (torch.ones(3), torch.ones(3, device="meta"), r"have device cpu, as samples\[0\]; got meta\."),
    ],
)
def test_stacked_tensors_unlike_the_first(first: Tensor, second: Tensor, message: str) -> None:
    samples = [{"image": one, "signal": signal()} for one in (first, second)]
    refused(rf"`samples\[1\]\[\"image\"\]` must {message}", SeqbatchValueError, samples, ["signal"])


@pytest.mark.parametrize("dtype", [">f4", "U1", "O", "M8[D]", np.longdouble])
def test_arrays_of_a_dtype_that_torch_lacks(dtype: Any) -> None:
    wrong = np.zeros(3, dtype)
    for one in (wrong, wrong[::-1], np.broadcast_to(wrong, (2, 3))):
        message = rf"have a dtype that torch has; got {wrong.dtype}".replace("[", r"\[").replace("]", r"\]")
        samples = [{"x": np.zeros(3)}, {"x": one}]
        refused(rf"`samples\[1\]\[\"x\"\]` must {message}\. Call its astype\.", SeqbatchTypeError, samples)


def masked(**mask: Any) -> Any:
    array: Any = np.ma.MaskedArray
    return array(np.arange(3.0), **mask)


@pytest.mark.parametrize(("build", "where"), FIELDS)
@pytest.mark.parametrize("wrong", [masked(mask=[0, 1, 0]), masked(mask=False), masked()])
@pytest.mark.parametrize("i", [0, 1])
def test_arrays_with_a_mask(build: Any, where: str, wrong: Any, i: int) -> None:
    samples = [build(np.ones(3)), build(np.ones(3))]
    samples[i] = build(wrong)
    message = r"must be an array without a mask; got a numpy\.ma.*\.MaskedArray\."
    remedy = r"Call its filled with a value of your choice, or drop what is masked\."
    refused(rf"`samples\[{i}\]{where}` {message} {remedy}", SeqbatchTypeError, samples)


def test_arrays_with_a_mask_that_are_stacked_and_the_remedy() -> None:
    samples = [{"x": np.ones(3)}, {"x": masked(mask=[0, 1, 0])}]
    refused(r"`samples\[1\]\[\"x\"\]` must be an array without a mask; .*", SeqbatchTypeError, samples, [])
    batch: Any = collate_sequences([{"x": samples[1]["x"].filled(7)}])["x"]
    assert batch.values.tolist() == [0, 7, 2]


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_integers_out_of_range(number: int) -> None:
    samples = [(0, "a"), (2**63 - 1, "b"), (number, "c")]
    refused(rf"`samples\[2\]\[0\]` must be in the range of int64; got {number}\.", SeqbatchValueError, samples)


@pytest.mark.parametrize(
    ("sample", "sequences", "message"),
    [
        ({"a": signal(), "b": 1}, ["c"], r"\['a'\]; got 'c'\."),
        ({"a": signal(), "b": 1}, ["a", "b"], r"\['a'\]; got 'b'\."),
        ({"a": signal(), "b": {"c": np.ones(2)}}, {"b"}, r"\['a', 'b\.c'\]; got 'b'\."),
        ((signal(), (signal(),)), (2,), r"\[0, '1\.0'\]; got 2\."),
        (Spoken(signal()), ["speech"], r"\['signal'\]; got 'speech'\."),
        (signal(), ["signal"], r"\[\]; got 'signal'\."),
    ],
)
def test_sequences_that_are_not_there(sample: Any, sequences: Any, message: str) -> None:
    must = r"name Tensors or arrays in the samples, of"
    refused(rf"`sequences` must {must} {message}", SeqbatchValueError, [sample, sample], sequences)


@pytest.mark.parametrize(
    ("sample", "name", "places"),
    [
        (
            {"a.b": signal(), "a": {"b": signal()}},
            "a.b",
            r"`samples\[0\]\[\"a\.b\"\]` and `samples\[0\]\[\"a\"\]\[\"b\"\]`",
        ),
        (
            {"a": {"b": Spoken(signal()), "b.signal": np.ones(2)}},
            "a.b.signal",
            r"`samples\[0\]\[\"a\"\]\[\"b\"\]\.signal` and `samples\[0\]\[\"a\"\]\[\"b\.signal\"\]`",
        ),
        (
            ({0: signal(), "0": signal()},),
            "0.0",
            r"`samples\[0\]\[0\]\[0\]` and `samples\[0\]\[0\]\[\"0\"\]`",
        ),
    ],
)
def test_a_name_that_fits_two_fields(sample: Any, name: str, places: str) -> None:
    found = rf"'{re.escape(name)}', which fits {places}"
    message = rf"`sequences` must name one field each; got {found}\. Rename a key\."
    refused(message, SeqbatchValueError, [sample, sample], [name])
    collate_sequences([sample, sample])
    collate_sequences([sample, sample], sequences=[])


def test_a_dot_in_a_key_is_allowed_if_one_field_fits() -> None:
    samples = [{"a.b": signal(steps), "a": {"b": 1, "c": signal()}} for steps in (2, 3)]
    batch: Any = collate_sequences(samples, sequences=["a.b"])
    assert batch["a.b"].lengths == (2, 3)
    assert isinstance(batch["a"]["c"], Tensor)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("sample", [(signal(), signal()), {True: signal(), False: signal()}])
def test_a_bool_is_not_a_position(sample: Any, flag: bool) -> None:
    message = rf"`sequences` must hold names and positions; got {flag}\."
    refused(message, SeqbatchTypeError, [sample, sample], [flag])


def test_a_misspelt_name_is_reported_before_what_follows_from_it() -> None:
    samples = [{"signal": signal(3)}, {"signal": signal(4)}]
    refused(r"`sequences` must name .* of \['signal'\]; got 'sgnal'\.", SeqbatchValueError, samples, ["sgnal"])


def test_what_is_said_to_be_a_sequence_and_has_no_steps() -> None:
    message = r"must have shape \(steps, \*features\); got a Tensor of no dimension\."
    refused(rf"`samples\[0\]\[0\]` {message}", SeqbatchValueError, [(torch.tensor(1.0),)], [0])
    refused(rf"`samples\[0\]` {message}", SeqbatchValueError, [torch.tensor(1.0)])


@pytest.mark.parametrize(
    ("sequences", "found"),
    [
        ("signal", r"'signal'\. Pass \['signal'\] for one field\."),
        (b"signal", r"a bytes\."),
        (1, r"an int\."),
        (iter(["signal"]), r"a list_iterator\."),
        (torch.tensor([True, False]), r"a torch\.Tensor\."),
        (np.array([True, False]), r"a numpy\.ndarray\."),
    ],
)
def test_sequences_that_are_not_a_collection(sequences: Any, found: str) -> None:
    samples = [{"signal": signal()}]
    refused(rf"`sequences` must be a collection of fields; got {found}", SeqbatchTypeError, samples, sequences)


LISTS_OF_SEQUENCES = [
    ([[signal(3), signal(2)], [signal(4)]], 0, "", 2),
    ([[signal(3), signal(2)], [signal(4), signal(1)]], 0, "", 2),
    ([[], [signal(4)], []], 1, "", 1),
    ([[signal(0)]], 0, "", 1),
    ([(1, [signal(3), signal(2)]), (2, [])], 0, "[1]", 2),
    ([{"a": {"b": []}}, {"a": {"b": [signal()]}}], 1, '["a"]["b"]', 1),
    ([Spoken([signal(3), signal(2)]), Spoken([signal(4)])], 0, ".signal", 2),
    ([[np.ones(3)], [np.ones(2), np.ones(4)]], 0, "", 1),
    ([[{"x": signal(3), "y": 1}], [{"x": signal(2), "y": 2}, {"x": signal(4), "y": 3}]], 0, "", 1),
    ([[(signal(3), 1)], []], 0, "", 1),
    ([{"pages": [[signal(3)], [signal(2), signal(4)]]}, {"pages": [[]]}], 0, '["pages"]', 2),
]


@pytest.mark.parametrize(("samples", "i", "path", "number"), LISTS_OF_SEQUENCES)
@pytest.mark.parametrize("sequences", [None, []])
def test_a_list_of_sequences_and_the_remedy(samples: Any, i: int, path: str, number: int, sequences: Any) -> None:
    with pytest.raises(SeqbatchTypeError) as caught:
        collate_sequences(samples, sequences=sequences)
    said = re.fullmatch(
        rf"`samples\[{i}\]{re.escape(path)}` must not be a list that holds Tensors or arrays with a dimension, because "
        rf"lists may differ in length; got a list of {number} items?\. If its items are fields, make it a tuple\. If "
        r"it holds any number of items, write a collate_fn that joins those of all samples, `(.*)`, and keeps their "
        r"numbers, `(.*)`\.",
        str(caught.value),
    )
    assert said
    names = {"collate_sequences": collate_sequences, "SequenceBatch": SequenceBatch, "samples": samples}
    lists = [eval(f"sample{path}", {"sample": sample}) for sample in samples]
    assert eval(said[2], names) == [len(one) for one in lists]
    items = [item for one in lists for item in one]
    if isinstance(items[0], list):  # whose items in turn are joined by the same remedy
        test_a_list_of_sequences_and_the_remedy(items, 0, "", len(items[0]), sequences)
        return
    found = eval(said[1], names)
    if isinstance(items[0], dict):
        assert found["y"].tolist() == [item["y"] for item in items]
        found, items = found["x"], [item["x"] for item in items]
    if isinstance(items[0], tuple):
        found, items = found[0], [item[0] for item in items]
    assert found.lengths == tuple(map(len, items))
    assert found.values.tolist() == [step for item in items for step in item.tolist()]


@pytest.mark.parametrize(
    "sequence", [signal(), np.ones(2), [signal()], (1, signal()), {"x": signal()}, Spoken(signal()), Pair(1, signal())]
)
@pytest.mark.parametrize("first", [torch.tensor(1.0), [], (1,), Spoken(1), "word", None])
def test_a_sequence_behind_items_of_other_types_and_of_its_own(sequence: Any, first: Any) -> None:
    items = [first, 1, type(sequence)([]) if isinstance(sequence, list) else 2.0, sequence, 3]
    with pytest.raises(SeqbatchTypeError, match=r"^`samples\[0\]` must not be a list that holds .* a list of 5 items"):
        collate_sequences([items, items])


def test_a_long_list_of_numbers_is_judged_by_the_types_in_it() -> None:
    with patch.object(_fields, "kind_of", side_effect=_fields.kind_of) as mock:
        assert not _fields.has_steps([*range(2000), *map(float, range(2000))])
    assert mock.call_count == 3


def test_fields_in_a_list_are_made_a_tuple() -> None:
    samples = [[signal(3), signal(2)], [signal(4), signal(1)]]
    batch: Any = collate_sequences([tuple(sample) for sample in samples])
    assert [one.lengths for one in batch] == [(3, 4), (2, 1)]


def test_a_wrong_field_is_not_blamed_on_the_class_around_it() -> None:
    with pytest.raises(SeqbatchValueError) as caught:
        collate_sequences([Spoken(signal()), Spoken(signal(features=4))])
    assert not hasattr(caught.value, "__notes__")


def test_a_parameter_is_a_tensor() -> None:
    batch: Any = collate_sequences([(torch.ones(2),), (nn.Parameter(torch.ones(3)),)])[0]
    assert batch.lengths == (2, 3)
