"""Gradients of weights and biases, which are sums over all sequences: what the laws and the C++ program do not see."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from seqbatch import _kernels, encode

pytestmark = pytest.mark.skipif(not _kernels.IS_THERE, reason="needs the kernels")
KINDS: dict[str, Any] = {
    "LSTM": nn.LSTM,
    "projected": lambda *sizes, **options: nn.LSTM(*sizes, proj_size=sizes[1] // 2, **options),
    "GRU": nn.GRU,
    "RNN": nn.RNN,
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
LENGTHS = {"few": [40], "single steps": [1] * 9, "more than one block of steps": [100, 3, 61, 7, 30]}


def weights_of_outputs(layer: Any, lengths: list[int]) -> list[Tensor]:
    size = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
    return [torch.randn(length, size) for length in lengths]


def gradients(layer: Any, xs: list[Tensor], of_outputs: list[Tensor]) -> list[Tensor]:
    wanted = [one for one in (*layer.parameters(), *xs) if one.requires_grad]
    return list(torch.autograd.grad(encode(layer, xs), wanted, of_outputs))


@every_kind
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_same_bits_at_any_number_of_threads(kind: Any, lengths: list[int]) -> None:
    torch.manual_seed(0)
    layer = kind(70, 260, bidirectional=True)
    xs = [torch.randn(length, 70, requires_grad=True) for length in lengths]
    of_outputs = weights_of_outputs(layer, lengths)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = gradients(layer, xs, of_outputs)
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            for one, other in zip(gradients(layer, xs, of_outputs), wanted, strict=True):
                assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)


NAMES = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [(KINDS[kind], name) for kind in KINDS for name in NAMES] + [(KINDS["projected"], "weight_hr_l0")],
    ids=[f"{kind}, {name}" for kind in KINDS for name in NAMES] + ["projected, weight_hr_l0"],
)
def test_only_those_that_are_wanted(kind: Any, name: str) -> None:
    torch.manual_seed(0)
    layer = kind(5, 20)
    xs, of_outputs = [torch.randn(length, 5) for length in (4, 9)], weights_of_outputs(layer, [4, 9])
    wanted = dict(zip(dict(layer.named_parameters()), gradients(layer, xs, of_outputs), strict=True))[name]
    for other, parameter in layer.named_parameters():
        parameter.requires_grad_(other == name)
    (found,) = gradients(layer, xs, of_outputs)
    assert torch.equal(found, wanted)


@every_kind
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("lengths", [[1, 1], [3, 2]], ids=["single steps", "several"])
def test_not_a_number_and_infinity_reach_the_same_weights_as_in_pytorch(
    kind: Any, bad: float, lengths: list[int]
) -> None:
    torch.manual_seed(0)
    layer = kind(5, 20)
    xs = [torch.randn(length, 5, requires_grad=True) for length in lengths]
    of_outputs = weights_of_outputs(layer, lengths)
    of_outputs[1][0, 3] = bad
    found = gradients(layer, xs, of_outputs)
    output, _ = layer(pack_sequence(xs))
    of_packed = pack_sequence(of_outputs).data
    for one, other in zip(found, torch.autograd.grad(output.data, [*layer.parameters(), *xs], of_packed), strict=True):
        # Infinity may be NaN in PyTorch, which computes `grad - grad * z` for a GRU.
        assert torch.equal(one.isfinite(), other.isfinite())
