"""What BucketBatchSampler refuses when it is made, and in what words."""

import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch

import seqbatch.data
from seqbatch import SeqbatchTypeError, SeqbatchValueError
from seqbatch.data._bucket_sampler import BucketBatchSampler


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, ValueError, "`batch_size` must be given, or max_steps; got neither."),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1; got 0."),
        ({"batch_size": 2.0}, TypeError, "`batch_size` must be an integer; got 2.0."),
        ({"max_steps": 0}, ValueError, "`max_steps` must be at least 1; got 0."),
        (
            {"max_steps": 3},
            ValueError,
            "`lengths[1]` must be at most max_steps, 3; got 4. Pass a larger max_steps, or leave the sequence out.",
        ),
        ({"batch_size": 2, "pool": 0}, ValueError, "`pool` must be at least 1; got 0."),
        ({"batch_size": 2, "seed": None}, TypeError, "`seed` must be an integer; got None."),
        ({"batch_size": 2, "rank": 0}, ValueError, "`world_size` must be given with rank; got None."),
        ({"batch_size": 2, "world_size": 2}, ValueError, "`rank` must be given with world_size; got None."),
        ({"batch_size": 2, "rank": 2, "world_size": 2}, ValueError, "`rank` must be less than world_size, 2; got 2."),
        ({"batch_size": 2, "rank": -1, "world_size": 2}, ValueError, "`rank` must be at least 0; got -1."),
        ({"batch_size": 2, "rank": 0, "world_size": 0}, ValueError, "`world_size` must be at least 1; got 0."),
        (
            {"batch_size": 2, "rank": 0, "world_size": 4},
            ValueError,
            "`lengths` must be at least 4, one for each process; got 3.",
        ),
        (
            {"batch_size": 1, "rank": 0, "world_size": 2},
            ValueError,
            "`lengths` must fit into as many batches, none empty, for each of 2 processes; got 3 sequences, "
            "nearly each a batch by itself. Pass a larger batch_size or max_steps.",
        ),
    ],
)
def test_arguments_that_it_refuses(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    error = SeqbatchValueError if kind is ValueError else SeqbatchTypeError
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        BucketBatchSampler([1, 4, 2], **options)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([], "`lengths` must hold the length of one sequence or more; got none."),
        ([1, -2], "`lengths[1]` must be at least 0; got -2."),
        ([1, 2**63], f"`lengths[1]` must be less than {2**61}, for 2 sequences; got {2**63}."),
        ([1, 2**61, 3], f"`lengths[1]` must be less than {2**62 // 3}, for 3 sequences; got {2**61}."),
        (
            np.array([1, 2]),
            "`lengths` must be a sequence of integers or an integer Tensor; got a numpy.ndarray. Call its tolist.",
        ),
        ([1, 2.5], "`lengths[1]` must be an integer; got 2.5."),
        (7, "`lengths` must be a sequence of integers or an integer Tensor; got an int."),
        (
            torch.ones(2),
            "`lengths` must be integers, as a Tensor of one axis and an integer dtype; "
            "got shape (2,) and torch.float32.",
        ),
    ],
)
def test_lengths_that_it_refuses(lengths: Any, message: str) -> None:
    with pytest.raises((SeqbatchValueError, SeqbatchTypeError), match=f"^{re.escape(message)}$"):
        BucketBatchSampler(lengths, batch_size=2)


def test_public_classes_hide_the_layout_of_files() -> None:
    for kind in (seqbatch.data.BucketBatchSampler, seqbatch.data.TrackedLoader, seqbatch.data.Chunk):
        assert kind.__module__ == "seqbatch.data"
        assert pickle.loads(pickle.dumps(kind)) is kind
