"""NaN and infinity in the hidden weights, which PyTorch multiplies by the zeros of a missing initial state."""

from typing import Any

import laws
import pytest
import torch
from reference import run_alone
from strategies import sequences, state_for
from torch import Tensor, nn

from seqbatch import _kernels, encode_with_state

pytestmark = pytest.mark.skipif(not _kernels.IS_THERE, reason="needs the kernels")
KINDS: dict[str, Any] = {
    "LSTM": nn.LSTM,
    "projected": lambda size, hidden, **options: nn.LSTM(size, hidden, proj_size=hidden - 1, **options),
    "GRU": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}
GATES = {"LSTM": 4, "projected": 4, "GRU": 3, "tanh": 1, "relu": 1}
EVERY_GATE = [(kind, gate) for kind, gates in GATES.items() for gate in range(gates)]
BAD = [(float("nan"), torch.float32), (float("inf"), torch.float32), (-float("inf"), torch.float64)]
# One step needs no state after it; the inputs of few sequences are multiplied ahead, those of many are not.
LENGTHS = {"one step": [1], "steps": [1] * 7, "few": [4, 2], "many": [3, 1, 2, 5, 1, 1, 2, 3]}


def make(kind: str, size: int, gate: int, bad: float, dtype: torch.dtype, bidirectional: bool = False) -> Any:
    """Return a layer in which one hidden weight of the last direction is not finite: that of unit 2 for a gate."""
    laws.seed(0)
    layer = KINDS[kind](5, size, dtype=dtype, bidirectional=bidirectional)
    weight = layer.weight_hh_l0_reverse if bidirectional else layer.weight_hh_l0
    with torch.no_grad():
        weight[gate * size + 2, -1] = bad
    return layer


def results(layer: Any, xs: list[Tensor], outputs: list[Tensor], final: list[Tensor]) -> list[Tensor]:
    """Return outputs, final states, and the gradients of weights and inputs."""
    reached = [*outputs, *final]
    of_reached = [torch.linspace(1, 2, each.numel(), dtype=each.dtype).view_as(each) for each in reached]
    return [*reached, *torch.autograd.grad(reached, [*layer.parameters(), *xs], of_reached)]


def run(layer: Any, xs: list[Tensor], state: Any = None) -> list[Tensor]:
    outputs, final = encode_with_state(layer, xs, state)
    return results(layer, xs, outputs, laws.tensors_of(final))


def assert_nan_at_the_same_places(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.isnan(), other.isnan())


@pytest.mark.parametrize(("kind", "gate"), EVERY_GATE)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_they_reach_what_they_reach_in_pytorch(
    kind: str, gate: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = _kernels.ISA_NUMBER
    for bad, dtype in BAD:
        layer, xs = make(kind, 17, gate, bad, dtype, bidirectional=True), sequences(lengths, (5,), dtype)
        wanted = results(layer, xs, *run_alone(layer, xs))
        assert wanted[0].isnan().any()
        assert not wanted[0].isnan().all()
        for isa in range(best + 1):
            monkeypatch.setattr(_kernels, "ISA_NUMBER", isa)
            assert_nan_at_the_same_places(run(layer, xs), wanted)


# Threads share units where sequences are few and steps long, and each lays out the weights of its own.
@pytest.mark.parametrize(("kind", "gate"), EVERY_GATE)
@pytest.mark.parametrize("lengths", [[1], [3]], ids=str)
def test_they_reach_the_same_where_threads_share_units(kind: str, gate: int, lengths: list[int]) -> None:
    layer, xs = make(kind, 400, gate, torch.nan, torch.float32), sequences(lengths, (5,), torch.float32)
    wanted, threads = results(layer, xs, *run_alone(layer, xs)), torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert_nan_at_the_same_places(run(layer, xs), wanted)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [0.5, torch.nan, torch.inf])
def test_a_state_of_zeros_equals_no_state(kind: str, bad: float) -> None:
    layer, xs = make(kind, 17, 0, bad, torch.float32), sequences(LENGTHS["many"], (5,), torch.float32)
    state = state_for(layer, len(xs))
    zeros = state.reset(slice(None)).detach()
    torch.testing.assert_close(run(layer, xs, zeros), run(layer, xs), rtol=0, atol=0, equal_nan=True)
