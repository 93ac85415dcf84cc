"""PyTorch's packed form: what it is given, what is taken, and what of it is refused."""

from typing import Any

import pytest
import torch
from laws import assert_same_bits
from strategies import features, for_all_lengths, sequences
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch, encode


@for_all_lengths(features=features.filter(lambda shape: 0 not in shape))
def test_packed_is_what_pack_sequence_gives(lengths: list[int], features: Any) -> None:
    xs = [x for x in sequences(lengths, features) if len(x)] or sequences([1], features)
    packed, theirs = SequenceBatch.from_sequences(xs).to_packed(), pack_sequence(xs, enforce_sorted=False)
    assert_same_bits(pad_packed_sequence(packed)[0], pad_packed_sequence(theirs)[0])
    assert_same_bits(packed.batch_sizes, theirs.batch_sizes)
    assert_close(SequenceBatch.from_packed(theirs).to_sequences(), xs)
    ordered = pack_sequence(sorted(xs, key=len, reverse=True))
    assert ordered.sorted_indices is None
    assert_close(SequenceBatch.from_packed(ordered).to_sequences(), sorted(xs, key=len, reverse=True))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_parts_of_any_integer_dtype(dtype: torch.dtype) -> None:
    xs = [torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([4, 5, 6])]
    packed = pack_sequence(xs, enforce_sorted=False)
    parts = [part.to(dtype) for part in packed[1:] if part is not None]
    taken = SequenceBatch.from_packed(PackedSequence(packed.data, *parts))
    assert_close(taken.to_sequences(), xs)
    assert_close(taken.to_packed().data, packed.data)

    ordered = pack_sequence(sorted(xs, key=len, reverse=True))
    taken = SequenceBatch.from_packed(PackedSequence(ordered.data, ordered.batch_sizes.to(dtype)))
    assert_close(taken.to_sequences(), sorted(xs, key=len, reverse=True))


def index(*numbers: float, **options: Any) -> Tensor:
    return torch.tensor(numbers, **options)


def packed(data: Any, sizes: Any, first: Any = None, back: Any = None) -> PackedSequence:
    """Make one of any parts, past the checks of PyTorch; its data may be given by the number of steps."""
    return PackedSequence(torch.zeros(3), index(2, 1))._replace(
        data=torch.zeros(data) if isinstance(data, int) else data,
        batch_sizes=sizes,
        sorted_indices=first,
        unsorted_indices=back,
    )


NO_INDEX = r"must be integers, as a Tensor of one axis and an integer dtype; got shape"


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (packed(3, index(1, 2)), SeqbatchValueError, r"`packed\.batch_sizes` must never rise; got \[1, 2\]\."),
        (
            packed(3, index(1, 2, dtype=torch.uint8)),
            SeqbatchValueError,
            r"`packed\.batch_sizes` must never rise; got \[1, 2\]\.",
        ),
        (
            packed(4, index(2, 1)),
            SeqbatchValueError,
            r"`packed\.batch_sizes` must add up to 4, the steps of its data; got 3\.",
        ),
        (packed(3, index(3, 0)), SeqbatchValueError, r"`packed\.batch_sizes` must be at least 1 each; got \[3, 0\]\."),
        (packed(3, index(4, -1)), SeqbatchValueError, r"`packed\.batch_sizes` must be at least 1 each; got \[4, -1\]"),
        (packed(3, index(2.0, 1.0)), SeqbatchTypeError, rf"`packed\.batch_sizes` {NO_INDEX} \(2,\) and torch\.float"),
        (packed(3, index(2, 1)[None]), SeqbatchTypeError, rf"`packed\.batch_sizes` {NO_INDEX} \(1, 2\) and torch\.int"),
        (packed(3, [2, 1]), SeqbatchTypeError, r"`packed\.batch_sizes` must be a Tensor; got a list\. Make it one by"),
        (packed(3, None), SeqbatchTypeError, r"`packed\.batch_sizes` must be a Tensor; got None\."),
        (
            packed(torch.tensor(1.0), index(2, 1)),
            SeqbatchValueError,
            r"`packed\.data` must have shape \(steps, \*features\); got a Tensor of no dimension\.",
        ),
        (
            packed(None, index(2, 1)),
            SeqbatchTypeError,
            r"`packed\.data` must be a Tensor; got None\.",
        ),
        (
            packed(3, index(2, 1), None, index(1, 0)),
            SeqbatchValueError,
            r"`packed\.sorted_indices` must name each of 2 sequences once; got None\.",
        ),
        (
            packed(3, index(2, 1), index(1, 0)),
            SeqbatchValueError,
            r"`packed\.unsorted_indices` must name each of 2 sequences once; got None\.",
        ),
        (
            packed(3, index(2, 1), index(0, 0), index(0, 1)),
            SeqbatchValueError,
            r"`packed\.sorted_indices` must name each of 2 sequences once; got \[0, 0\]\.",
        ),
        (
            packed(3, index(2, 1), index(0, 1), index(0, 1, 2)),
            SeqbatchValueError,
            r"`packed\.unsorted_indices` must name each of 2 sequences once; got \[0, 1, 2\]\.",
        ),
        (
            packed(3, index(2, 1), index(0, 1), index(0, -1)),
            SeqbatchValueError,
            r"`packed\.unsorted_indices` must name each of 2 sequences once; got \[0, -1\]\.",
        ),
        (
            packed(3, index(2, 1), index(0.0, 1.0), index(0, 1)),
            SeqbatchTypeError,
            rf"`packed\.sorted_indices` {NO_INDEX} \(2,\) and torch\.float32\.",
        ),
        (
            packed(3, index(2, 1), index(0, 1), [0, 1]),
            SeqbatchTypeError,
            r"`packed\.unsorted_indices` must be a Tensor; got a list\.",
        ),
        (
            packed(6, index(3, 2, 1), index(1, 2, 0), index(1, 2, 0)),
            SeqbatchValueError,
            r"`packed\.unsorted_indices` must undo its sorted_indices, \[1, 2, 0\]; got \[1, 2, 0\]\.",
        ),
    ],
)
def test_bad_parts_of_a_packed_sequence(given: PackedSequence, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SequenceBatch.from_packed(given)
    with pytest.raises(kind, match=message):
        encode(nn.Tanh(), given)
