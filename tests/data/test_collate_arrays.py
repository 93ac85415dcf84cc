"""Arrays of NumPy in samples: whatever their memory is like, without a warning, and bit by bit."""

from typing import Any

import numpy as np
import pytest
import torch
from laws import assert_same_bits

from seqbatch import SequenceBatch
from seqbatch.data import collate_sequences


def array(dtype: Any = np.float32) -> Any:
    return np.arange(12).reshape(4, 3).astype(dtype)


def unwritable() -> Any:
    made = array()
    made.flags.writeable = False
    return made


RECORDS: Any = np.array([(0.0, 1), (2.0, 3)], dtype=[("pitch", "f4"), ("tag", "i1")])


@pytest.mark.parametrize(
    "given",
    [
        array(),
        array(np.uint8),
        array(np.bool_),
        array(np.complex128),
        array().T,
        array()[::-1],
        array()[:1][::-1],
        unwritable(),
        np.broadcast_to(array()[0], (5, 3)),
        RECORDS["pitch"],
        np.zeros((0, 3)),
    ],
)
def test_arrays_come_in(given: Any) -> None:
    batch = collate_sequences([{"x": given}, {"x": torch.from_numpy(given.copy())}])["x"]
    assert isinstance(batch, SequenceBatch)
    for found in batch:
        assert_same_bits(found, torch.from_numpy(given.copy()))


def test_arrays_that_are_stacked_and_numbers_of_numpy() -> None:
    samples = [{"x": np.ones(3), "y": np.int16(i), "z": np.float64(i), "name": np.str_("a")} for i in range(2)]
    batch = collate_sequences(
        [*samples, {"x": torch.ones(3).double(), "y": np.array(2, np.int16), "z": 2.0, "name": "b"}], sequences=[]
    )
    assert_same_bits(batch["x"], torch.ones(3, 3).double())
    assert_same_bits(batch["y"], torch.arange(3, dtype=torch.int16))
    assert_same_bits(batch["z"], torch.arange(3).double())
    assert batch["name"] == ["a", "a", "b"]


def test_what_offers_an_array_comes_in_as_one() -> None:
    class Column:  # as a column of a table of pandas
        def __array__(self) -> Any:
            return np.arange(3.0)

    batch: Any = collate_sequences([(Column(),)])[0]
    assert batch.lengths == (3,)
