"""Time as an axis: slices and single steps, `take`, `concat_steps`, `merge`, `split`, `map_sequences`."""

from collections.abc import Callable
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from strategies import DTYPES, features, for_all_lengths, make, sequences
from torch import Tensor, func, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.testing import assert_close

from seqbatch import SeqbatchIndexError, SeqbatchTypeError, SeqbatchValueError, SequenceBatch, encode

LENGTHS = [3, 0, 1, 4, 2]
bounds = st.none() | st.integers(-5, 7)
dtypes = st.sampled_from(DTYPES)
# Its types do not say that what comes back has the shape of what a function returns.
transforms: Any = func


def batch_of(xs: list[Tensor], feature_shape: Any, dtype: torch.dtype) -> SequenceBatch:
    """Build a batch that has its features and dtype also if there is no sequence."""
    return SequenceBatch(torch.cat([*xs, make((0, *feature_shape), dtype)]), [len(x) for x in xs])


def assert_sequences(batch: Any, wanted: list[Tensor]) -> None:
    """Compare sequences, bit by bit."""
    assert isinstance(batch, SequenceBatch)
    assert batch.lengths == tuple(map(len, wanted))
    assert_close(batch.to_sequences(), wanted, rtol=0, atol=0, equal_nan=True)


def indices_of(positions: list[list[int]], dtype: torch.dtype = torch.int64) -> SequenceBatch:
    flat = [position for one in positions for position in one]
    return SequenceBatch(torch.tensor(flat, dtype=dtype), [len(one) for one in positions])


# ---------------------------------------------------------------------------------------------- slices and single steps


@for_all_lengths(start=bounds, stop=bounds, step=st.sampled_from([None, 1, 2, 3, 9]), features=features, dtype=dtypes)
def test_a_slice_is_that_of_each_sequence(
    lengths: list[int], start: Any, stop: Any, step: Any, features: Any, dtype: torch.dtype
) -> None:
    xs = [x.detach() for x in sequences(lengths, features, dtype)]
    found = batch_of(xs, features, dtype)[:, start:stop:step]
    assert_sequences(found, [x[start:stop:step] for x in xs])
    assert found.feature_shape == features
    assert found.dtype is dtype


@for_all_lengths(data=st.data(), start=bounds, stop=bounds, step=st.sampled_from([None, 1, 2]))
def test_a_slice_of_chosen_sequences(lengths: list[int], data: st.DataObject, start: Any, stop: Any, step: Any) -> None:
    xs = sequences(lengths, (2,))
    batch = batch_of(xs, (2,), torch.float64)
    chosen = data.draw(st.lists(st.integers(-len(xs), len(xs) - 1), max_size=6)) if xs else []
    time = slice(start, stop, step)
    wanted = [xs[i][time] for i in chosen]
    for rows in (chosen, torch.tensor(chosen, dtype=torch.int64), np.array(chosen, dtype=np.int64)):
        assert_sequences(batch[rows, time], wanted)
    assert_sequences(batch[1:, time], [x[time] for x in xs[1:]])
    assert_sequences(batch[::-1, time], [x[time] for x in xs[::-1]])
    flags = [data.draw(st.booleans()) for _ in xs]
    assert_sequences(
        batch[torch.tensor(flags, dtype=torch.bool), time],
        [x[time] for x, is_in in zip(xs, flags, strict=True) if is_in],
    )
    for i in chosen:
        assert_close(batch[i, time], xs[i][time])


@for_all_lengths(position=st.integers(-4, 4), features=features, dtype=dtypes)
def test_a_step_is_that_of_each_sequence(lengths: list[int], position: int, features: Any, dtype: torch.dtype) -> None:
    xs = [x.detach() for x in sequences(lengths, features, dtype)]
    batch = batch_of(xs, features, dtype)
    fits = [-len(x) <= position < len(x) for x in xs]
    if all(fits):
        found = batch[:, position]
        assert found.shape == (len(xs), *features)
        assert found.dtype is dtype
        assert_close(list(found), [x[position] for x in xs], rtol=0, atol=0)
    else:
        with pytest.raises(SeqbatchIndexError, match=rf"`index\[1\]` must .* of sequence {fits.index(False)}"):
            batch[:, position]
    rows = [i for i, fit in enumerate(fits) if fit] * 2
    assert_close(list(batch[rows, position]), [xs[i][position] for i in rows], rtol=0, atol=0)
    for i in rows:
        assert_close(batch[i, position], xs[i][position], rtol=0, atol=0)


