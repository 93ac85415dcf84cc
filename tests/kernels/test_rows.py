"""Conversions by the kernels: the same bits as by gathers, for all tensors that have memory; others go by gathers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from laws import assert_same_bits
from strategies import DTYPES, make
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from seqbatch import SeqbatchValueError, SequenceBatch, _kernels

LENGTHS = [3, 0, 5, 1, 5]
# By several threads, in several blocks.
LARGE = [1 + 37 * i % 200 for i in range(64)]
Convert = Callable[[Tensor], Tensor]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the copies that the kernels have made since."""
    made: list[Any] = []
    copy = _kernels.copy

    def record(rows: Any) -> None:
        made.append(rows)
        copy(rows)

    monkeypatch.setattr(_kernels, "copy", record)
    return made


def by_gathers(convert: Convert, source: Tensor) -> Tensor:
    """Convert without the kernels, and with a plan for any number of sequences."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_kernels, "IS_THERE", False)
        patch.setattr("seqbatch._ops.layouts.COPY_LOOP_LIMIT", 0)
        return convert(source)


def to_padded(lengths: list[int], values: Tensor, **options: Any) -> Tensor:
    return SequenceBatch(values, lengths).to_padded(**options)


def from_padded(lengths: list[int], padded: Tensor, **options: Any) -> Tensor:
    return SequenceBatch.from_padded(padded, lengths, **options).values


def conversions(lengths: list[int], features: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[Convert, Tensor]]:
    """Yield every conversion by rows, and what it converts."""
    flat, time = make((sum(lengths), *features), dtype), max(lengths) + 2
    for side in "right", "left":
        for batch_first in True, False:
            options: Any = {"batch_first": batch_first, "padding_side": side}
            shape = (len(lengths), time) if batch_first else (time, len(lengths))
            for fill in 0, 1:
                yield partial(to_padded, lengths, padding_value=fill, total_length=time, **options), flat
            yield partial(from_padded, lengths, **options), make((*shape, *features), dtype)
    full = [length for length in lengths if length]
    packed = SequenceBatch(flat, full).to_packed()
    yield lambda flat: SequenceBatch(flat, full).to_packed().data, flat
    yield lambda data: SequenceBatch.from_packed(packed._replace(data=data)).values, flat


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [(), (3,), (2, 1, 4)], ids=str)
def test_all_dtypes(dtype: torch.dtype, features: tuple[int, ...], copies: list[Any]) -> None:
    for convert, source in conversions(LENGTHS, features, dtype):
        copies.clear()
        assert_same_bits(convert(source), by_gathers(convert, source))
        assert len(copies) == 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_copies(threads: int, copies: list[Any]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for convert, source in conversions(LARGE, (50,), torch.float32):
            assert_same_bits(convert(source), by_gathers(convert, source))
    finally:
        torch.set_num_threads(before)
    assert {rows.threads for rows in copies} == {threads}


STRIDES: dict[str, Convert] = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "steps apart": lambda x: torch.stack([x, x])[0].repeat_interleave(2, 0)[::2],
    "features apart": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[..., :1].expand_as(x),
    "a parameter": lambda x: torch.nn.Parameter(x),
    "part of a larger one": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
}


@pytest.mark.parametrize("name", STRIDES)
def test_all_strides(name: str, copies: list[Any]) -> None:
    for convert, source in conversions(LENGTHS, (3,), torch.float32):
        apart = STRIDES[name](source).requires_grad_()
        copies.clear()
        found, wanted = convert(apart), by_gathers(convert, apart)
        assert copies
        assert_same_bits(found, wanted)
        weights = STRIDES[name](make(tuple(found.shape), torch.float32, seed=1)).detach()
        of_found, of_wanted = [torch.autograd.grad(result, apart, weights)[0] for result in (found, wanted)]
        assert_same_bits(of_found, of_wanted)


def test_one_step_of_any_stride(copies: list[Any]) -> None:
    """The stride of an axis of one step may be any number, also in a contiguous Tensor."""
    x = torch.randn(3, 1).t()
    assert x.is_contiguous()
    assert x.stride() == (1, 1)
    for batch_first in (True, False):
        padded = SequenceBatch(x, [1]).to_padded(batch_first=batch_first)
        assert torch.equal(padded, x[None])
        assert torch.equal(SequenceBatch.from_padded(padded, [1], batch_first=batch_first).values, x)
    assert torch.equal(SequenceBatch(x, [1]).to_packed().data, x)
    assert len(copies) == 5


class Watching(TorchDispatchMode):
    """See every operation, as profilers and fake tensors do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.seen: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


