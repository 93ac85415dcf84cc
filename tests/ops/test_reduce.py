"""Reductions against a plain loop over the sequences: values, gradients, dtypes, empty, long, NaN and ties."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from reference import REDUCTIONS
from strategies import DTYPES, FLOATS, INTEGERS, features, for_all_lengths, make, sequences
from torch import Tensor
from torch.testing import assert_close

from seqbatch import SeqbatchTypeError, SequenceBatch
from seqbatch._ops import reductions as reductions
from seqbatch._structure.sequence_lengths import SUMMATION_CHUNK as CHUNK

NAMES = [*REDUCTIONS]
TO_ONE = [name for name, how in REDUCTIONS.items() if not how.is_stepwise]
SMOOTH = [name for name, how in REDUCTIONS.items() if how.is_differentiable]
EXTREMES = ["max", "min"]
FLOATING = tuple(dtype for dtype in DTYPES if dtype.is_floating_point)
REFUSED = [(name, dtype) for name in NAMES for dtype in DTYPES if not REDUCTIONS[name].can_take(dtype)]
ALLOWED = [(name, dtype) for name in NAMES for dtype in DTYPES if REDUCTIONS[name].can_take(dtype)]


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
    return list(REDUCTIONS[name].of(batch))


def loop(xs: list[Tensor], name: str) -> list[Tensor]:
    """Return the result of each sequence, computed alone."""
    return [REDUCTIONS[name].of_sequence(x) for x in xs]


def call(name: str, lengths: list[int]) -> Callable[[Tensor], Tensor]:
    """Return the reduction as a function of flat values to a Tensor."""

    def run(values: Tensor) -> Tensor:
        found = REDUCTIONS[name].of(SequenceBatch(values, lengths))
        result: Tensor = found.values if isinstance(found, SequenceBatch) else found
        return result

    return run


def looped(name: str, lengths: list[int]) -> Callable[[Tensor], Tensor]:
    """Return the same function, by a loop over the sequences."""
    join = torch.cat if REDUCTIONS[name].is_stepwise else torch.stack
    return lambda values: join(loop(list(values.split(lengths)), name))


def power(function: Callable[[Tensor], Tensor], exponent: int) -> Callable[[Tensor], Tensor]:
    return lambda values: function(values) ** exponent


def long_enough(name: str, lengths: list[int]) -> list[int]:
    """Return lengths with as many steps as a reduction needs for a finite result, or none."""
    return [max(length, REDUCTIONS[name].least_steps) if length else 0 for length in lengths]


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
    found, stated = REDUCTIONS[name].of(SequenceBatch(values, lengths)), REDUCTIONS[name].dtype_for(dtype)
    assert found.dtype is stated
    if REDUCTIONS[name].is_stepwise:
        assert found.lengths == tuple(lengths)
    else:
        assert found.shape == (len(lengths), *features)
    wanted = [one.to(stated) for one in loop([wide(x) for x in values.split(lengths)], name)]
    if stated in FLOATING[4:]:
        # Narrow results are rounded once, from sums in single precision that differ by the order of their terms.
        options: Any = {"rtol": torch.finfo(dtype).eps, "atol": torch.finfo(dtype).tiny, "equal_nan": True}
        assert_close([x.float() for x in found], [x.float() for x in wanted], **options)
    else:
        assert_close(list(found), wanted, equal_nan=True)


@for_all_lengths(features=features, name=st.sampled_from(SMOOTH))
def test_gradients_are_those_of_a_loop(lengths: list[int], features: Any, name: str) -> None:
    xs = sequences(lengths, features)
    batch = SequenceBatch(torch.cat([*xs, torch.zeros(0, *features)]), lengths)
    assert_close(gradients(reduce(batch, name), xs), gradients(loop(xs, name), xs), equal_nan=True)


@pytest.mark.parametrize("lengths", [[2, 2], [3, 1], [1, 0, 3], [0, 0], []])
@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_of_both_orders(name: str, lengths: list[int]) -> None:
    lengths = long_enough(name, lengths)
    result = power(call(name, lengths), 2)
    values = make((sum(lengths), 2), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(result, values)
    assert torch.autograd.gradgradcheck(result, values)


@pytest.mark.parametrize("name", [name for name in SMOOTH if REDUCTIONS[name].can_take(torch.complex128)])
def test_gradients_of_complex_values(name: str) -> None:
    values = make((5, 2), torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(call(name, [2, 0, 3]), values)
    assert torch.autograd.gradgradcheck(call(name, [2, 0, 3]), values)


@pytest.mark.parametrize(("name", "dtype"), REFUSED)
def test_refused_dtypes(name: str, dtype: torch.dtype) -> None:
    must = {
        "floating": "floating for a (softmax|logsumexp)",
        "inexact": "floating or complex to be averaged",
        "ordered": "of an order that PyTorch knows",
    }[REDUCTIONS[name].takes]
    with pytest.raises(SeqbatchTypeError, match=rf"^`values` must have a dtype {must}; got {dtype}\.$"):
        reduce(SequenceBatch(make((3,), dtype), [2, 1]), name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda batch: batch.var(correction=0.5), r"^`correction` must be an integer; got 0\.5\.$"),
        (lambda batch: batch.std(correction=True), r"^`correction` must be an integer; got True\.$"),
        (lambda batch: batch.cumsum(reverse=1), r"^`reverse` must be True or False; got 1\.$"),
    ],
)
def test_refused_options(call: Callable[[SequenceBatch], Any], message: str) -> None:
    with pytest.raises(SeqbatchTypeError, match=message):
        call(SequenceBatch(torch.zeros(3), [2, 1]))


@pytest.mark.parametrize("name", TO_ONE)
def test_an_empty_sequence_gives_what_is_stated_and_takes_no_gradient(name: str) -> None:
    values = make((5, 2), torch.float64).add(9).requires_grad_()
    found = REDUCTIONS[name].of(SequenceBatch(values, [0, 2, 0, 0, 3, 0]))
    empty = [0, 2, 3, 5]
    assert_close(found[empty], torch.full((4, 2), REDUCTIONS[name].of_empty).to(found.dtype), rtol=0, atol=0)
    assert found.dtype is torch.int64 or found[[1, 4]].all()
    if REDUCTIONS[name].is_differentiable:
        assert_close(torch.autograd.grad(found[empty].sum(), values)[0], torch.zeros_like(values), rtol=0, atol=0)
    else:
        assert not found.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_of_none_and_of_nothing_but_empty_sequences(name: str) -> None:
    for lengths in ([], [0], [0, 0, 0]):
        values = torch.zeros(0, 3, 2, requires_grad=True)
        found = REDUCTIONS[name].of(SequenceBatch(values, lengths))
        if REDUCTIONS[name].is_stepwise:
            assert found.lengths == tuple(lengths)
            assert found.values.shape == (0, 3, 2)
        else:
            wanted = torch.full((len(lengths), 3, 2), REDUCTIONS[name].of_empty).to(found.dtype)
            assert_close(found.detach(), wanted)
        if REDUCTIONS[name].is_differentiable:
            call(name, lengths)(values).sum().backward()
            assert values.grad is not None


NO_INDEX = ["all", "any", "argmax", "argmin", "cumsum", "log_softmax", "logsumexp", "max", "min", "softmax", "sum"]


@pytest.mark.parametrize("name", NO_INDEX)
def test_equal_lengths_need_no_index(name: str) -> None:
    batch = SequenceBatch(make((100, 2), torch.float64).requires_grad_(), [2] * 50)
    gradients(reduce(batch, name), [batch.values])
    assert not {"rows", "segment_ids", "offsets"} & vars(batch.structure).keys()


def test_softmax_keeps_the_structure() -> None:
    batch = SequenceBatch(torch.randn(5, 2), [2, 0, 3])
    shares = batch.softmax()
    assert shares.lengths == batch.lengths
    assert_close(shares.sum(), torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]))


LONG = [CHUNK, CHUNK + 1, 0, 1, 3 * CHUNK, CHUNK**2 + 5 * CHUNK + 7, CHUNK - 1, 2000]


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool])
@pytest.mark.parametrize("name", [name for name in NAMES if REDUCTIONS[name].can_take(torch.bool)])
def test_long_sequences_of_integers_are_exact(name: str, dtype: torch.dtype) -> None:
    values = make((sum(LONG), 2), dtype)
    wanted = [one.to(REDUCTIONS[name].dtype_for(dtype)) for one in loop([wide(x) for x in values.split(LONG)], name)]
    assert_close(reduce(SequenceBatch(values, LONG), name), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_long_sequences(name: str) -> None:
    xs = sequences(long_enough(name, LONG), (2,))
    batch = SequenceBatch.from_sequences(xs)
    assert_close(reduce(batch, name), loop(xs, name))
    if REDUCTIONS[name].is_differentiable:
        assert_close(gradients(reduce(batch, name), xs), gradients(loop(xs, name), xs))


@pytest.mark.parametrize("lengths", [[60_000, 0, 3], [2 * CHUNK, 2 * CHUNK - 1, 1], [2 * CHUNK + 1, 300]])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["cumsum", "log_softmax", "logsumexp", "mean", "softmax", "std of all", "sum", "var"])
def test_rounding_errors_do_not_grow_with_the_length(name: str, dtype: torch.dtype, lengths: list[int]) -> None:
    # Added one after another, ones in half precision stop at 2048, and equal terms in single precision drift by 1e-3.
    lengths = long_enough(name, lengths)
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


@pytest.mark.parametrize("lengths", [[3, 0, 2], [2, 2], [2 * CHUNK + 1, 2]])
@pytest.mark.parametrize("name", SMOOTH)
def test_transforms_of_torch_func(name: str, lengths: list[int]) -> None:
    cube, looped_cube = (power(function(name, lengths), 3) for function in (call, looped))

    def slope(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return torch.func.grad(lambda values: function(values).sum())

    given, tangent = (make((sum(lengths), 2), torch.float64, seed) for seed in (0, 1))
    both = torch.stack([given, tangent])
    assert_close(torch.func.jacrev(cube)(given), torch.func.jacrev(looped_cube)(given))
    assert_close(torch.func.jacfwd(cube)(given), torch.func.jacrev(looped_cube)(given))
    found, wanted = (torch.func.jvp(slope(function), (given,), (tangent,)) for function in (cube, looped_cube))
    assert_close(found, wanted)
    assert_close(torch.func.vmap(cube)(both), torch.stack([looped_cube(given), looped_cube(tangent)]))


@pytest.mark.parametrize("lengths", [[3, 0, 2], [2, 2]])
@pytest.mark.parametrize("name", [name for name in NAMES if not REDUCTIONS[name].is_differentiable])
def test_several_values_at_once(name: str, lengths: list[int]) -> None:
    both = torch.stack([make((sum(lengths), 2), torch.float64, seed) for seed in (0, 1)])
    wanted = torch.stack([looped(name, lengths)(values) for values in both])
    assert_close(torch.func.vmap(call(name, lengths))(both), wanted)


@pytest.mark.parametrize("lengths", [[3, 0, 2], [2, 2]])
@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_of_several_outputs_at_once_and_in_forward_mode(name: str, lengths: list[int]) -> None:
    squared = power(call(name, lengths), 2)
    values = make((sum(lengths), 2), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(squared, values, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(squared, values, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_neighbours_do_not_tell_on_the_rounding(name: str) -> None:
    xs = sequences([70, 3, 0, 33, 1], (2,), torch.float32)
    others = sequences([70, 40, 0, 2, 65], (2,), torch.float32)
    found, wanted = (reduce(SequenceBatch.from_sequences([*before, *xs]), name)[-5:] for before in (xs, others))
    assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


EXPONENTIAL = ["log_softmax", "logsumexp", "softmax"]


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_exponentials_of_large_values(name: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16):
        values = (1e4 * make((7, 2), torch.float64)).to(dtype)
        found = reduce(SequenceBatch(values, [3, 0, 4]), name)
        assert_close(found, loop([*values.split([3, 0, 4])], name))
        assert all(one.isfinite().all() for one in found)


@pytest.mark.parametrize("name", EXPONENTIAL)
@pytest.mark.parametrize("fill", [float("-inf"), -1e300])
def test_masked_steps_count_for_nothing(fill: float, name: str) -> None:
    xs = sequences([3, 0, 4], (2,))
    masked = [torch.cat([x[:1], torch.full_like(x[1:2], fill), x[2:]]) for x in xs]
    batch = SequenceBatch.from_sequences(masked)
    assert_close(reduce(batch, name), loop(masked, name))
    assert not batch.softmax()[0][1].any()
    assert_close(gradients(reduce(batch, name), xs), gradients(loop(masked, name), xs))


@pytest.mark.parametrize("name", EXPONENTIAL)
@pytest.mark.parametrize("rows", [[-1.0, -1.0], [1.0, 0.0], [1.0, 1.0], [-1.0, 1.0], [0.0, -1.0]])
def test_infinite_steps_are_as_in_torch_and_stay_there(name: str, rows: list[float]) -> None:
    infinite = torch.tensor([row * float("inf") if row else 0.5 for row in rows], dtype=torch.float64)
    values = torch.cat([infinite, torch.zeros(3, dtype=torch.float64)]).requires_grad_()
    found, wanted = reduce(SequenceBatch(values, [2, 0, 3]), name), loop([*values.split([2, 0, 3])], name)
    assert_close(found, wanted, equal_nan=True)
    assert found[2].isfinite().all()
    slopes = [gradients(results[2:], [values])[0] for results in (found, wanted)]
    assert_close(slopes[0][2:], slopes[1][2:])


def test_a_logarithm_of_a_softmax_that_is_rounded_to_0_is_exact() -> None:
    found = SequenceBatch(torch.tensor([0.0, -1000.0, 5.0]), [2, 1]).log_softmax()
    assert_close(found.values, torch.tensor([0.0, -1000.0, 0.0]), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["std", "std of all", "var", "var of all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_variances_far_from_zero_are_exact(name: str, dtype: torch.dtype) -> None:
    """By squares, those of single precision would be wrong by more than they are."""
    lengths = [3, 0, 40, 2, 5000]
    values = (torch.randint(0, 9, (5045, 2), generator=torch.Generator().manual_seed(0)) + 2000 * 8).to(dtype)
    wanted = [one.to(dtype) for one in loop([*values.double().split(lengths)], name)]
    assert_close(reduce(SequenceBatch(values, lengths), name), wanted)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("name", ["std", "std of all", "var", "var of all"])
def test_variances_of_half_precision_complex_numbers_are_in_half_precision(name: str) -> None:
    lengths, values = [3, 0, 2], make((5, 2), torch.complex64)
    found = reduce(SequenceBatch(values.to(torch.complex32), lengths), name)
    wanted = loop([*values.to(torch.complex32).to(torch.complex64).split(lengths)], name)
    assert_close(found, [one.half() for one in wanted])


@pytest.mark.parametrize("name", ["std", "std of all", "var", "var of all"])
def test_what_is_constant_has_no_variance_and_no_gradient(name: str) -> None:
    values = torch.full((9,), 0.1, requires_grad=True)
    found = REDUCTIONS[name].of(SequenceBatch(values, [3, 0, 6]))
    assert_close(found, torch.zeros(3), rtol=0, atol=0)
    assert_close(torch.autograd.grad(found.sum(), values)[0], torch.zeros(9), rtol=0, atol=0)


def test_as_many_steps_as_are_subtracted_have_no_variance() -> None:
    batch = SequenceBatch(torch.tensor([1.0, 2.0, 4.0, 1.0, 3.0]), [1, 2, 0, 2])
    assert_close(batch.var(correction=2), torch.tensor([float("nan"), float("inf"), 0.0, float("inf")]), equal_nan=True)
    assert_close(batch.var().nan_to_num(7.0), torch.tensor([7.0, 2.0, 0.0, 2.0]))
    assert_close(batch.var(correction=-1)[1:], torch.tensor([2 / 3, 0.0, 2 / 3]))


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("number", [2.0, float("nan"), float("inf"), float("-inf")])
def test_the_first_of_equal_steps_is_the_position(name: str, number: float) -> None:
    other = {"argmax": float("-inf"), "argmin": float("inf")}[name]
    values = torch.tensor([other, number, number, number, other, number, other, other])
    found = REDUCTIONS[name].of(SequenceBatch(values, [3, 0, 3, 2]))
    wanted = torch.stack(loop(list(values.split([3, 0, 3, 2])), name))
    assert_close(found, wanted)
    if abs(number) != float("inf"):
        assert found.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("limit", [0, 2**24])
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_positions_are_exact_in_each_dtype_that_they_are_computed_in(
    name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reductions, "EXACT_IN_SINGLE_LIMIT", limit)
    lengths = [1, 70, 0, *[2] * 40]
    xs = [torch.randn(length, 2).round() for length in lengths]
    found = REDUCTIONS[name].of(SequenceBatch.from_sequences(xs))
    assert_close(list(found), loop(xs, name))


def test_single_precision_is_exact_for_all_positions_that_are_compared_in_it() -> None:
    positions = torch.arange(reductions.EXACT_IN_SINGLE_LIMIT - 9, reductions.EXACT_IN_SINGLE_LIMIT + 1)
    assert_close(positions.float().long(), positions, rtol=0, atol=0)


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
    if REDUCTIONS[name].is_differentiable:
        assert_close(gradients(found, clean), gradients(wanted, clean))
