"""Round trips through every layout, for every dtype and every pattern of lengths; and what each layout is."""

from collections.abc import Callable, Iterator
from typing import Any

import laws
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from laws import assert_same_bits
from strategies import COMPLEX, DTYPES, FLOATS, features, for_all_lengths, make, sequences
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close

from seqbatch import SequenceBatch, _kernels

sides, flags = st.sampled_from(["right", "left"]), st.booleans()


@pytest.fixture(scope="module", autouse=True, params=[_kernels.IS_THERE, False], ids=["rows", "gathers"])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test with the copies of rows, and with the gathers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_kernels, "IS_THERE", request.param)
        yield


@for_all_lengths(features=features, dtype=st.sampled_from(DTYPES))
def test_every_layout_to_every_other_and_back(lengths: list[int], features: Any, dtype: torch.dtype) -> None:
    values = make((sum(lengths), *features), dtype)
    laws.check_round_trip(SequenceBatch(values.requires_grad_(dtype in FLOATS + COMPLEX), lengths))


@pytest.mark.parametrize("layout", laws.LAYOUTS)
@pytest.mark.parametrize("lengths", [[3, 1], [1, 0, 2], [2, 2], [0]])
def test_gradients_of_second_order(layout: str, lengths: list[int]) -> None:
    def convert(values: Tensor) -> Tensor:
        squared: Tensor = laws.LAYOUTS[layout](SequenceBatch(values, lengths)).values ** 2
        return squared

    values = make((sum(lengths), 2), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(convert, values)
    assert torch.autograd.gradgradcheck(convert, values)


@pytest.mark.parametrize("name", ["to_padded", "reverse", "from_padded"])
def test_transforms_of_torch_func(name: str) -> None:
    batch = SequenceBatch(make((5, 2), torch.float64), [3, 0, 2])
    left: Any = {"batch_first": True, "padding_side": "left"}
    padded = batch.to_padded(**left)
    calls: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "to_padded": (lambda values: batch.with_values(values).to_padded(**left), batch.values),
        "reverse": (lambda values: batch.with_values(values).reverse().values, batch.values),
        "from_padded": (lambda padded: SequenceBatch.from_padded(padded, batch.lengths, **left).values, padded),
    }
    call, given = calls[name]
    index = call(torch.arange(1.0, 1 + given.numel()).view(given.shape)).long()  # 0 stands for padding
    jacobian = torch.nn.functional.one_hot(index, 1 + given.numel())[..., 1:].to(given).unflatten(-1, given.shape)
    assert_close(torch.func.jacrev(call)(given), jacobian)
    assert_close(torch.func.jacfwd(call)(given), jacobian)
    tangent = make(tuple(given.shape), torch.float64, seed=1)
    assert_close(torch.func.jvp(call, (given,), (tangent,)), (call(given), call(tangent)))
    slope = torch.func.grad(lambda given: (call(given) ** 3).sum())(given)
    assert_close(slope, 3 * given**2 * (jacobian.flatten(0, -1 - given.dim()).sum(0)))
    assert_close(torch.func.vmap(call)(torch.stack([given, tangent])), torch.stack([call(given), call(tangent)]))
    # Forward mode over backward mode, and both over several gradients at once.
    given.requires_grad_()
    assert torch.autograd.gradcheck(call, given, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, given, check_fwd_over_rev=True, check_batched_grad=True)


@for_all_lengths(features=features, side=sides, batch_first=flags, padding=st.sampled_from([0.0, -1.5, 7]))
def test_padded_is_what_pad_sequence_gives(
    lengths: list[int], features: Any, side: Any, batch_first: bool, padding: float
) -> None:
    xs = sequences(lengths or [0], features)
    padded = SequenceBatch.from_sequences(xs).to_padded(
        batch_first=batch_first, padding_value=padding, padding_side=side
    )
    assert_same_bits(padded, pad_sequence(xs, batch_first=batch_first, padding_value=padding, padding_side=side))


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


NO_INFINITY = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype.is_floating_point or dtype.is_complex])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.1, -7, True])
def test_padding_is_the_value_of_the_dtype_next_to_it(value: float, dtype: torch.dtype) -> None:
    wanted = torch.tensor(value, dtype=torch.complex128 if dtype.is_complex else torch.float64).to(dtype)
    batch = SequenceBatch(make((3,), dtype), [2, 1])
    if abs(value) == float("inf") and dtype in NO_INFINITY:
        with pytest.raises(ValueError, match=rf"`padding_value` must be a value of {dtype}; got -?inf\."):
            batch.to_padded(batch_first=True, padding_value=value)
    else:
        assert_same_bits(batch.to_padded(batch_first=True, padding_value=value)[1, 1], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.uint8, torch.complex64])
def test_padding_may_be_a_number_of_numpy(dtype: torch.dtype) -> None:
    batch = SequenceBatch(torch.zeros(3, dtype=dtype), [2, 1])
    kinds: list[Any] = [np.float16, np.float32, np.float64, np.int8, np.uint64, np.complex64]
    for kind in kinds:
        padded = batch.to_padded(batch_first=True, padding_value=kind(3))
        assert_same_bits(padded, batch.to_padded(batch_first=True, padding_value=3))
