"""Round trips through every layout, for every dtype and every pattern of lengths; and what conversions refuse."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from strategies import COMPLEX, DTYPES, FLOATS, features, for_all_lengths, make, sequences
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence, pad_sequence
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch

ROUND_TRIPS = ["padded", "masked", "packed", "nested", "offsets", "sequences"]
dtypes, sides, flags = st.sampled_from(DTYPES), st.sampled_from(["right", "left"]), st.booleans()


def there_and_back(batch: SequenceBatch, layout: str, **options: Any) -> SequenceBatch:
    """Bring a batch into a layout and back."""
    if layout == "padded":
        return SequenceBatch.from_padded(batch.to_padded(**options), batch.lengths, **without_length(options))
    if layout == "masked":
        mask = batch.mask(**options)
        return SequenceBatch.from_mask(batch.to_padded(**options), mask, batch_first=options["batch_first"])
    if layout == "packed":
        kept = [i for i, length in enumerate(batch.lengths) if length]
        unpacked = SequenceBatch.from_packed(batch[kept].to_packed()).to_sequences()
        return SequenceBatch.from_sequences(
            [unpacked.pop(0) if length else x for x, length in zip(batch, batch.lengths, strict=True)]
        )
    if layout == "nested":
        return SequenceBatch.from_nested(batch.to_nested())
    if layout == "offsets":
        return SequenceBatch.from_offsets(batch.values, batch.offsets)
    return SequenceBatch.from_sequences(batch.to_sequences())


def without_length(options: dict[str, Any]) -> dict[str, Any]:
    return {name: option for name, option in options.items() if name != "total_length"}


def equal(one: Tensor, other: Tensor) -> None:
    """Compare bit for bit, also dtypes that PyTorch cannot compare."""
    assert one.dtype is other.dtype
    assert one.shape == other.shape
    if not one.is_complex():
        one, other = one.view(torch.uint8), other.view(torch.uint8)
    assert torch.equal(one, other)


@for_all_lengths(
    features=features,
    dtype=dtypes,
    layout=st.sampled_from(ROUND_TRIPS),
    side=sides,
    batch_first=flags,
    extra=st.integers(0, 2),
)
def test_every_round_trip_is_exact(
    lengths: list[int], features: Any, dtype: torch.dtype, layout: str, side: str, batch_first: bool, extra: int
) -> None:
    values = make((sum(lengths), *features), dtype)
    batch = SequenceBatch(values, lengths)
    if not lengths and layout in ("packed", "sequences"):
        return  # features of no sequences are not to be had from a list
    options = {"batch_first": batch_first, "padding_side": side, "total_length": batch.max_length + extra}
    back = there_and_back(batch, layout, **options)
    assert back.lengths == batch.lengths == tuple(lengths)
    equal(back.values, values)


@for_all_lengths(
    dtype=st.sampled_from([*FLOATS, *COMPLEX]),
    layout=st.sampled_from(ROUND_TRIPS),
    side=sides,
    batch_first=flags,
)
def test_gradients_of_every_round_trip_are_exact(
    lengths: list[int], dtype: torch.dtype, layout: str, side: str, batch_first: bool
) -> None:
    lengths = lengths or [0]
    values = make((sum(lengths), 2), dtype).requires_grad_()
    back = there_and_back(SequenceBatch(values, lengths), layout, batch_first=batch_first, padding_side=side)
    weights = make((sum(lengths), 2), dtype, seed=1)
    (gradient,) = torch.autograd.grad(back.values, values, weights)
    equal(gradient, weights)


@pytest.mark.parametrize("layout", ROUND_TRIPS)
@pytest.mark.parametrize("lengths", [[3, 1], [1, 0, 2], [2, 2], [0]])
def test_gradients_of_second_order(layout: str, lengths: list[int]) -> None:
    def convert(values: Tensor) -> Tensor:
        batch = SequenceBatch(values, lengths)
        return there_and_back(batch, layout, batch_first=True, padding_side="left").values ** 2

    values = make((sum(lengths), 2), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(convert, values)
    assert torch.autograd.gradgradcheck(convert, values)


@for_all_lengths(features=features, side=sides, batch_first=flags, padding=st.sampled_from([0.0, -1.5, 7]))
def test_padded_is_what_pad_sequence_gives(
    lengths: list[int], features: Any, side: Any, batch_first: bool, padding: float
) -> None:
    xs = sequences(lengths or [0], features)
    padded = SequenceBatch.from_sequences(xs).to_padded(
        batch_first=batch_first, padding_value=padding, padding_side=side
    )
    equal(padded, pad_sequence(xs, batch_first=batch_first, padding_value=padding, padding_side=side))


@for_all_lengths(features=features.filter(lambda shape: 0 not in shape))
def test_packed_is_what_pack_sequence_gives(lengths: list[int], features: Any) -> None:
    xs = [x for x in sequences(lengths, features) if len(x)] or sequences([1], features)
    packed, theirs = SequenceBatch.from_sequences(xs).to_packed(), pack_sequence(xs, enforce_sorted=False)
    equal(pad_packed_sequence(packed)[0], pad_packed_sequence(theirs)[0])
    equal(packed.batch_sizes, theirs.batch_sizes)
    assert_close(SequenceBatch.from_packed(theirs).to_sequences(), xs)
    ordered = pack_sequence(sorted(xs, key=len, reverse=True))
    assert ordered.sorted_indices is None
    assert_close(SequenceBatch.from_packed(ordered).to_sequences(), sorted(xs, key=len, reverse=True))


@for_all_lengths(side=sides, batch_first=flags, extra=st.integers(0, 2))
def test_mask_is_true_on_real_steps(lengths: list[int], side: Any, batch_first: bool, extra: int) -> None:
    batch = SequenceBatch(torch.ones(sum(lengths)), lengths)
    options: Any = {"batch_first": batch_first, "padding_side": side, "total_length": batch.max_length + extra}
    mask = batch.mask(**options)
    assert mask.dtype is torch.bool
    assert_close(mask.double(), batch.to_padded(**options).double())


@for_all_lengths(batch_first=flags, data=st.data())
def test_mask_with_padding_on_both_sides(lengths: list[int], batch_first: bool, data: st.DataObject) -> None:
    xs = sequences(lengths, (2,))
    total = max(lengths, default=0) + 2
    mask = torch.zeros(len(xs), total, dtype=torch.bool)
    padded = torch.full((len(xs), total, 2), float("nan"), dtype=torch.float64)
    for i, x in enumerate(xs):
        start = data.draw(st.integers(0, total - len(x)))
        mask[i, start : start + len(x)] = True
        padded[i, start : start + len(x)] = x.detach()
    if not batch_first:
        mask, padded = mask.T, padded.transpose(0, 1)
    batch = SequenceBatch.from_mask(padded, mask, batch_first=batch_first)
    assert_close(batch.to_sequences(), [x.detach() for x in xs])


def test_nested_tensors_with_holes() -> None:
    source = torch.arange(24.0).view(3, 4, 2)
    starts, counts = torch.tensor([0, 1, 0]), torch.tensor([2, 0, 4])
    nested: Any = torch.nested.narrow(source, 1, starts, counts, layout=torch.jagged)
    batch = SequenceBatch.from_nested(nested)
    assert batch.lengths == (2, 0, 4)
    assert_close(batch.to_sequences(), [source[0, :2], source[1, 1:1], source[2, :4]])


def test_nested_tensors_of_one_structure_can_be_added() -> None:
    batch = SequenceBatch(torch.ones(5, 2), [2, 0, 3])
    total = batch.to_nested() + batch.map(torch.neg).to_nested()
    assert_close(SequenceBatch.from_nested(total).values, torch.zeros(5, 2))


def test_of_no_sequences() -> None:
    batch = SequenceBatch.from_sequences([])
    assert batch.lengths == ()
    assert batch.to_sequences() == []
    assert batch.to_padded(batch_first=True).shape == (0, 0)
    assert batch.to_padded(batch_first=False, total_length=3).shape == (3, 0)
    assert SequenceBatch.from_packed(batch.to_packed()).lengths == ()
    assert SequenceBatch.from_padded(torch.zeros(0, 4, 5), [], batch_first=True).feature_shape == (5,)
    assert SequenceBatch.from_offsets(torch.zeros(0, 5), [0]).lengths == ()
    assert SequenceBatch.from_nested(SequenceBatch(torch.zeros(0, 5), []).to_nested()).feature_shape == (5,)


def test_skewed_lengths_take_memory_for_their_steps_only() -> None:
    lengths = [1] * 4095 + [65536]
    batch = SequenceBatch(torch.arange(sum(lengths)), lengths)
    assert batch[4095][-1] == sum(lengths) - 1
    assert SequenceBatch.from_packed(batch.to_packed()).values.equal(batch.values)
    assert batch.reverse().last().equal(batch.first())


def test_views_and_copies_are_as_stated() -> None:
    values = torch.zeros(3, 2)
    batch = SequenceBatch(values, [2, 1])
    assert batch.values is values
    assert batch.to_sequences()[1].data_ptr() == values[2].data_ptr()
    assert batch[0].data_ptr() == values.data_ptr()
    assert SequenceBatch.from_sequences([values]).values.data_ptr() != values.data_ptr()
    assert SequenceBatch(values, [1, 1, 1]).to_padded(batch_first=True).data_ptr() != values.data_ptr()
    assert SequenceBatch.from_offsets(values, torch.tensor([0, 3])).values is values


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
            r"`mask` must be a bool Tensor, True on real steps; got torch.int32.",
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
            lambda: SequenceBatch.from_packed(PackedSequence(torch.zeros(3), torch.tensor([1, 2]))),
            SeqbatchValueError,
            r"`packed.batch_sizes` must never rise; got \[1, 2\].",
        ),
        (
            lambda: SequenceBatch.from_packed(PackedSequence(torch.zeros(4), torch.tensor([2, 1]))),
            SeqbatchValueError,
            r"`packed.batch_sizes` must add up to 4, the steps of its data; got 3.",
        ),
        (
            lambda: SequenceBatch.from_packed(
                PackedSequence(torch.zeros(3), torch.tensor([2, 1]), torch.tensor([0, 0]), torch.tensor([0, 0]))
            ),
            SeqbatchValueError,
            r"`packed.sorted_indices` must name each of 2 sequences once; got \[0, 0\].",
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
        (
            lambda: SequenceBatch(torch.zeros(3), [3]).to_padded(batch_first=True, padding_value="0"),  # type: ignore[arg-type]  # wrong
            SeqbatchTypeError,
            r"`padding_value` must be a number; got a str.",
        ),
        (
            lambda: SequenceBatch(torch.zeros(3, dtype=torch.int64), [3]).to_padded(
                batch_first=True, padding_value=0.5
            ),
            SeqbatchValueError,
            r"`padding_value` must be a value of torch.int64; got 0.5.",
        ),
        (
            lambda: SequenceBatch(torch.zeros(3, dtype=torch.uint8), [3]).to_padded(
                batch_first=True, padding_value=300
            ),
            SeqbatchValueError,
            r"`padding_value` must be a value of torch.uint8; got 300.",
        ),
        (
            lambda: SequenceBatch(torch.zeros(3, dtype=torch.bool), [3]).to_padded(batch_first=True, padding_value=2),
            SeqbatchValueError,
            r"`padding_value` must be a value of torch.bool; got 2.",
        ),
        (
            lambda: SequenceBatch(torch.zeros(3), [3]).to_padded(batch_first=True, padding_value=1j),
            SeqbatchValueError,
            r"`padding_value` must be a value of torch.float32; got 1j.",
        ),
    ],
)
def test_bad_arguments(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_nested_of_strided_layout_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this layout is a prototype
        nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.strided)
    message = r"`nested` must have layout torch.jagged; got torch.strided. Make it with layout=torch.jagged."
    with pytest.raises(SeqbatchTypeError, match=message):
        SequenceBatch.from_nested(nested)
