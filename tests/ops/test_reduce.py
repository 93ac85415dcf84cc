"""Reductions against a plain loop over the sequences: values, gradients, dtypes, empty, long, NaN and ties."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from strategies import COMPLEX, DTYPES, FLOATS, INTEGERS, features, for_all_lengths, make, sequences
from torch import Tensor
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SequenceBatch
from seqbatch._ops import reductions as reductions
from seqbatch._structure.sequence_lengths import SUMMATION_CHUNK as CHUNK

LOOP: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(0),
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.amax(0),
    "min": lambda x: x.amin(0),
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
    "softmax": lambda x: x.softmax(0),
}
NAMES = [*LOOP]
TO_ONE = NAMES[:-1]
EXTREMES = ["max", "min"]
FLOATING = tuple(dtype for dtype in DTYPES if dtype.is_floating_point)
WHOLE = tuple(dtype for dtype in DTYPES if not (dtype.is_floating_point or dtype.is_complex))
REFUSED = [
    *(("mean", dtype) for dtype in WHOLE),
    *((name, dtype) for name in EXTREMES for dtype in (*COMPLEX, torch.uint64)),
    *(("softmax", dtype) for dtype in (*WHOLE, *COMPLEX)),
]
ALLOWED = [(name, dtype) for name in NAMES for dtype in DTYPES if (name, dtype) not in REFUSED]


@pytest.fixture(
    scope="module", autouse=True, params=[reductions.REDUCTION_LOOP_LIMIT, 0], ids=["one by one", "all at once"]
)
def few(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test with the loop over sequences, and with the call for all at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reductions, "REDUCTION_LOOP_LIMIT", request.param)
        yield


def reduce(batch: SequenceBatch, name: str) -> list[Tensor]:
    """Return the result of each sequence."""
    return list(getattr(batch, name)())


def loop(xs: list[Tensor], name: str) -> list[Tensor]:
    """Return the result of each sequence, computed alone; zeros for an empty one."""
    return [LOOP[name](x) if len(x) or name == "softmax" else x.sum(0) for x in xs]


def wide(tensor: Tensor) -> Tensor:
    """Write what PyTorch cannot reduce in a dtype that it can."""
    if tensor.is_complex() or tensor.dtype is torch.float64:
        return tensor
    return tensor.float() if tensor.is_floating_point() else tensor.long()


def gradients(results: list[Tensor], sources: list[Tensor]) -> list[Tensor]:
    """Return the gradients of a sum that weights every element differently."""
    flat = torch.cat([torch.zeros(0, dtype=torch.float64), *(result.flatten() for result in results)])
    loss = (flat * torch.arange(1, 1 + flat.numel()).cos()).sum()
    if not loss.requires_grad:
        return [torch.zeros_like(source) for source in sources]
    found = torch.autograd.grad(loss, sources, allow_unused=True)
    return [
        torch.zeros_like(source) if gradient is None else gradient
        for source, gradient in zip(sources, found, strict=True)
    ]


@for_all_lengths(features=features, case=st.sampled_from(ALLOWED))
def test_values_and_dtypes_are_those_of_a_loop(lengths: list[int], features: Any, case: Any) -> None:
    name, dtype = case
    values = make((sum(lengths), *features), dtype)
    found = getattr(SequenceBatch(values, lengths), name)()
    stated = torch.int64 if name == "sum" and dtype in WHOLE else dtype
    assert found.dtype is stated
    if name != "softmax":
        assert found.shape == (len(lengths), *features)
    wanted = [one.to(stated) for one in loop([wide(x) for x in values.split(lengths)], name)]
    if dtype in FLOATING[4:]:
        # Narrow results are rounded once, from sums in single precision that differ by the order of their terms.
        info = torch.finfo(dtype)
        assert_close([x.float() for x in found], [x.float() for x in wanted], rtol=info.eps, atol=info.tiny)
    else:
        assert_close(list(found), wanted)


@for_all_lengths(features=features, name=st.sampled_from(NAMES))
def test_gradients_are_those_of_a_loop(lengths: list[int], features: Any, name: str) -> None:
    xs = sequences(lengths, features)
    batch = SequenceBatch(torch.cat([*xs, torch.zeros(0, *features)]), lengths)
    assert_close(gradients(reduce(batch, name), xs), gradients(loop(xs, name), xs))


@pytest.mark.parametrize("lengths", [[2, 2], [3, 1], [1, 0, 3], [0, 0], []])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_both_orders(name: str, lengths: list[int]) -> None:
    def result(values: Tensor) -> Tensor:
        found: Any = getattr(SequenceBatch(values, lengths), name)()
        squared: Tensor = (found.values if name == "softmax" else found) ** 2
        return squared

    values = make((sum(lengths), 2), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(result, values)
    assert torch.autograd.gradgradcheck(result, values)


@pytest.mark.parametrize("name", ["sum", "mean", "first", "last"])
def test_gradients_of_complex_values(name: str) -> None:
    values = make((5, 2), torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: getattr(SequenceBatch(values, [2, 0, 3]), name)(), values)


@pytest.mark.parametrize(("name", "dtype"), REFUSED)
def test_refused_dtypes(name: str, dtype: torch.dtype) -> None:
    must = {
        "mean": r"floating or complex to be averaged",
        "softmax": r"floating for a softmax",
        "max": r"of an order that PyTorch knows",
        "min": r"of an order that PyTorch knows",
    }[name]
    with pytest.raises(SeqbatchTypeError, match=rf"`values` must have a dtype {must}; got {dtype}\."):
        getattr(SequenceBatch(make((3,), dtype), [2, 1]), name)()


@pytest.mark.parametrize("name", TO_ONE)
def test_an_empty_sequence_gives_zeros_and_takes_no_gradient(name: str) -> None:
    values = make((5, 2), torch.float64).add(9).requires_grad_()
    found = getattr(SequenceBatch(values, [0, 2, 0, 0, 3, 0]), name)()
    empty = [0, 2, 3, 5]
    assert_close(found[empty], torch.zeros(4, 2, dtype=torch.float64), rtol=0, atol=0)
    assert found[[1, 4]].all()
    assert_close(torch.autograd.grad(found[empty].sum(), values)[0], torch.zeros_like(values), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_of_none_and_of_nothing_but_empty_sequences(name: str) -> None:
    for lengths in ([], [0], [0, 0, 0]):
        values = torch.zeros(0, 3, 2, requires_grad=True)
        found = getattr(SequenceBatch(values, lengths), name)()
        if name == "softmax":
            assert found.lengths == tuple(lengths)
            assert found.values.shape == (0, 3, 2)
        else:
            assert_close(found.detach(), torch.zeros(len(lengths), 3, 2))
            found.sum().backward()
            assert values.grad is not None


@pytest.mark.parametrize("name", ["sum", "max", "min", "softmax"])
def test_equal_lengths_need_no_index(name: str) -> None:
    batch = SequenceBatch(make((100, 2), torch.float64).requires_grad_(), [2] * 50)
    gradients(reduce(batch, name), [batch.values])
    assert not {"rows", "offsets"} & vars(batch.structure).keys()


def test_softmax_keeps_the_structure() -> None:
    batch = SequenceBatch(torch.randn(5, 2), [2, 0, 3])
    shares = batch.softmax()
    assert shares.lengths == batch.lengths
    assert_close(shares.sum(), torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]))


LONG = [CHUNK, CHUNK + 1, 0, 1, 3 * CHUNK, CHUNK**2 + 5 * CHUNK + 7, CHUNK - 1, 2000]


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool])
def test_long_sums_of_integers_are_exact(dtype: torch.dtype) -> None:
    values = make((sum(LONG), 2), dtype)
    assert_close(reduce(SequenceBatch(values, LONG), "sum"), loop(list(values.split(LONG)), "sum"), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_long_sequences(name: str) -> None:
    xs = sequences(LONG, (2,))
    batch = SequenceBatch.from_sequences(xs)
    assert_close(reduce(batch, name), loop(xs, name))
    assert_close(gradients(reduce(batch, name), xs), gradients(loop(xs, name), xs))


@pytest.mark.parametrize("lengths", [[60_000, 0, 3], [2 * CHUNK, 2 * CHUNK - 1, 1], [2 * CHUNK + 1, 300]])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["sum", "mean", "softmax"])
def test_rounding_errors_do_not_grow_with_the_length(name: str, dtype: torch.dtype, lengths: list[int]) -> None:
    # Added one after another, ones in half precision stop at 2048, and equal terms in single precision drift by 1e-3.
    for term in (0.1, 0.7, 1.0):
        values = torch.full((sum(lengths),), term, dtype=dtype)
        exact = [one.to(dtype) for one in loop(list(values.double().split(lengths)), name)]
        assert_close(reduce(SequenceBatch(values, lengths), name), exact)


def test_rounding_errors_of_gradients_do_not_grow_with_the_length() -> None:
    # The gradient of a sum gives every step that of its sequence; the gradient of that adds up steps again.
    values = torch.zeros(60_003, requires_grad=True)
    total = SequenceBatch(values, [60_000, 3]).sum()
    (slope,) = torch.autograd.grad((total**2).sum(), values, create_graph=True)
    (found,) = torch.autograd.grad(slope, values, torch.full_like(slope, 0.1))
    assert_close(found, torch.tensor([12_000.0, 0.6]).repeat_interleave(torch.tensor([60_000, 3])))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # in PyTorch itself
@pytest.mark.parametrize("lengths", [[3, 0, 2], [2, 2], [2 * CHUNK + 1, 1]])
@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "softmax"])
def test_transforms_of_torch_func(name: str, lengths: list[int]) -> None:
    def call(values: Tensor) -> Tensor:
        found: Any = getattr(SequenceBatch(values, lengths), name)()
        cubes: Tensor = (found.values if name == "softmax" else found) ** 3
        return cubes

    def looped(values: Tensor) -> Tensor:
        found = loop(list(values.split(lengths)), name)
        return (torch.cat(found) if name == "softmax" else torch.stack(found)) ** 3

    def slope(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return torch.func.grad(lambda values: call(values).sum())

    given, tangent = (make((sum(lengths), 2), torch.float64, seed) for seed in (0, 1))
    both = torch.stack([given, tangent])
    assert_close(torch.func.jacrev(call)(given), torch.func.jacrev(looped)(given))
    assert_close(torch.func.jacfwd(call)(given), torch.func.jacrev(looped)(given))
    assert_close(torch.func.jvp(slope(call), (given,), (tangent,)), torch.func.jvp(slope(looped), (given,), (tangent,)))
    assert_close(torch.func.vmap(call)(both), torch.stack([looped(given), looped(tangent)]))


@pytest.mark.parametrize("lengths", [[3, 0, 2], [2, 2]])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_several_outputs_at_once_and_in_forward_mode(name: str, lengths: list[int]) -> None:
    def call(values: Tensor) -> Tensor:
        found: Any = getattr(SequenceBatch(values, lengths), name)()
        squared: Tensor = (found.values if name == "softmax" else found) ** 2
        return squared

    values = make((sum(lengths), 2), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(call, values, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, values, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_neighbours_do_not_tell_on_the_rounding(name: str) -> None:
    xs = sequences([70, 3, 0, 33, 1], (2,), torch.float32)
    others = sequences([70, 40, 0, 2, 65], (2,), torch.float32)
    found, wanted = (reduce(SequenceBatch.from_sequences([*before, *xs]), name)[-5:] for before in (xs, others))
    assert_close(found, wanted, rtol=0, atol=0)


def test_softmax_of_large_values() -> None:
    for dtype in (torch.float64, torch.float32, torch.float16):
        values = (1e4 * make((7, 2), torch.float64)).to(dtype)
        found = SequenceBatch(values, [3, 0, 4]).softmax()
        assert_close(list(found), loop([*values.split([3, 0, 4])], "softmax"))
        assert found.values.isfinite().all()


@pytest.mark.parametrize("fill", [float("-inf"), -1e300])
def test_softmax_gives_masked_steps_nothing(fill: float) -> None:
    xs = sequences([3, 0, 4], (2,))
    masked = [torch.cat([x[:1], torch.full_like(x[1:2], fill), x[2:]]) for x in xs]
    batch = SequenceBatch.from_sequences(masked)
    assert_close(batch.softmax().to_sequences(), loop(masked, "softmax"))
    assert not batch.softmax()[0][1].any()
    assert_close(gradients(reduce(batch, "softmax"), xs), gradients(loop(masked, "softmax"), xs))


def test_softmax_of_nothing_but_masked_steps_is_nan_as_in_torch_and_stays_there() -> None:
    values = torch.cat([torch.full((2,), float("-inf")), torch.zeros(2)])
    found = SequenceBatch(values, [2, 2]).softmax()
    assert_close(list(found), [values[:2].softmax(0), torch.full((2,), 0.5)], equal_nan=True)


@pytest.mark.parametrize("tied", [2.0, 0.0, -0.0, -3.0, float("inf"), float("-inf")])
@pytest.mark.parametrize("name", EXTREMES)
def test_ties_share_the_gradient(name: str, tied: float) -> None:
    other = {"max": tied - 1, "min": tied + 1}[name] if abs(tied) < 9 else 0.0
    values = torch.tensor([tied, other, tied, tied, tied, other, tied]).double().requires_grad_()
    lengths = [3, 0, 1, 3]
    found = gradients(reduce(SequenceBatch(values, lengths), name), [values])
    wanted = gradients(loop(list(values.split(lengths)), name), [values])
    assert_close(found, wanted)
    weights = torch.arange(1, 5).double().cos()
    slope = torch.func.grad(lambda values: (torch.stack(reduce(SequenceBatch(values, lengths), name)) * weights).sum())
    assert_close([slope(values.detach())], wanted)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_does_not_reach_the_neighbours(name: str, poison: float) -> None:
    xs = sequences([2, 3, 0, 2, 300], (2,))
    poisoned = [torch.full_like(x, poison).requires_grad_() if i in (1, 3) else x for i, x in enumerate(xs)]
    found, wanted = reduce(SequenceBatch.from_sequences(poisoned), name), loop(poisoned, name)
    assert_close(found, wanted, equal_nan=True)
    clean = [x for x in poisoned if x.isfinite().all()]
    assert len(clean) == 3
    assert_close(gradients(found, clean), gradients(wanted, clean))
