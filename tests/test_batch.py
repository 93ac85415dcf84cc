"""SequenceBatch as a value: fields, joining, mapping, Tensor-like methods, saving and loading."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, PATTERNS, RARE, features, for_all_lengths, make, sequences
from torch import Tensor, nn
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SeqbatchValueError, SequenceBatch


@for_all_lengths(features=features, dtype=st.sampled_from(DTYPES))
def test_fields(lengths: list[int], features: Any, dtype: torch.dtype) -> None:
    values = make((sum(lengths), *features), dtype)
    batch = SequenceBatch(values, lengths)
    assert batch.values is values
    assert batch.lengths == tuple(lengths)
    assert batch.batch_size == len(batch) == len(lengths)
    assert batch.total_steps == sum(lengths)
    assert batch.max_length == max(lengths, default=0)
    assert batch.feature_shape == features
    assert (batch.dtype, batch.device) == (dtype, torch.device("cpu"))
    assert batch.offsets.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert batch.segment_ids.tolist() == [i for i, length in enumerate(lengths) for _ in range(length)]
    assert batch.positions.tolist() == [step for length in lengths for step in range(length)]
    assert {batch.offsets.dtype, batch.segment_ids.dtype, batch.positions.dtype} == {torch.int64}
    assert [tuple(x.shape) for x in batch] == [(length, *features) for length in lengths]


def test_what_is_given_out_is_not_what_is_kept() -> None:
    batch = SequenceBatch(torch.zeros(3), [2, 1])
    batch.offsets.zero_()
    batch.segment_ids.zero_()
    batch.positions.zero_()
    batch.mask(batch_first=True).zero_()
    assert batch.offsets.tolist() == [0, 2, 3]
    assert batch.segment_ids.tolist() == [0, 0, 1]
    assert batch.positions.tolist() == [0, 1, 0]
    assert batch.mask(batch_first=True).sum() == 3


def test_lengths_as_a_tensor() -> None:
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert SequenceBatch(torch.zeros(3), torch.tensor([2, 1], dtype=dtype)).lengths == (2, 1)


def test_it_cannot_be_changed_and_is_compared_by_identity() -> None:
    batch = SequenceBatch(torch.zeros(3), [2, 1])
    with pytest.raises(AttributeError):
        batch.values = torch.ones(3)  # type: ignore[misc]  # the error is what is tested
    assert batch == batch
    assert batch != SequenceBatch(batch.values, [2, 1])
    assert len({batch, batch.clone()}) == 2


def test_repr_shows_shapes_and_no_data() -> None:
    assert repr(SequenceBatch(torch.zeros(17, 5), [10, 7])) == (
        "SequenceBatch(2 sequences of 7 to 10 steps, features (5,), torch.float32, cpu)"
    )
    assert repr(SequenceBatch(torch.zeros(1), [1])) == (
        "SequenceBatch(1 sequence of 1 step, features (), torch.float32, cpu)"
    )
    assert repr(SequenceBatch(torch.zeros(0, 5), [])) == "SequenceBatch(0 sequences, features (5,), torch.float32, cpu)"
    assert repr(SequenceBatch(torch.zeros(0, device="meta"), [0, 0])) == (
        "SequenceBatch(2 sequences of 0 steps, features (), torch.float32, meta)"
    )


def test_repr_of_a_structure_shows_the_lengths_of_its_batch() -> None:
    for lengths, shown in (
        ([10, 7], "2 sequences of 7 to 10 steps"),
        ([1], "1 sequence of 1 step"),
        ([], "0 sequences"),
    ):
        batch = SequenceBatch(torch.zeros(sum(lengths), 5), lengths)
        assert repr(batch.structure) == f"Lengths({shown})"
        assert repr(batch).startswith(f"SequenceBatch({shown}, ")


def test_repr_shows_whether_gradients_are_recorded() -> None:
    batch = SequenceBatch(torch.zeros(3, 5, requires_grad=True), [2, 1])
    shown = "SequenceBatch(2 sequences of 1 to 2 steps, features (5,), torch.float32, cpu, requires_grad=True)"
    assert repr(batch) == repr(batch.map(torch.relu)) == shown
    assert repr(batch.detach()) == shown.replace(", requires_grad=True", "")


def test_a_notebook_shows_the_repr() -> None:
    batch = SequenceBatch(torch.zeros(3), [2, 1])
    for name in ("_repr_html_", "_repr_mimebundle_", "_ipython_display_", "_repr_pretty_"):
        assert not hasattr(batch, name)


@for_all_lengths(number=st.integers(0, 3))
def test_concat(lengths: list[int], number: int) -> None:
    xs = sequences(lengths, (2,))
    batch = SequenceBatch(torch.cat([*xs, torch.zeros(0, 2)]), lengths)
    joined = SequenceBatch.concat(batch for _ in range(number))
    assert_close(joined.to_sequences(), xs * number)


@pytest.mark.parametrize(
    ("other", "kind", "message"),
    [
        (torch.zeros(2), SeqbatchTypeError, r"`batches\[1\]` must be a SequenceBatch; got a torch.Tensor."),
        (
            SequenceBatch(torch.zeros(2, 3), [2]),
            SeqbatchValueError,
            r"`batches\[1\]` must have features \(\), as batches\[0\]; got \(3,\).",
        ),
        (
            SequenceBatch(torch.zeros(2).double(), [2]),
            SeqbatchValueError,
            r"`batches\[1\]` must have dtype torch.float32, as batches\[0\]; got torch.float64.",
        ),
    ],
)
def test_bad_concat(other: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SequenceBatch.concat([SequenceBatch(torch.zeros(2), [2]), other])


def test_concat_of_what_cannot_be_iterated() -> None:
    for wrong, found in ((None, "None"), (3, "an int")):
        with pytest.raises(SeqbatchTypeError, match=rf"`batches` must be an iterable of batches; got {found}\."):
            SequenceBatch.concat(wrong)  # type: ignore[arg-type]  # wrong


@for_all_lengths()
def test_map_and_with_values(lengths: list[int]) -> None:
    batch = SequenceBatch(make((sum(lengths), 2), torch.float64), lengths)
    other = SequenceBatch(make((sum(lengths), 2), torch.float64, seed=1), list(lengths))
    total = batch.map(
        torch.add,
        other,
    )
    assert_close(total.to_sequences(), [x + y for x, y in zip(batch, other, strict=True)])
    assert total.map(lambda values: values.sum(1) > 0).dtype is torch.bool
    assert batch.with_values(other.values).values is other.values


def test_map_of_a_layer_within_each_step() -> None:
    letters = torch.randn(5, 7, 4)  # words of 7 letters
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    words = SequenceBatch(letters, [2, 3])
    assert_close(words.map(encoder).values, torch.stack([encoder(word) for word in letters]))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda b: b.map(torch.add, 3), SeqbatchTypeError, r"`others\[0\]` must be a SequenceBatch; got an int."),
        (
            lambda b: b.map(torch.add, b, b[[1, 0]]),
            SeqbatchValueError,
            r"`others\[1\]` must have the lengths of this batch, 2 steps in sequence 0; got 1.",
        ),
        (
            lambda b: b.map(torch.add, SequenceBatch(b.values, [3])),
            SeqbatchValueError,
            r"`others\[0\]` must have 2 sequences, as this batch; got 1.",
        ),
        (
            lambda b: b.map(torch.add, b.to("meta")),
            SeqbatchValueError,
            r"`others\[0\]` must be on cpu, as this batch; got meta.",
        ),
        (
            lambda b: b.map(torch.add, torch.zeros(2)),
            SeqbatchTypeError,
            r"^`others\[0\]` must be a SequenceBatch; got a torch.Tensor. For a row for each step pass "
            r"batch.with_values\(tensor\), for each sequence batch.expand\(tensor\).$",
        ),
        (lambda b: b.map(torch.add, b, torch.zeros(2)), SeqbatchTypeError, r"^`others\[1\]` must .* pass batch.with_v"),
        (lambda b: b.map(len), SeqbatchTypeError, r"`function\(values\)` must be a Tensor; got an int."),
        (
            lambda b: b.map(torch.sum),
            SeqbatchValueError,
            r"`function\(values\)` must have shape \(steps, \*features\); got a Tensor of no dimension.",
        ),
        (
            lambda b: b.map(lambda values: values[1:]),
            SeqbatchValueError,
            r"`function\(values\)` must have the 3 steps of this batch; got 2.",
        ),
        (
            lambda b: b.with_values([1, 2, 3]),
            SeqbatchTypeError,
            r"`values` must be a Tensor; got a list. Make it one by",
        ),
        (
            lambda b: b.with_values(torch.zeros(4)),
            SeqbatchValueError,
            r"`values` must have the 3 steps of this batch; got 4.",
        ),
    ],
)
def test_bad_map(call: Callable[[SequenceBatch], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(SequenceBatch(torch.zeros(3), [2, 1]))


@for_all_lengths(dtype=st.sampled_from(DTYPES))
def test_the_advice_for_a_tensor_of_a_row_for_each_sequence_is_right(lengths: list[int], dtype: torch.dtype) -> None:
    batch = SequenceBatch(make((sum(lengths), 2), torch.float64), lengths)
    tensor = make((len(lengths), 3), torch.float64).to(dtype)
    with pytest.raises(SeqbatchTypeError) as caught:
        batch.map(torch.add, tensor)  # type: ignore[arg-type]  # wrong
    advice = str(caught.value).partition("for each sequence ")[2].removesuffix(".")
    assert advice in (SequenceBatch.map.__doc__ or "")
    assert advice == "batch.expand(tensor)"
    spread = eval(advice, {}, {"batch": batch, "tensor": tensor})
    wanted = [row.expand(length, 3) for row, length in zip(tensor, lengths, strict=True)]
    assert_close(spread.to_sequences(), wanted, rtol=0, atol=0)


EXPAND = "A Tensor of one row for each sequence must be passed as a batch: batch.map(function, batch.expand(tensor))."


@pytest.mark.parametrize(
    "function",
    [
        lambda values: values + torch.ones(3, 2),
        lambda values: torch.ones(3, 2) - values,
        lambda values: torch.where(torch.ones(3, 2) > 0, values, 0),
        lambda values: torch.addcmul(values, torch.ones(3, 2), values),
        lambda values: torch.cat([values, torch.ones(3, 4)], -1),
        lambda values: torch.hstack([torch.ones(3, 4), values]),
        lambda values: torch.stack([values, values, torch.ones(3, 2)]),
        lambda values: torch.ones(3, 2).expand_as(values),
    ],
)
def test_a_captured_tensor_of_a_row_for_each_sequence_gets_a_note(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match=r"must match|equal size") as caught:
        SequenceBatch(torch.zeros(5, 2), [2, 1, 2]).map(function)
    assert caught.value.__notes__ == [EXPAND]


@pytest.mark.parametrize(
    "function",
    [
        lambda values: values + torch.ones(4, 2),  # of as many rows as nothing has
        lambda values: values + torch.ones(5, 4),
        lambda values: values + torch.ones(5, 3),  # whose other dimension is of as many
        lambda values: values.T + torch.ones(2, 3),
        lambda values: values @ torch.ones(3, 2),
        lambda values: torch.cat([values, torch.ones(4, 2)], 1),
        lambda values: torch.cat([values.T, torch.ones(2, 3)]),
        lambda values: torch.stack([values, torch.ones(5, 3)]),
        lambda values: values[:, 3],
    ],
)
def test_other_errors_of_a_function_get_no_note(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises((RuntimeError, IndexError)) as caught:
        SequenceBatch(torch.zeros(5, 2), [2, 1, 2]).map(function)
    assert not hasattr(caught.value, "__notes__")


@for_all_lengths(features=features)
def test_gradients_of_expanded_rows(lengths: list[int], features: Any) -> None:
    batch = SequenceBatch(make((sum(lengths),), torch.float64), lengths)
    rows = make((len(lengths), *features), torch.float64).requires_grad_()
    found = batch.expand(rows)
    weights = make(tuple(found.values.shape), torch.float64, seed=1)
    (slope,) = torch.autograd.grad((found.values * weights).sum(), rows)
    wanted = [part.sum(0) for part in weights.split(lengths)]
    assert_close(list(slope), wanted)


@pytest.mark.parametrize("lengths", [[2, 2], [3, 0, 1], [0, 0], []])
def test_gradients_of_expanded_rows_of_both_orders(lengths: list[int]) -> None:
    batch = SequenceBatch(torch.zeros(sum(lengths)), lengths)
    rows = make((len(lengths), 2), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda rows: batch.expand(rows).values ** 2, rows, check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(
        lambda rows: batch.expand(rows).values ** 2, rows, check_fwd_over_rev=True, check_batched_grad=True
    )


def test_expand_under_transforms() -> None:
    batch = SequenceBatch(torch.zeros(5), [3, 0, 2])
    rows = make((4, 3, 2), torch.float64)
    wanted = torch.stack([batch.expand(one).values for one in rows])
    assert_close(torch.func.vmap(lambda one: batch.expand(one).values)(rows), wanted)
    slope = torch.func.grad(lambda one: (batch.expand(one).values ** 2).sum())(rows[0])
    assert_close(slope, 2 * rows[0] * torch.tensor([[3.0], [0.0], [2.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_of_expanded_rows_round_as_a_sum_does(dtype: torch.dtype) -> None:
    # Added one after another, ones in half precision stop at 2048, and equal terms in single precision drift by 1e-3.
    rows = torch.zeros(3, dtype=dtype, requires_grad=True)
    found = SequenceBatch(torch.zeros(60_003), [60_000, 0, 3]).expand(rows)
    (slope,) = torch.autograd.grad(found.values, rows, torch.full((60_003,), 0.1, dtype=dtype))
    term = torch.tensor(0.1, dtype=dtype).double()
    assert_close(slope, torch.stack([60_000 * term, 0 * term, 3 * term]).to(dtype))


@pytest.mark.parametrize(
    ("tensor", "kind", "message"),
    [
        (
            torch.zeros(3, 2),
            SeqbatchValueError,
            r"^`tensor` must have 2 rows, one for each sequence; got 3. For a row for each step call "
            r"batch.with_values\(tensor\).$",
        ),
        (torch.zeros(1, 2), SeqbatchValueError, r"^`tensor` must have 2 rows, one for each sequence; got 1\.$"),
        (
            torch.tensor(1.0),
            SeqbatchValueError,
            r"^`tensor` must have shape \(batch, \*features\); got a Tensor of no dimension\.$",
        ),
        (torch.zeros(2, device="meta"), SeqbatchValueError, r"^`tensor` must be on cpu, as this batch; got meta\.$"),
        ([1.0, 2.0], SeqbatchTypeError, r"^`tensor` must be a Tensor; got a list. Make it one by torch.as_tensor\.$"),
    ],
)
def test_bad_expand(tensor: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SequenceBatch(torch.zeros(3), [2, 1]).expand(tensor)


def test_expand_keeps_the_structure_and_the_class() -> None:
    class Signals(SequenceBatch):
        pass

    batch = Signals(torch.zeros(3), [2, 1])
    found = batch.expand(torch.zeros(2, 4))
    assert type(found) is Signals
    assert found.structure is batch.structure


@pytest.mark.parametrize(
    ("values", "lengths", "kind", "message"),
    [
        (torch.zeros(3), [2, 2], SeqbatchValueError, r"`lengths` must add up to 3, the steps of `values`; got 4."),
        (torch.zeros(3), [4, -1], SeqbatchValueError, r"`lengths\[1\]` must be at least 0; got -1."),
        (torch.zeros(3), [1.5, 1.5], SeqbatchTypeError, r"`lengths\[0\]` must be an integer; got 1.5."),
        (torch.zeros(2), [True, True], SeqbatchTypeError, r"`lengths\[0\]` must be an integer; got True."),
        (
            torch.zeros(3),
            3,
            SeqbatchTypeError,
            r"`lengths` must be a sequence of integers or an integer Tensor; got an i",
        ),
        (torch.zeros(3), "12", SeqbatchTypeError, r"`lengths` must be a sequence of integers .*; got a str."),
        (
            torch.zeros(3),
            torch.tensor([3.0]),
            SeqbatchTypeError,
            r"`lengths` must be integers, as a Tensor of one axis",
        ),
        (
            torch.zeros(3),
            torch.tensor([True]),
            SeqbatchTypeError,
            r"`lengths` must be integers, as a Tensor of one axis",
        ),
        (
            torch.zeros(3),
            torch.tensor(3),
            SeqbatchTypeError,
            r"`lengths` must be integers, .* got shape \(\) and torch.",
        ),
        ([0.0], [1], SeqbatchTypeError, r"`values` must be a Tensor; got a list. Make it one by torch.as_tensor."),
        (
            torch.tensor(0.0),
            [1],
            SeqbatchValueError,
            r"`values` must have shape \(steps, \*features\); got a Tensor of n",
        ),
    ],
)
def test_bad_construction(values: Any, lengths: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SequenceBatch(values, lengths)


@for_all_lengths(features=features)
def test_reverse(lengths: list[int], features: Any) -> None:
    xs = sequences(lengths or [0], features)
    assert_close(SequenceBatch.from_sequences(xs).reverse().to_sequences(), [x.flip(0) for x in xs])


def test_tensor_like_methods() -> None:
    values = torch.randn(3, requires_grad=True)
    batch = SequenceBatch(values, [2, 1])
    assert batch.to(torch.float64).dtype is torch.float64
    assert batch.to("cpu").values is values
    assert batch.to("meta").device.type == "meta"
    assert batch.cpu().values is values
    assert batch.float().values is values
    assert batch.double().dtype is torch.float64
    assert batch.half().dtype is torch.float16
    assert batch.bfloat16().dtype is torch.bfloat16
    assert batch.half().values.requires_grad
    with patch.object(Tensor, "float", lambda tensor: tensor + 1):
        assert_close(batch.float().values, values + 1)
    assert not batch.detach().values.requires_grad
    assert batch.detach().values.data_ptr() == values.data_ptr()
    assert batch.clone().values.data_ptr() != values.data_ptr()
    assert batch.clone().values.requires_grad
    with patch.object(Tensor, "cuda", lambda tensor, device, non_blocking: tensor + int(device)):
        assert_close(batch.cuda(1, non_blocking=True).values, values + 1)
    with patch.object(Tensor, "pin_memory", lambda tensor: tensor + 1):
        assert_close(batch.pin_memory().values, values + 1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_integers_are_cast_as_a_tensor_is(dtype: torch.dtype) -> None:
    batch = SequenceBatch(torch.tensor([1, 0, 1]).to(dtype), [2, 1])
    for name in ("float", "double", "half", "bfloat16"):
        assert_close(getattr(batch, name)().values, getattr(batch.values, name)(), rtol=0, atol=0)


def test_derived_batches_share_the_structure() -> None:
    batch = SequenceBatch(torch.zeros(3), [2, 1])
    for derived in (batch.clone(), batch.reverse(), batch.softmax(), batch.map(torch.neg), batch.to(torch.float64)):
        assert derived.structure is batch.structure
        assert copy.deepcopy(derived).structure is batch.structure


def saved_and_loaded(thing: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def pickled_and_back(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("way", [saved_and_loaded, pickled_and_back, copy.deepcopy, copy.copy])
@given(data=st.data())
def test_it_is_given_back_as_it_was(way: Callable[[Any], Any], data: st.DataObject) -> None:
    lengths = data.draw(st.one_of(*PATTERNS.values()))
    # Tensors of the rare dtypes PyTorch itself cannot read from a plain pickle, only from its own files.
    dtypes = [dtype for dtype in DTYPES if way is not pickled_and_back or dtype not in RARE]
    dtype = data.draw(st.sampled_from(dtypes))
    batch = SequenceBatch(make((sum(lengths), 2), dtype), lengths)
    there = way({"batch": batch, "other": batch.clone()})
    back, other = there["batch"], there["other"]
    assert isinstance(back, SequenceBatch)
    assert back.lengths == batch.lengths
    assert back.dtype is dtype
    assert_close(
        back.values.double() if not dtype.is_complex else back.values,
        batch.values.to(back.values.dtype if dtype.is_complex else torch.float64),
    )
    assert back.structure is other.structure


def test_gradient_flags_are_kept() -> None:
    batch = SequenceBatch(torch.zeros(3, requires_grad=True), [2, 1])
    assert saved_and_loaded(batch).values.requires_grad
    assert copy.deepcopy(batch).values.requires_grad
