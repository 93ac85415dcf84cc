"""Indices of a SequenceBatch: those of a list, and of a Tensor; and what of a `collections.abc.Sequence` it can do."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from strategies import for_all_lengths, make, sequences
from torch import Tensor
from torch.testing import assert_close

from seqbatch import SeqbatchIndexError, SeqbatchTypeError, SeqbatchValueError, SequenceBatch


@for_all_lengths(data=st.data())
def test_indexing_is_that_of_a_list(lengths: list[int], data: st.DataObject) -> None:
    xs = sequences(lengths, (2,))
    batch = SequenceBatch.from_sequences(xs)
    bound = max(len(xs), 1)
    start, stop = (data.draw(st.none() | st.integers(-bound - 1, bound + 1)) for _ in range(2))
    step = data.draw(st.sampled_from([None, 1, 2, -1, -2]))
    assert_close(batch[start:stop:step].to_sequences(), xs[start:stop:step])
    if xs:
        chosen = data.draw(st.lists(st.integers(-len(xs), len(xs) - 1), max_size=6))
        wanted = [xs[i] for i in chosen]
        assert_close(batch[chosen].to_sequences(), wanted)
        assert_close(batch[torch.tensor(chosen, dtype=torch.int64)].to_sequences(), wanted)
        i = data.draw(st.integers(-len(xs), len(xs) - 1))
        assert_close(batch[i], xs[i])
        assert_close(torch.as_tensor(batch[torch.tensor(i)]), xs[i])
    flags = [data.draw(st.booleans()) for _ in xs]
    kept = [x for x, keep in zip(xs, flags, strict=True) if keep]
    assert_close(batch[flags].to_sequences(), kept)
    assert_close(batch[torch.tensor(flags, dtype=torch.bool)].to_sequences(), kept)


NUMPY: list[tuple[Any, list[int]]] = [
    (np.array([3, -4]), [3, 0]),
    (np.array([1, 1], dtype=np.int16), [1, 1]),
    (np.array([2, 0], dtype=np.uint32), [2, 0]),
    (np.array([], dtype=np.int64), []),
    (np.flatnonzero(np.array([0, 1, 0, 1])), [1, 3]),
    (np.arange(4)[::-2], [3, 1]),
    (np.array([False, True, True, False]), [1, 2]),
    (np.zeros(4, dtype=bool), []),
    (np.broadcast_to(np.array([True]), 4), [0, 1, 2, 3]),  # which cannot be written to
    ([np.int64(2), np.int64(0), -1], [2, 0, 3]),
    ([np.True_, np.False_, np.False_, np.True_], [0, 3]),
    ([np.True_, False, False, True], [0, 3]),
]


@pytest.mark.parametrize(("index", "meant"), NUMPY, ids=repr)
def test_indices_of_numpy(index: Any, meant: list[int]) -> None:
    xs = sequences([2, 0, 3, 1], (2,))
    assert_close(SequenceBatch.from_sequences(xs)[index].to_sequences(), [xs[i] for i in meant])


@pytest.mark.parametrize("index", [np.int64(-2), np.uint8(2), np.array(2), np.arange(4)[2]], ids=repr)
def test_one_index_of_numpy(index: Any) -> None:
    xs = sequences([2, 0, 3, 1], (2,))
    assert_close(torch.as_tensor(SequenceBatch.from_sequences(xs)[index]), xs[2])


MASKED: Any = np.ma.array([1, 0], mask=[1, 0])  # type: ignore[no-untyped-call]  # it has no types
BAD_NUMPY: list[tuple[Any, type[Exception], str]] = [
    (np.array([0, 5]), SeqbatchIndexError, r"`index\[1\]` must be from -2 to 1, for 2 sequences; got 5\."),
    (np.int64(5), SeqbatchIndexError, r"`index` must be from -2 to 1, for 2 sequences; got 5\."),
    (np.array([True]), SeqbatchIndexError, r"`index` must have shape \(2,\), as it is a mask; got \(1,\)\."),
    (np.ones((2, 2), dtype=bool), SeqbatchIndexError, r"`index` must have shape \(2,\), .*; got \(2, 2\)\."),
    (np.ones((1, 2), dtype=int), SeqbatchTypeError, r"`index` must be integers, as a Tensor .*; got shape \(1, 2\)"),
    (np.array([1.0]), SeqbatchTypeError, r"`index` must be integers, as a Tensor .* and torch\.float64"),
    (np.array([1, 0], dtype=np.uint8), SeqbatchTypeError, r"`index` must say whether it is a mask; got torch\.uint8\."),
    (np.array(["a"]), SeqbatchTypeError, r"`index` must have a dtype that torch has; got <U1\. Call its astype\."),
    (
        MASKED,
        SeqbatchTypeError,
        r"`index` must be an array without a mask; got .*\. Call its",
    ),
    (np.True_, SeqbatchTypeError, r"`index` must be an integer; got np\.True_\."),
    (np.array(True), SeqbatchTypeError, r"`index` must be an integer; got array\(True\)\."),
    (np.float64(1), SeqbatchTypeError, r"`index` must be an integer; got np\.float64\(1\.0\)\."),
    ([1, np.True_], SeqbatchTypeError, r"`index\[1\]` must be an integer; got np\.True_\."),
    ([True, np.int64(1)], SeqbatchTypeError, r"`index\[0\]` must be an integer; got True\."),
    ([np.True_, 1], SeqbatchTypeError, r"`index\[0\]` must be an integer; got np\.True_\."),
]


@pytest.mark.parametrize(("index", "kind", "message"), BAD_NUMPY)
def test_bad_index_of_numpy(index: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SequenceBatch(torch.zeros(3), [2, 1])[index]


@pytest.mark.parametrize("index", [[2, 0], [0, 0, 1], slice(1, 3), 1, [True, False, True]])
def test_gradients_through_indexing(index: Any) -> None:
    def take(values: Tensor) -> Tensor:
        taken = SequenceBatch(values, [2, 0, 3])[index]
        return taken**2 if isinstance(taken, Tensor) else taken.values**2

    values = make((5, 2), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(take, values)
    assert torch.autograd.gradgradcheck(take, values)


@pytest.mark.parametrize(
    ("index", "kind", "message"),
    [
        (2, SeqbatchIndexError, r"`index` must be from -2 to 1, for 2 sequences; got 2."),
        (-3, IndexError, r"`index` must be from -2 to 1, for 2 sequences; got -3."),
        ([0, 5], SeqbatchIndexError, r"`index\[1\]` must be from -2 to 1, for 2 sequences; got 5."),
        (torch.tensor([0, 5]), SeqbatchIndexError, r"`index\[1\]` must be from -2 to 1, for 2 sequences; got 5."),
        ([True], SeqbatchIndexError, r"`index` must have shape \(2,\), as it is a mask; got \(1,\)."),
        (torch.ones(2, 2, dtype=torch.bool), SeqbatchIndexError, r"`index` must have shape \(2,\), .*; got \(2, 2\)."),
        (1.0, SeqbatchTypeError, r"`index` must be an integer; got 1.0."),
        (True, SeqbatchTypeError, r"`index` must be an integer; got True."),
        (torch.tensor(True), SeqbatchTypeError, r"`index` must be an integer; got tensor\(True\)."),
        ("a", SeqbatchTypeError, r"`index` must be an integer; got 'a'."),
        ([0, 1.0], SeqbatchTypeError, r"`index\[1\]` must be an integer; got 1.0."),
        (
            torch.tensor([1.0]),
            SeqbatchTypeError,
            r"`index` must be integers, as a Tensor .*; got shape \(1,\) and torch",
        ),
        (
            (0, 1, 2),
            SeqbatchTypeError,
            r"`index` must be one index, of sequences, or two, of sequences and of steps; got a tuple of 3.",
        ),
        (
            torch.tensor([1, 0], dtype=torch.uint8),
            SeqbatchTypeError,
            r"`index` must say whether it is a mask; got torch.uint8. Call .bool\(\) for a mask, .long\(\) for ind",
        ),
        (
            slice(0.5, None),
            SeqbatchTypeError,
            r"`index` must be a slice of integers, its step not 0; got slice\(0.5, None, None\).",
        ),
        (
            slice(None, None, 0),
            SeqbatchTypeError,
            r"`index` must be a slice of integers, its step not 0; got slice\(None, None, 0\).",
        ),
    ],
)
def test_bad_index(index: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SequenceBatch(torch.zeros(3), [2, 1])[index]


def test_index_into_nothing() -> None:
    with pytest.raises(SeqbatchIndexError, match=r"`index` must name a sequence, of which there are none; got 0."):
        SequenceBatch.from_sequences([])[0]


def test_it_is_a_sequence_of_tensors() -> None:
    xs = [torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([1, 2])]
    batch = SequenceBatch.from_sequences(xs)
    assert isinstance(batch, Sequence)
    assert xs[1] in batch
    assert torch.tensor([4]) not in batch
    assert 3 not in batch
    assert batch.count(xs[0]) == 2
    assert batch.index(xs[0]) == 0
    assert batch.index(xs[0], 1) == 2
    assert_close(list(reversed(batch)), xs[::-1])
    with pytest.raises(SeqbatchValueError, match=r"`sequence` must equal one of the batch; got a torch.Tensor."):
        batch.index(xs[1], 2, 3)


@pytest.mark.parametrize(
    "other",
    [
        SequenceBatch(torch.tensor([1, 2, 3]), [2, 1]).to_nested(),
        torch.tensor([1, 2], device="meta"),
        torch.tensor([1, 2]).double(),
        torch.tensor([1, 2], dtype=torch.int32),
        torch.tensor([1, 2]).to_sparse(),
        torch.tensor([[1, 2]]),
        torch.tensor([1]),
        [1, 2],
        None,
    ],
    ids=repr,
)
def test_what_is_another_kind_of_tensor_is_not_in_it(other: Any) -> None:
    batch = SequenceBatch(torch.tensor([1, 2, 3]), [2, 1])
    assert other not in batch
    assert batch.count(other) == 0
    with pytest.raises(SeqbatchValueError, match=r"`sequence` must equal one of the batch; got (a torch|a list|None)"):
        batch.index(other)