@pytest.mark.parametrize(
    "one", [np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), torch.tensor(1, dtype=torch.int8)]
)
def test_integers_of_other_libraries(one: Any) -> None:
    xs = sequences([3, 2, 4], (2,))
    batch = SequenceBatch.from_sequences(xs)
    assert_close(batch[:, one], torch.stack([x[1] for x in xs]))
    assert_close(batch[one, one], xs[1][1])
    assert_sequences(batch[:, one:], [x[1:] for x in xs])
    assert_sequences(batch[one:, :one], [x[:1] for x in xs[1:]])


@pytest.mark.parametrize("huge", [10**30, 2**63 - 1, -(10**30)])
def test_bounds_beyond_int64(huge: int) -> None:
    batch = SequenceBatch(torch.arange(5), [3, 2])
    for time in (slice(huge, None), slice(None, huge), slice(None, None, abs(huge)), slice(1, huge, 2)):
        assert [x.tolist() for x in batch[:, time]] == [[0, 1, 2][time], [3, 4][time]]
        assert batch[1, time].tolist() == [3, 4][time]
    assert batch[[], huge].shape == (0,)
    with pytest.raises(SeqbatchIndexError, match=r"`index\[1\]` must be from -3 to 2, for the 3 steps of sequence 0"):
        batch[:, huge]


def test_what_is_shared() -> None:
    batch = SequenceBatch(torch.arange(10.0), LENGTHS)
    assert batch[:, :].structure is batch.structure
    assert batch[:, 1:].structure is batch.map(torch.relu)[:, 1:].structure  # so that plans are made once
    assert batch[3, 1:3].data_ptr() == batch.values[5:].data_ptr()
    assert batch[:, :].values.data_ptr() != batch.values.data_ptr()
    merged = batch.merge([2, 3])
    assert merged.values is batch.values
    assert merged.split(batch.structure).values is batch.values
    assert merged.split(batch.structure).structure is batch.structure


