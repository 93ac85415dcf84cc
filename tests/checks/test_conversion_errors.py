"""What conversions refuse, and how they say it."""

import re
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch


@pytest.mark.parametrize(
    ("sequences", "kind", "message"),
    [
        (torch.zeros(2, 3), SeqbatchTypeError, r"`sequences` must be several Tensors; got a torch.Tensor. Call from_p"),
        (
            pack_sequence([torch.zeros(2, 3)]),
            SeqbatchTypeError,
            r"`sequences` must be several Tensors; got a torch.nn.utils.rnn.PackedSequence. Call from_packed.",
        ),
        (3, SeqbatchTypeError, r"`sequences` must be an iterable of Tensors; got an int."),
        ([torch.zeros(2), [1, 2]], SeqbatchTypeError, r"`sequences\[1\]` must be a Tensor; got a list. Make it one by"),
        ("ab", SeqbatchTypeError, r"`sequences\[0\]` must be a Tensor; got a str."),
        (
            [torch.tensor(1.0)],
            SeqbatchValueError,
            r"`sequences\[0\]` must have shape \(steps, \*features\); got a Tensor",
        ),
        (
            [torch.zeros(2, 5), torch.zeros(3, 5), torch.zeros(3, 4)],
            SeqbatchValueError,
            r"`sequences\[2\]` must have features \(5,\), as sequences\[0\]; got \(4,\).",
        ),
        (
            [torch.zeros(2), torch.zeros(3, dtype=torch.float64)],
            SeqbatchValueError,
            r"`sequences\[1\]` must have dtype torch.float32, as sequences\[0\]; got torch.float64.",
        ),
        (
            [torch.zeros(2), torch.zeros(3, device="meta")],
            SeqbatchValueError,
            r"`sequences\[1\]` must have device cpu, as sequences\[0\]; got meta.",
        ),
        ([torch.zeros(2).to_sparse()], SeqbatchTypeError, r"`sequences\[0\]` must be a dense Tensor; got layout"),
        (
            [SequenceBatch(torch.zeros(2), [2]).to_nested()],
            SeqbatchTypeError,
            r"`sequences\[0\]` must be a dense Tensor; got a nested Tensor.",
        ),
    ],
)
def test_from_sequences_refuses(sequences: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SequenceBatch.from_sequences(sequences)


PADDED = torch.zeros(2, 3, 5)
GOOD_MASK = torch.ones(2, 3, dtype=torch.bool)
HOLE = torch.tensor([[True, True, False], [True, False, True]])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: SequenceBatch.from_padded(PADDED, [3, 4], batch_first=True),
            SeqbatchValueError,
            r"`lengths\[1\]` must be at most 3, the time axis; got 4.",
        ),
        (
            lambda: SequenceBatch.from_padded(PADDED, [3, 3], batch_first=False),
            SeqbatchValueError,
            r"`lengths` must have shape \(3,\), as the batch; got \(2,\).",
        ),
        (
            lambda: SequenceBatch.from_padded(PADDED, [3, -1], batch_first=True),
            SeqbatchValueError,
            r"`lengths\[1\]` must be at least 0; got -1.",
        ),
        (
            lambda: SequenceBatch.from_padded(PADDED, [3, 2.0], batch_first=True),  # type: ignore[list-item]  # wrong
            SeqbatchTypeError,
            r"`lengths\[1\]` must be an integer; got 2.0.",
        ),
        (
            lambda: SequenceBatch.from_padded(PADDED, torch.tensor([3.0, 2.0]), batch_first=True),
            SeqbatchTypeError,
            r"`lengths` must be integers, as a Tensor of one axis and an integer dtype; got shape \(2,\) and",
        ),
        (
            lambda: SequenceBatch.from_padded(PADDED, [3, 2], batch_first=1),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`batch_first` must be True or False; got 1.",
        ),
        (
            lambda: SequenceBatch.from_padded(PADDED, [3, 2], batch_first=True, padding_side="both"),  # type: ignore[arg-type]  # wrong
            SeqbatchValueError,
            r"`padding_side` must be 'right' or 'left'; got 'both'.",
        ),
        (
            lambda: SequenceBatch.from_padded(PADDED[0, 0], [3], batch_first=True),
            SeqbatchValueError,
            r"`padded` must have shape \(batch, time, \*features\); got \(5,\).",
        ),
        (
            lambda: SequenceBatch.from_padded(PADDED[0, 0], [3], batch_first=False),
            SeqbatchValueError,
            r"`padded` must have shape \(time, batch, \*features\); got \(5,\).",
        ),
        (
            lambda: SequenceBatch.from_mask(PADDED, GOOD_MASK.int(), batch_first=True),
            SeqbatchTypeError,
            r"`mask` must be a bool Tensor, True on real steps; got torch.int32. If 1 marks a step and 0 padding, "
            r"pass mask.bool\(\).$",
        ),
        (
            lambda: SequenceBatch.from_mask(PADDED, GOOD_MASK.T.long(), batch_first=False),
            SeqbatchTypeError,
            r"`mask` must be a bool Tensor, True on real steps; got torch.int64. If 1 marks a step and 0 padding, "
            r"pass mask.bool\(\).$",
        ),
        (
            lambda: SequenceBatch.from_mask(PADDED, GOOD_MASK.float(), batch_first=True),
            SeqbatchTypeError,
            r"`mask` must be a bool Tensor, True on real steps; got torch.float32. If 1 marks a step and 0 padding, "
            r"pass mask.bool\(\). If it is 0 on steps and negative on padding, pass mask == 0.$",
        ),
        (
            lambda: SequenceBatch.from_mask(PADDED, GOOD_MASK.int().numpy(), batch_first=True),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`mask` must be a Tensor; got a numpy.ndarray. Make it one by torch.as_tensor.$",
        ),
        (
            lambda: SequenceBatch.from_mask(PADDED, GOOD_MASK.int().tolist(), batch_first=True),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`mask` must be a Tensor; got a list. Make it one by torch.as_tensor.$",
        ),
        (
            lambda: SequenceBatch.from_mask(PADDED, GOOD_MASK.T, batch_first=True),
            SeqbatchValueError,
            r"`mask` must have shape \(2, 3\), as `padded`; got \(3, 2\).",
        ),
        (
            lambda: SequenceBatch.from_mask(PADDED, HOLE, batch_first=True),
            SeqbatchValueError,
            r"`mask` must have its True steps side by side in each sequence; got a hole in sequence 1.",
        ),
        (
            lambda: SequenceBatch.from_mask(PADDED.transpose(0, 1), HOLE.T, batch_first=False),
            SeqbatchValueError,
            r"`mask` must have its True steps side by side in each sequence; got a hole in sequence 1.",
        ),
        (
            lambda: SequenceBatch.from_packed([PADDED]),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`packed` must be a PackedSequence; got a list.",
        ),
        (
            lambda: SequenceBatch.from_nested(PADDED),
            SeqbatchTypeError,
            r"`nested` must be a nested Tensor; got a torch.Tensor.",
        ),
        (
            lambda: SequenceBatch.from_nested(SequenceBatch(PADDED[0], [1, 2]).to_nested().transpose(1, 2)),
            SeqbatchValueError,
            r"`nested` must be of unequal length in its second axis; got \(2, 5, ",
        ),
        (
            lambda: SequenceBatch.from_offsets(torch.zeros(3), [1, 3]),
            SeqbatchValueError,
            r"`offsets` must start with 0; got 1.",
        ),
        (
            lambda: SequenceBatch.from_offsets(torch.zeros(3), []),
            SeqbatchValueError,
            r"`offsets` must start with 0; got no offsets.",
        ),
        (
            lambda: SequenceBatch.from_offsets(torch.zeros(3), [0, 2]),
            SeqbatchValueError,
            r"`offsets` must end with 3, the steps of `values`; got 2.",
        ),
        (
            lambda: SequenceBatch.from_offsets(torch.zeros(3), [0, 2, 1, 3]),
            SeqbatchValueError,
            r"`offsets\[2\]` must be at least 2; got 1.",
        ),
        (
            lambda: SequenceBatch(torch.zeros(3), [3, 0]).to_packed(),
            SeqbatchValueError,
            r"`sequences\[1\]` must have a step to be packed; got 0 steps. PyTorch's packed form cannot hold a",
        ),
        (
            lambda: SequenceBatch(torch.zeros(3), [3]).to_padded(batch_first=True, total_length=2),
            SeqbatchValueError,
            r"`total_length` must be at least 3, the longest sequence; got 2.",
        ),
        (
            lambda: SequenceBatch(torch.zeros(3), [3]).mask(batch_first=True, total_length=3.5),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`total_length` must be an integer; got 3.5.",
        ),
    ],
)
def test_bad_arguments(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def padded(dtype: torch.dtype, value: Any) -> Tensor:
    return SequenceBatch(torch.zeros(3, dtype=dtype), [2, 1]).to_padded(batch_first=True, padding_value=value)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1e39, torch.float32),
        (70_000, torch.float16),
        (-65_520.0, torch.float16),
        (1e39, torch.bfloat16),
        (-1e39, torch.bfloat16),
        (449, torch.float8_e4m3fn),
        (-449, torch.float8_e4m3fn),
        (float("inf"), torch.float8_e4m3fn),
        (70_000, torch.float8_e5m2),
        (241, torch.float8_e4m3fnuz),
        (float("-inf"), torch.float8_e5m2fnuz),
        (1e39j, torch.complex64),
        (10**400, torch.float64),
        (np.float64(1e39), torch.float32),
        (Fraction(1, 2), torch.float32),
        (1j, torch.float32),
        (0.5, torch.int64),
        (np.float16(0.5), torch.int64),
        (float("nan"), torch.int64),
        (300, torch.uint8),
        (-1, torch.uint8),
        (2, torch.bool),
    ],
)
def test_padding_that_the_dtype_cannot_hold(value: Any, dtype: torch.dtype) -> None:
    found = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
    message = rf"`padding_value` must be a value of {dtype}; got {re.escape(found)}\.$"
    with pytest.raises(SeqbatchValueError, match=message):
        padded(dtype, value)


@pytest.mark.parametrize(("value", "found"), [("0", "a str"), (None, "None"), (torch.tensor(0.0), r"a torch\.Tensor")])
def test_padding_that_is_not_a_number(value: Any, found: str) -> None:
    with pytest.raises(SeqbatchTypeError, match=rf"`padding_value` must be a number; got {found}\."):
        padded(torch.float32, value)


def test_nested_of_strided_layout_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this layout is a prototype
        nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.strided)
    message = r"`nested` must have layout torch.jagged; got torch.strided. Make it with layout=torch.jagged."
    with pytest.raises(SeqbatchTypeError, match=message):
        SequenceBatch.from_nested(nested)
