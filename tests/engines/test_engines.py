"""Every law for every engine, whichever would be chosen; and gradients of gradients."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import laws
import pytest
import torch
from hypothesis import strategies as st
from parametrize import for_each_kind
from reference import run_alone
from strategies import RECURRENT_KINDS, make, recurrent_layers, sequences, state_for
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqbatch import SequenceBatch, _engines, _kernels, encode, encode_with_state
from seqbatch._engines import Engine, by_length, native, packed, stepwise


@contextmanager
def run_by(engine: Engine) -> Iterator[None]:
    """Run every recurrent layer by one engine."""
    with patch.object(_engines, "choose", lambda call: engine):
        yield


ENGINES: dict[str, tuple[Engine, Sequence[str], torch.dtype]] = {
    "packed": (packed, RECURRENT_KINDS, torch.float64),
    "by_length": (by_length, RECURRENT_KINDS, torch.float64),
    "stepwise": (stepwise, RECURRENT_KINDS, torch.float64),
}
if _kernels.IS_THERE:
    ENGINES["native"] = (native, RECURRENT_KINDS, torch.float64)
    ENGINES["native, single precision"] = (native, RECURRENT_KINDS, torch.float32)
# An engine with a backward pass of its own, where there is one.
OWN: Engine = native if _kernels.IS_THERE else packed
BOTH: tuple[Engine, Engine] = (packed, OWN)

every_engine = {
    f"{name}, {kind}": st.tuples(st.just(engine), recurrent_layers(dtype, [kind]))
    for name, (engine, kinds, dtype) in ENGINES.items()
    for kind in kinds
}


KINDS: dict[str, Any] = {
    "LSTM": nn.LSTM,
    "projected": partial(nn.LSTM, proj_size=1),
    "GRU": nn.GRU,
    "RNN": nn.RNN,
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def inputs(layer: nn.RNNBase, lengths: list[int]) -> list[Tensor]:
    return sequences(lengths, (layer.input_size,), next(layer.parameters()).dtype)


@for_each_kind("engine_and_layer", every_engine, stateful=st.booleans())
def test_alone(lengths: list[int], engine_and_layer: Any, stateful: bool) -> None:
    engine, layer = engine_and_layer
    xs = inputs(layer, lengths)
    with run_by(engine):
        laws.check_alone(layer, xs, state_for(layer, len(xs)) if stateful else None)


@for_each_kind("engine_and_layer", every_engine, fewer=2, random=st.randoms(use_true_random=False))
def test_order(lengths: list[int], engine_and_layer: Any, random: Any) -> None:
    engine, layer = engine_and_layer
    xs = inputs(layer, lengths)
    with run_by(engine):
        laws.check_order(layer, xs, random.sample(range(len(xs)), len(xs)), state_for(layer, len(xs)))


@pytest.mark.slow
@for_each_kind(
    "engine_and_layer",
    every_engine,
    fewer=3,
    poison=st.sampled_from([float("nan"), 1e9, float("inf")]),
    side=st.sampled_from(["left", "right"]),
)
def test_padding(lengths: list[int], engine_and_layer: Any, poison: float, side: Any) -> None:
    engine, layer = engine_and_layer
    with run_by(engine):
        laws.check_padding(layer, inputs(layer, lengths or [0]), poison, side, True)


@for_each_kind("engine_and_layer", every_engine, fewer=2)
def test_other_laws(lengths: list[int], engine_and_layer: Any) -> None:
    engine, layer = engine_and_layer
    xs = inputs(layer, lengths or [0])
    state = state_for(layer, len(xs))
    with run_by(engine):
        laws.check_lengths(layer, xs)
        laws.check_empty(layer, xs, state)
        laws.check_unmodified(layer, xs, state)


@pytest.mark.parametrize("lengths", [[2, 2], [3, 1], [1, 3, 3]])
@every_kind
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_both_orders(lengths: list[int], kind: Any, bias: bool) -> None:
    layer = kind(2, 2, num_layers=2, bidirectional=True, bias=bias, dtype=torch.float64)
    values = make((sum(lengths), 2), torch.float64).requires_grad_()
    state = state_for(layer, len(lengths))

    def outputs(values: Tensor, *hidden: Tensor) -> tuple[Tensor, ...]:
        batch, final = encode_with_state(layer, SequenceBatch(values, lengths), type(state)(*hidden))
        return batch.values, *laws.tensors_of(final)

    given = (values, *laws.tensors_of(state))
    with run_by(OWN):
        assert torch.autograd.gradcheck(outputs, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(outputs, given, fast_mode=True)


@pytest.mark.parametrize("projection", [0, 2])
def test_gradients_of_second_order_are_those_of_packed(projection: int) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=projection)
    found = []
    for engine in BOTH:
        xs = sequences([5, 2, 2, 1], (3,), torch.float32)
        with run_by(engine):
            outputs, state = encode_with_state(layer, xs)
        loss = (torch.cat(outputs) ** 2).sum() + (state.cell**3).sum()
        firsts = torch.autograd.grad(loss, [*xs, *layer.parameters()], create_graph=True)
        penalty = torch.stack([(first**2).sum() for first in firsts]).sum()
        found.append(torch.autograd.grad(penalty, [*xs, *layer.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@every_kind
def test_outputs_and_states_may_be_modified_in_place(kind: Any) -> None:
    layer = kind(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    found = []
    for modify in (torch.Tensor.mul, torch.Tensor.mul_):
        xs = sequences([5, 2, 2], (3,))
        with run_by(OWN):
            batch, state = encode_with_state(layer, SequenceBatch.from_sequences(xs))
        loss = modify(batch.values, 2).sum() + modify(state.hidden, 3).sum()
        found.append(torch.autograd.grad(loss, [*xs, *layer.parameters()]))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("projection", [0, 2])
@pytest.mark.parametrize("part", ["hidden", "cell"])
def test_gradients_of_final_states_alone(projection: int, part: str) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(3, 4, bidirectional=True, proj_size=projection, dtype=torch.float64)
    found = []
    for engine in BOTH:
        xs = sequences([5, 2, 2], (3,))
        with run_by(engine):
            state = encode_with_state(layer, xs)[1]
        found.append(torch.autograd.grad(getattr(state, part).sum(), [*xs, *layer.parameters()]))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_half_precision_is_as_near_to_the_truth_as_a_run_alone(kind: Any, dtype: torch.dtype) -> None:
    # Results differ in the last digit, because other sequences are rounded together; PyTorch's own differ too.
    torch.manual_seed(0)
    layer = kind(3, 4, num_layers=2, bidirectional=True, dtype=dtype)
    exact = copy.deepcopy(layer).double()
    xs = sequences([5, 2, 0, 7], (3,), dtype)
    truth, _ = run_alone(exact, [x.double() for x in xs])
    alone, _ = run_alone(layer, xs)
    outputs = encode(layer, xs)
    assert all(output.dtype is dtype for output in outputs)

    def error(found: list[Tensor]) -> float:
        pairs = zip(found, truth, strict=True)
        return max(float((one - other).detach().abs().max()) for one, other in pairs if len(one))

    assert error(outputs) <= max(2 * error(alone), torch.finfo(dtype).eps)  # one rounding of a value of up to 1


@every_kind
def test_checkpoints_run_it_again(kind: Any) -> None:
    layer = kind(3, 4, dtype=torch.float64)
    values = make((6, 3), torch.float64).requires_grad_()
    batch = SequenceBatch(values, [4, 2])

    def run_layer(values: Tensor) -> Tensor:
        return encode(layer, batch.with_values(values)).values

    with run_by(OWN):
        wanted = torch.autograd.grad(run_layer(values).sum(), values)
        rerun: Any = checkpoint(run_layer, values, use_reentrant=False)
        torch.testing.assert_close(torch.autograd.grad(rerun.sum(), values), wanted)


def test_nan_reaches_the_same_gradients_as_alone() -> None:
    torch.manual_seed(0)
    layer = nn.RNN(2, 3, nonlinearity="relu", dtype=torch.float64)
    xs = sequences([3, 2], (2,))
    with torch.no_grad():
        xs[0][1, 0] = float("nan")
    with run_by(OWN):
        found = torch.autograd.grad(torch.cat(encode(layer, xs)).sum(), [*xs, *layer.parameters()])
    alone = torch.autograd.grad(torch.cat(run_alone(layer, xs)[0]).sum(), [*xs, *layer.parameters()])
    torch.testing.assert_close(found, alone, equal_nan=True)


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_forward_mode_differentiation(kind: Any) -> None:
    layer = kind(2, 3, dtype=torch.float64)
    x, tangent = make((4, 2), torch.float64), make((4, 2), torch.float64, seed=1)
    tangents = []
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        for output in (layer(dual)[0], encode(layer, [dual, x[:2]])[0]):
            tangents.append(torch.autograd.forward_ad.unpack_dual(output).tangent)
    torch.testing.assert_close(tangents[1], tangents[0])