BAD_INDICES: list[tuple[Any, type[Exception], str]] = [
    (
        (0, 1, 2),
        TypeError,
        "`index` must be one index, of sequences, or two, of sequences and of steps; got a tuple of 3.",
    ),
    ((), TypeError, "`index` must be one index, of sequences, or two, of sequences and of steps; got a tuple of 0."),
    ((..., 0), TypeError, "`index` must be one index, of .*; got an Ellipsis in a tuple. For features call batch.map"),
    ((0, ...), TypeError, "`index` must be one index, of .*; got an Ellipsis in a tuple. For features call batch.map"),
    ((slice(None), ..., 0), TypeError, "`index` must be one index, of .*; got a tuple of 3."),
    (
        (slice(None), slice(None, None, -1)),
        TypeError,
        r"`index\[1\]` must be a slice of integers, its step at least 1; got slice\(None, None, -1\). For steps back "
        r"to front call reverse\(\).",
    ),
    ((slice(None), slice(None, None, 0)), TypeError, r"`index\[1\]` must be a slice of integers, its step at least 1"),
    (
        (slice(None), slice(True, None)),
        TypeError,
        r"`index\[1\]` must be a slice of integers, .*; got slice\(True, None",
    ),
    ((0, slice(0.5, None)), TypeError, r"`index\[1\]` must be a slice of integers, .*; got slice\(0.5, None, None\)."),
    (
        (slice(None), [0, 1]),
        TypeError,
        r"`index\[1\]` must be an integer or a slice, of steps; got a list. For other steps of each sequence call "
        r"batch.take\(indices\).",
    ),
    ((slice(None), (0, 1)), TypeError, r"`index\[1\]` must be an integer or a slice, of steps; got a tuple."),
    ((slice(None), None), TypeError, r"`index\[1\]` must be an integer or a slice, of steps; got None."),
    (
        (slice(None), torch.tensor([1])),
        TypeError,
        r"`index\[1\]` must be an integer or a .*, of steps; got a torch.Tensor with 1 dimension",
    ),
    (
        (slice(None), np.ones((2, 2), bool)),
        TypeError,
        r"`index\[1\]` must be an integer or .*; got a numpy.ndarray with 2 dim",
    ),
    ((slice(None), True), TypeError, r"`index\[1\]` must be an integer; got True."),
    ((slice(None), 1.0), TypeError, r"`index\[1\]` must be an integer; got 1.0."),
    ((slice(None), "a"), TypeError, r"`index\[1\]` must be an integer; got 'a'."),
    ((None, 0), TypeError, r"`index\[0\]` must be an integer; got None."),
    ((2, 0), IndexError, r"`index\[0\]` must be from -2 to 1, for 2 sequences; got 2."),
    (([0, -3], 0), IndexError, r"`index\[0\]\[1\]` must be from -2 to 1, for 2 sequences; got -3."),
    ((0, 3), IndexError, r"`index\[1\]` must be from -3 to 2, for the 3 steps of sequence 0; got 3."),
    ((-1, -2), IndexError, r"`index\[1\]` must be from -1 to 0, for the 1 step of sequence 1; got -2."),
    ((slice(None), 1), IndexError, r"`index\[1\]` must be from -1 to 0, for the 1 step of sequence 1; got 1."),
    (([1, 0], -2), IndexError, r"`index\[1\]` must be from -1 to 0, for the 1 step of sequence 1; got -2."),
]


