"""Weights laid out once for all blocks: the same results, only without gradients, and what runs where that fails."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from seqbatch import LSTMState, encode, encode_with_state
from seqbatch._lengths import Lengths
from seqbatch.engines import _laid_out, blocks

# Of so many lengths, that are so unlike, that more than one block is made.
XS = [torch.randn(length, 3) for length in (400, 1, 30, 2, 150, 1, 1, 60)]


def runs(layer: nn.LSTM, hidden: Any = None) -> int:
    """Count the blocks that were run by weights laid out."""
    lengths = Lengths(tuple(len(x) for x in XS))
    with patch.object(blocks, "run_laid_out", side_effect=_laid_out.run_laid_out) as run:
        blocks.run(layer, torch.cat(XS), lengths, hidden)
    return run.call_count


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_results_are_the_same(bias: bool, bidirectional: bool) -> None:
    assert _laid_out.IS_THERE, "this build of PyTorch has no oneDNN, so that nothing would be compared"
    layer = nn.LSTM(3, 300, num_layers=2, bias=bias, bidirectional=bidirectional)
    with torch.no_grad():
        assert runs(layer) > 0
        found = encode_with_state(layer, XS)
        with patch.object(_laid_out, "IS_THERE", False):
            assert runs(layer) == 0
            wanted = encode_with_state(layer, XS)
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1].to_torch(), wanted[1].to_torch())


def test_not_where_gradients_are_wanted() -> None:
    layer = nn.LSTM(3, 300)
    assert runs(layer) == 0
    layer.requires_grad_(False)
    assert runs(layer) > 0
    start = torch.zeros(1, len(XS), 300, requires_grad=True)
    assert runs(layer, (start, torch.zeros_like(start))) == 0
    outputs, _ = encode_with_state(layer, XS, LSTMState(start[None], torch.zeros_like(start)[None]))
    torch.cat(outputs).sum().backward()
    assert start.grad is not None
    assert start.grad.abs().min() > 0


class Mean(nn.Module):
    """The mean of all outputs of a layer."""

    def __init__(self, layer: nn.LSTM) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> torch.Tensor:
        return torch.cat(encode(self.layer, XS)).mean()


def test_not_under_transforms() -> None:
    model = Mean(nn.LSTM(3, 300))
    weights = {name: value.detach() for name, value in model.named_parameters()}
    found = torch.func.grad(lambda given: torch.func.functional_call(model, given, ()))(weights)
    model().backward()
    torch.testing.assert_close(found, {name: value.grad for name, value in model.named_parameters()})


def test_not_where_weights_that_are_no_parameters_want_gradients() -> None:
    layer: Any = nn.LSTM(3, 300).requires_grad_(False)
    weight = layer.weight_hh_l0.detach().clone().requires_grad_()
    del layer.weight_hh_l0
    layer.weight_hh_l0 = 2 * weight  # as a network that makes the weights of another does
    torch.cat(encode(layer, XS)).mean().backward()
    assert weight.grad is not None
    assert weight.grad.any()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which PyTorch's forward mode calls itself
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_forward_mode_loses_no_tangent(name: str) -> None:
    model = Mean(nn.LSTM(3, 300))
    weight = getattr(model.layer, name).detach()

    def mean(weight: torch.Tensor) -> Any:
        return torch.func.functional_call(model, {f"layer.{name}": weight}, ())

    with torch.no_grad():
        tangent = torch.func.jvp(mean, (weight,), (torch.ones_like(weight),))[1]
    torch.testing.assert_close(tangent, torch.func.grad(mean)(weight).sum())


def missing(*arguments: Any) -> Any:
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_mkldnn_rnn_layer_weight'")


def refusing(*arguments: Any) -> Any:
    raise RuntimeError("could not create a primitive descriptor")


def wrong(weight: torch.Tensor, other: torch.Tensor, *arguments: Any) -> Any:
    return [2 * weight, other]


@pytest.mark.parametrize("operator", [missing, refusing, wrong])
def test_without_the_operators(monkeypatch: pytest.MonkeyPatch, operator: Any) -> None:
    assert _laid_out.probe()
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_mkldnn_rnn_layer_weight", operator)
    assert not _laid_out.probe()
