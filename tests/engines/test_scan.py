"""The backward pass of the scan engine: which gradients it computes, from which it is given, and what it refuses."""

from contextlib import nullcontext
from itertools import product
from typing import Any
from unittest.mock import patch

import laws
import pytest
import torch
from strategies import sequences, state_for
from torch import Tensor, nn

from seqbatch import encode, encode_with_state, engines
from seqbatch._lengths import Lengths
from seqbatch.engines import choose, packed, scan


class Without(torch.autograd.Function):
    """A function of which no gradient comes back."""

    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        return given.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        return None


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_where_no_gradient_comes_back_it_gives_none(kind: Any, bidirectional: bool, create_graph: bool) -> None:
    layer = kind(2, 3, bidirectional=bidirectional, dtype=torch.float64)
    xs = sequences([3, 2], (2,))
    assert choose(layer, torch.cat(xs), Lengths((3, 2))) is scan.run
    _, state = encode_with_state(layer, xs)
    _, alone = layer(xs[0])
    for hidden in (state.hidden, alone[0]):  # as PyTorch's own
        apply: Any = Without.apply
        found = torch.autograd.grad(
            apply(hidden).sum(), list(layer.parameters()), allow_unused=True, create_graph=create_graph
        )
        assert found == (None,) * len(found)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_alone_whatever_is_frozen(kind: Any, bidirectional: bool) -> None:
    layer = kind(2, 2, num_layers=2, bidirectional=bidirectional, dtype=torch.float64)
    xs, state = sequences([1, 3], (2,)), state_for(layer, 2)
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    for of_inputs, of_state, *of_weights in product([False, True], repeat=2 + len(names)):
        if not any([of_inputs, of_state, *of_weights]):
            continue
        for x in xs:
            x.requires_grad_(of_inputs)
        for part in laws.tensors_of(state):
            part.requires_grad_(of_state)
        for name, weight in layer.named_parameters():
            weight.requires_grad_(of_weights[names.index(name.partition("_l")[0])])
        with patch.object(engines, "choose", lambda *arguments: scan.run):
            laws.check_alone(layer, xs, state)


@pytest.mark.parametrize(("kind", "parts"), [(nn.LSTM, 1), (nn.GRU, 2), (nn.RNN, 1)])
def test_what_is_frozen_costs_no_product(kind: Any, parts: int) -> None:
    def products(*frozen: str) -> int:
        layer = kind(2, 3, dtype=torch.float64)
        xs = sequences([3, 1, 2], (2,))
        for name, tensor in [*layer.named_parameters(), *(("input", x) for x in xs)]:
            tensor.requires_grad_(name not in frozen)
        outputs = torch.cat(encode(layer, xs))
        with patch.object(torch, "bmm", wraps=torch.bmm) as bmm:
            outputs.sum().backward()
        return int(bmm.call_count)

    everything = products()
    assert products("input") == everything - 1
    assert products("weight_ih_l0") == everything - 1
    assert products("weight_hh_l0") == everything - parts
    assert products("input", "weight_ih_l0", "weight_hh_l0") == everything - 2 - parts


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_any_weight_of_one_direction_changed_before_the_backward_pass_is_told_of(kind: Any, name: str) -> None:
    layer, xs = kind(2, 3), [torch.randn(3, 2), torch.randn(1, 2)]
    outputs = torch.cat(encode(layer, xs))
    with torch.no_grad():
        getattr(layer, name).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("way", ["", "_reverse"])
@pytest.mark.parametrize(
    ("name", "of_inputs", "read"),
    [
        ("weight_hh_l0", True, True),
        ("weight_hh_l0", False, True),
        ("weight_hh_l1", False, True),
        ("weight_ih_l0", True, True),
        ("weight_ih_l0", False, False),
        ("weight_ih_l1", False, True),
        ("bias_ih_l1", True, False),
        ("bias_hh_l1", True, False),
    ],
)
def test_weights_changed_before_the_backward_pass_are_told_of_as_by_pytorch(
    kind: Any, way: str, name: str, of_inputs: bool, read: bool
) -> None:
    layer = kind(2, 3, num_layers=2, bidirectional=True, dtype=torch.float64)
    xs = [x.requires_grad_(of_inputs) for x in sequences([3, 1], (2,))]
    for engine in (packed.run, scan.run):
        with patch.object(engines, "choose", lambda *arguments, engine=engine: engine):
            outputs = torch.cat(encode(layer, xs))
        with torch.no_grad():
            getattr(layer, name + way).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation") if read else nullcontext():
            outputs.sum().backward()