@pytest.mark.parametrize(("index", "kind", "message"), BAD_INDICES, ids=[str(index) for index, *_ in BAD_INDICES])
def test_bad_indices(index: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SequenceBatch(torch.zeros(4), [3, 1])[index]


def test_a_step_of_an_empty_sequence() -> None:
    batch = SequenceBatch(torch.zeros(2), [1, 0, 1])
    for index in ((slice(None), 0), ([0, 1], -1), (1, 0)):
        with pytest.raises(
            SeqbatchIndexError, match=r"`index\[1\]` must name a step of sequence 1, which is empty; got "
        ):
            batch[index]
    assert SequenceBatch(torch.zeros(0, 3), [])[:, 5].shape == (0, 3)


# ---------------------------------------------------------------------------------------------------------------- take


@for_all_lengths(data=st.data(), features=features, dtype=dtypes, kind=st.sampled_from([torch.int64, torch.int16]))
def test_take_gathers_steps_of_each_sequence(
    lengths: list[int], data: st.DataObject, features: Any, dtype: torch.dtype, kind: torch.dtype
) -> None:
    xs = [x.detach() for x in sequences(lengths, features, dtype)]
    positions = [data.draw(st.lists(st.integers(0, len(x) - 1), max_size=4)) if len(x) else [] for x in xs]
    indices = indices_of(positions, kind)
    found = batch_of(xs, features, dtype).take(indices)
    assert_sequences(found, [x[torch.tensor(one, dtype=torch.int64)] for x, one in zip(xs, positions, strict=True)])
    assert found.structure is indices.structure
    assert found.feature_shape == features


FULL = [[0, 2], [], [0], [3, 3, 0], [1]]  # positions that sequences of LENGTHS have


@pytest.mark.parametrize(
    ("i", "position", "message"),
    [
        (0, 3, r"`indices\[0\]\[2\]` must be from 0 to 2, for the 3 steps of sequence 0; got 3\.$"),
        (4, 2, r"`indices\[4\]\[1\]` must be from 0 to 1, for the 2 steps of sequence 4; got 2\.$"),
        (
            2,
            -1,
            r"`indices\[2\]\[1\]` must be from 0 to 0, for the 1 step of sequence 2; got -1\. Positions count from ",
        ),
        (
            3,
            -100,
            r"`indices\[3\]\[3\]` must be from 0 to 3, .*; got -100\. .* the front; leave out marks of padding\.$",
        ),
        (1, 0, r"`indices\[1\]\[0\]` must be left out, because sequence 1 is empty; got 0\.$"),
    ],
)
def test_positions_beyond_their_sequence(i: int, position: int, message: str) -> None:
    positions = [[*one, position] if j == i else one for j, one in enumerate(FULL)]
    with pytest.raises(SeqbatchIndexError, match=message):
        SequenceBatch(torch.arange(10.0), LENGTHS).take(indices_of(positions))


def test_bad_indices_of_take() -> None:
    batch = SequenceBatch(torch.arange(10.0), LENGTHS)
    indices: Any = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(
        SeqbatchTypeError, match=r"`indices` must be a SequenceBatch; got a torch.Tensor. For a position "
    ):
        batch.take(indices)
    with pytest.raises(SeqbatchTypeError, match=r"`indices` must be a SequenceBatch; got a list\.$"):
        batch.take(indices.tolist())
    with pytest.raises(SeqbatchValueError, match=r"`indices` must have 5 sequences, as many as this batch; got 4\.$"):
        batch.take(indices_of(FULL[1:]))
    for dtype in (torch.bool, torch.float32, torch.complex64, torch.uint8):
        said = rf"`indices` must have an integer dtype other than uint8; got {dtype}\."
        with pytest.raises(SeqbatchTypeError, match=said):
            batch.take(indices_of(FULL).to(dtype))
    with pytest.raises(SeqbatchValueError, match=r"`indices` must have no features; got \(1,\)\.$"):
        batch.take(indices_of(FULL).map(lambda values: values[:, None]))
    with pytest.raises(SeqbatchValueError, match=r"`indices` must be on cpu, as this batch; got meta\.$"):
        batch.take(indices_of(FULL).to("meta"))


def test_take_by_positions_made_of_an_empty_list() -> None:
    nothing = SequenceBatch.from_sequences([])
    for batch in (nothing, SequenceBatch(torch.zeros(0, 3, dtype=torch.int64, device="meta"), [])):
        found = batch.take(nothing)
        assert (found.lengths, found.feature_shape) == ((), batch.feature_shape)
        assert (found.dtype, found.device) == (batch.dtype, batch.device)
    with pytest.raises(SeqbatchValueError, match=r"`indices` must have 2 sequences, as many as this batch; got 0\.$"):
        SequenceBatch(torch.zeros(3), [2, 1]).take(nothing)


def test_positions_that_vmap_maps_over() -> None:
    batch, indices = SequenceBatch(torch.arange(10.0), LENGTHS), indices_of(FULL)
    several = torch.stack([indices.values, indices.values])
    with pytest.raises(SeqbatchValueError, match=r"`indices` must be one for all that torch.func.vmap maps over"):
        transforms.vmap(lambda values: batch.take(indices.with_values(values)).values)(several)


def test_fake_tensors_have_no_positions_to_check() -> None:
    with FakeTensorMode():
        found = SequenceBatch(torch.zeros(10, 2), LENGTHS).take(SequenceBatch(torch.arange(3), [3, 0, 0, 0, 0]))
    assert found.values.shape == (3, 2)


# ------------------------------------------------------------------------------------- concat_steps, merge, split


@for_all_lengths(data=st.data(), features=features, dtype=dtypes)
def test_concat_steps_joins_sequences_end_to_end(
    lengths: list[int], data: st.DataObject, features: Any, dtype: torch.dtype
) -> None:
    number = data.draw(st.integers(0, 2))
    several = [lengths, *([data.draw(st.integers(0, 3)) for _ in lengths] for _ in range(number))]
    parts = [[x.detach() for x in sequences(one, features, dtype, seed)] for seed, one in enumerate(several)]
    found = SequenceBatch.concat_steps(batch_of(xs, features, dtype) for xs in parts)
    assert_sequences(found, [torch.cat(xs) for xs in zip(*parts, strict=True)])
    assert found.feature_shape == features
    assert found.dtype is dtype


def test_concat_steps_of_nothing() -> None:
    nothing, none = SequenceBatch.from_sequences([]), SequenceBatch(torch.zeros(0, 3, dtype=torch.int64), [])
    for batches in ([nothing, none], [none, nothing], [none]):
        found = SequenceBatch.concat_steps(batches)
        assert (found.lengths, found.feature_shape, found.dtype) == ((), (3,), torch.int64)
    assert SequenceBatch.concat_steps([nothing, nothing]).values.shape == (0,)


def test_batches_that_do_not_join() -> None:
    one = SequenceBatch(torch.zeros(3, 2), [2, 1])
    anything: Any = 3
    with pytest.raises(SeqbatchTypeError, match=r"`batches` must be an iterable of batches; got an int\."):
        SequenceBatch.concat_steps(anything)
    with pytest.raises(SeqbatchTypeError, match=r"`batches\[1\]` must be a SequenceBatch; got a torch.Tensor\."):
        SequenceBatch.concat_steps([one, one.values])  # type: ignore[list-item]
    said = r"`batches` must hold a batch, because the number of sequences is unknown without one; got none\."
    with pytest.raises(SeqbatchValueError, match=said):
        SequenceBatch.concat_steps([])
    with pytest.raises(
        SeqbatchValueError, match=r"`batches\[1\]` must have 2 sequences, as many as batches\[0\]; got 1\."
    ):
        SequenceBatch.concat_steps([one, one[:1]])
    with pytest.raises(
        SeqbatchValueError, match=r"`batches\[2\]` must have features \(2,\), as batches\[0\]; got \(\)\."
    ):
        SequenceBatch.concat_steps([one, one, one.map(lambda values: values[:, 0])])
    with pytest.raises(
        SeqbatchValueError, match=r"`batches\[1\]` must have dtype torch.float32, as batches\[0\]; got "
    ):
        SequenceBatch.concat_steps([one, one.double()])


@for_all_lengths(data=st.data(), features=features, dtype=dtypes)
def test_merge_and_split(lengths: list[int], data: st.DataObject, features: Any, dtype: torch.dtype) -> None:
    xs = [x.detach() for x in sequences(lengths, features, dtype)]
    batch = batch_of(xs, features, dtype)
    cuts = data.draw(st.lists(st.integers(0, len(xs)), max_size=4).map(sorted))
    sizes = [end - start for start, end in pairwise([0, *cuts, len(xs)])]
    rest = iter(xs)
    empty = make((0, *features), dtype)
    merged = batch.merge(torch.tensor(sizes, dtype=torch.int64) if data.draw(st.booleans()) else sizes)
    assert_sequences(merged, [torch.cat([empty, *islice(rest, size)]) for size in sizes])
    assert_sequences(merged.split(batch.lengths), xs)
    per_sequence = SequenceBatch(torch.zeros(len(xs)), sizes)  # a vector for each sequence, in the same groups
    assert batch.merge(per_sequence.structure).lengths == merged.lengths


@pytest.mark.parametrize(
    ("sizes", "kind", "message"),
    [
        ([1, 1], SeqbatchValueError, r"`sizes` must add up to 3, the sequences of this batch; got 2\.$"),
        ([2, 2], SeqbatchValueError, r"`sizes` must add up to 3, the sequences of this batch; got 4\.$"),
        ([4, -1], SeqbatchValueError, r"`sizes\[1\]` must be at least 0; got -1\.$"),
        ([1.0, 2.0], SeqbatchTypeError, r"`sizes\[0\]` must be an integer; got 1.0\.$"),
        (3, SeqbatchTypeError, r"`sizes` must be a sequence of integers or an integer Tensor; got an int\.$"),
    ],
)
def test_bad_sizes(sizes: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SequenceBatch(torch.zeros(6), [1, 2, 3]).merge(sizes)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 2], r"`lengths` must add up to 6, the steps of `values`; got 3\.$"),
        ([7, -1], r"`lengths\[1\]` must be at least 0; got -1\.$"),
        (
            [6],
            r"`lengths` must have one that ends where sequence 0 ends, after 1 step in all; got one from step 0 to 6\.",
        ),
        (
            [1, 0, 1, 3, 1],
            r"`lengths` must have one that ends where sequence 1 ends, after 3 steps in all; got one from step 2 to 5",
        ),
    ],
)
def test_bad_parts(lengths: Any, message: str) -> None:
    with pytest.raises(SeqbatchValueError, match=message):
        SequenceBatch(torch.zeros(6), [1, 2, 3]).split(lengths)