OTHERS: dict[str, Convert] = {
    "conjugate": lambda x: torch.complex(x, x).conj(),
    "negative": lambda x: torch.complex(x, x).conj().imag,
    "subclass": lambda x: x.as_subclass(Subclass),
    "no features": lambda x: x[..., :0],
}


@pytest.mark.parametrize("name", OTHERS)
def test_tensors_without_memory_of_their_own_go_by_gathers(name: str, copies: list[Any]) -> None:
    for convert, source in conversions(LENGTHS, (3,), torch.float64):
        other = OTHERS[name](source)
        copies.clear()
        found = convert(other)
        assert not copies
        assert_same_bits(found.as_subclass(Tensor), by_gathers(convert, other).as_subclass(Tensor))


def test_a_dispatch_mode_sees_every_operation(copies: list[Any]) -> None:
    batch = SequenceBatch(make((14, 2), torch.float64), LENGTHS)
    wanted = batch.to_padded(batch_first=True)
    with Watching() as watching:
        assert_same_bits(batch.to_padded(batch_first=True), wanted)
    assert watching.seen
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert batch.to_padded(batch_first=True).shape == wanted.shape
    assert len(copies) == 1


def test_what_is_left_of_a_transform_that_has_ended(copies: list[Any]) -> None:
    kept = []

    def function(values: Tensor) -> Tensor:
        kept.append(SequenceBatch(values, torch.tensor(LENGTHS)))
        return values.sum()

    values = make((14, 2), torch.float64)
    torch.func.grad(function)(values)
    wanted = SequenceBatch(values, LENGTHS).to_padded(batch_first=True)
    assert_same_bits(kept[0].to_padded(batch_first=True), wanted)  # of a tensor that is still wrapped
    assert len(copies) == 1
    assert_same_bits(kept[0].with_values(values).to_padded(batch_first=True), wanted)
    assert len(copies) == 2


def test_padding_of_minus_zero() -> None:
    batch = SequenceBatch(torch.ones(3), [2, 1])
    padded = batch.to_padded(batch_first=True, padding_value=-0.0)
    assert padded[1, 1].signbit()


def test_nothing_is_shared_with_the_caller() -> None:
    xs = [make((length, 2), torch.float64) for length in (2, 4, 4, 1)]
    padded, lengths = pad_sequence(xs, batch_first=True), torch.tensor([2, 4, 4, 1])
    packed: Any = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
    batches = [SequenceBatch.from_padded(padded, lengths, batch_first=True), SequenceBatch.from_packed(packed)]
    wanted = padded.clone()
    for part in (padded, lengths, *packed):
        part.zero_()
    for batch in batches:
        for _ in range(2):  # again, after what was returned is overwritten
            again: Any = batch.to_packed()
            assert_same_bits(pad_packed_sequence(again, batch_first=True)[0], wanted)
            assert again.batch_sizes.tolist() == [4, 3, 2, 2]
            for part in again:
                part.zero_()
        assert batch.lengths == (2, 4, 4, 1)


@pytest.mark.parametrize("order", [[2, 1, 0], None])
def test_the_order_of_packed_data_is_kept(order: list[int] | None) -> None:
    orders = [None if order is None else torch.tensor(order) for _ in range(2)]
    # The lengths are equal, so sorting would leave them in order.
    packed = PackedSequence(make((6, 2), torch.float64), torch.tensor([3, 3]), *orders)
    again: Any = SequenceBatch.from_packed(packed).to_packed()
    assert again.sorted_indices.tolist() == (order or [0, 1, 2])
    assert_same_bits(again.data, packed.data)


def test_structures_made_in_inference_mode_serve_training() -> None:
    values = make((13, 2), torch.float64).requires_grad_()
    with torch.inference_mode():
        lengths = torch.tensor([4, 5, 4])
        padded = SequenceBatch(values.detach(), lengths).to_padded(batch_first=True)
        by_padded = SequenceBatch.from_padded(padded, lengths, batch_first=True)
        by_packed = SequenceBatch.from_packed(by_padded.to_packed())
    for batch in by_padded, by_packed:
        data = batch.with_values(values).to_packed().data
        assert_same_bits(torch.autograd.grad(data, values, data.detach())[0], values.detach())


def test_lengths_whose_sum_is_too_large() -> None:
    most = 2**63 - 1
    with pytest.raises((SeqbatchValueError, OverflowError)):
        SequenceBatch(torch.zeros(0), torch.tensor([most, most, 2]))  # whose sum is 0 in 64 bits