# ------------------------------------------------------------------------------------------------------ map_sequences


@for_all_lengths(features=features, dtype=dtypes)
def test_map_sequences(lengths: list[int], features: Any, dtype: torch.dtype) -> None:
    xs = [x.detach() for x in sequences(lengths, features, dtype)]

    def function(x: Tensor) -> Tensor:
        return torch.cat([x[1:], x[:0], x])[..., None] != 0

    found = batch_of(xs, features, dtype).map_sequences(function)
    assert_sequences(found, [function(x) for x in xs])
    assert found.feature_shape == (*features, 1)
    assert found.dtype is torch.bool


def test_map_sequences_of_none() -> None:
    none = SequenceBatch(torch.zeros(0, 3, dtype=torch.int64), [])
    padded = none.map_sequences(lambda x: torch.nn.functional.pad(x.float(), (0, 2, 1, 0)))  # which adds a step
    assert (padded.values.shape, padded.dtype, len(padded)) == ((0, 5), torch.float32, 0)

    def refuse(error: type[Exception]) -> Callable[[Tensor], Tensor]:
        def function(x: Tensor) -> Tensor:
            raise error("an empty sequence")

        return function

    for error in (ValueError, IndexError, RuntimeError):
        assert none.map_sequences(refuse(error)).values.shape == (0, 3)
    with pytest.raises(KeyError, match="an empty sequence"):
        none.map_sequences(refuse(KeyError))
    nothing = SequenceBatch.from_sequences([])
    assert nothing.map_sequences(nn.Linear(3, 4)).values.shape == (0,)


def test_functions_that_do_not_map_sequences() -> None:
    batch = SequenceBatch(torch.arange(6.0), [3, 0, 3])

    def fail(x: Tensor) -> Tensor:
        return x[[0]]

    with pytest.raises(IndexError) as caught:
        batch.map_sequences(fail)
    assert caught.value.__notes__ == ["The function was called with sequence 1, of shape (0,)."]
    function: Any = torch.Tensor.tolist
    with pytest.raises(SeqbatchTypeError, match=r"`function\(batch\[0\]\)` must be a Tensor; got a list"):
        batch.map_sequences(function)
    with pytest.raises(SeqbatchTypeError, match=r"`function\(empty\)` must be a Tensor; got a list"):
        batch[:0].map_sequences(function)
    with pytest.raises(
        SeqbatchValueError, match=r"`function\(batch\[0\]\)` must have shape \(steps, \*features\); got a "
    ):
        batch.map_sequences(torch.sum)
    with pytest.raises(
        SeqbatchValueError, match=r"`function\(batch\[1\]\)` must have features \(3,\), as function\(batch"
    ):
        batch.map_sequences(lambda x: x[None])


# ------------------------------------------------------------------------------------------------ gradients, transforms

OTHER = SequenceBatch(torch.arange(14.0, dtype=torch.float64).view(7, 2), [2, 1, 0, 4, 0])
# Functions of the values of a batch with the lengths 3, 0, 1, 4, 2, and the same of its sequences alone.
FUNCTIONS: dict[str, tuple[Callable[[SequenceBatch], Any], Callable[[list[Tensor]], list[Tensor]]]] = {
    "a slice": (lambda batch: batch[:, 1:], lambda xs: [x[1:] for x in xs]),
    "every other step": (lambda batch: batch[:, ::2], lambda xs: [x[::2] for x in xs]),
    "some": (lambda batch: batch[[3, 0, 3], :-1], lambda xs: [xs[i][:-1] for i in (3, 0, 3)]),
    "others": (lambda batch: batch[[4, 0], -2:], lambda xs: [xs[i][-2:] for i in (4, 0)]),
    "a step": (lambda batch: batch[[0, 2, 3, 4, 0], -1], lambda xs: [xs[i][-1] for i in (0, 2, 3, 4, 0)]),
    "first steps": (lambda batch: batch[:, :1].merge([2, 3])[:, 0], lambda xs: [xs[0][0], xs[2][0]]),
    "one": (lambda batch: batch[3, 1:3], lambda xs: [*xs[3][1:3]]),
    "take": (
        lambda batch: batch.take(indices_of(FULL)),
        lambda xs: [x[torch.tensor(one, dtype=torch.int64)] for x, one in zip(xs, FULL, strict=True)],
    ),
    "concat_steps": (
        lambda batch: SequenceBatch.concat_steps([batch, OTHER, batch]),
        lambda xs: [torch.cat([x, other, x]) for x, other in zip(xs, OTHER, strict=True)],
    ),
    "merge": (lambda batch: batch.merge([2, 3]), lambda xs: [torch.cat(xs[:2]), torch.cat(xs[2:])]),
    "split": (
        lambda batch: batch.split([1, 2, 1, 4, 1, 1]),
        lambda xs: [xs[0][:1], xs[0][1:], *xs[2:4], *xs[4][:, None]],
    ),
    "map_sequences": (
        lambda batch: batch.map_sequences(lambda x: x.cumsum(0)[1:]),
        lambda xs: [x.cumsum(0)[1:] for x in xs],
    ),
}


def values_of(name: str) -> Callable[[Tensor], Tensor]:
    def call(values: Tensor) -> Tensor:
        found = FUNCTIONS[name][0](SequenceBatch(values, LENGTHS))
        tensor: Tensor = found.values if isinstance(found, SequenceBatch) else found
        return tensor**2

    return call


def alone(name: str, values: Tensor) -> Tensor:
    parts = FUNCTIONS[name][1](list(values.split(LENGTHS)))
    return torch.cat([part.reshape(-1, *values.shape[1:]) for part in parts]) ** 2


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name: str) -> None:
    values = make((10, 2), torch.float64).requires_grad_()
    found, wanted = values_of(name)(values), alone(name, values)
    assert_close(found, wanted)
    weights = torch.randn_like(found)
    assert_close(torch.autograd.grad(found, values, weights), torch.autograd.grad(wanted, values, weights))
    assert torch.autograd.gradcheck(values_of(name), values)
    assert torch.autograd.gradgradcheck(values_of(name), values)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms(name: str) -> None:
    values, tangent = make((3, 10, 2), torch.float64), make((10, 2), torch.float64, 1)
    call = values_of(name)
    assert_close(transforms.vmap(call)(values), torch.stack([call(one) for one in values]))
    wanted = transforms.jvp(lambda values: alone(name, values), (values[0],), (tangent,))
    assert_close(transforms.jvp(call, (values[0],), (tangent,)), wanted)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(call(forward_ad.make_dual(values[0], tangent)))
    assert_close((dual.primal, dual.tangent), wanted)
    gradients = transforms.vmap(transforms.grad(lambda values: call(values).pow(2).sum()))(values)
    for one, found in zip(values, gradients, strict=True):
        leaf = one.clone().requires_grad_()
        assert_close(found, torch.autograd.grad(alone(name, leaf).pow(2).sum(), leaf)[0])


def test_what_is_made_in_inference_mode_serves_training() -> None:
    batch = SequenceBatch(torch.randn(10, 2), LENGTHS)
    with torch.inference_mode():
        assert batch[:, 1:].merge([2, 3]).lengths == (2, 4)
    values = batch.values.clone().requires_grad_()
    encode(nn.LSTM(2, 3), batch.with_values(values)[:, 1:]).values.sum().backward()
    assert values.grad is not None
