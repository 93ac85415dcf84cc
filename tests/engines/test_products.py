"""The product of every step: the same by MKL and by oneDNN, and what happens where oneDNN's operators are not there."""

from typing import Any
from unittest.mock import patch

import laws
import pytest
import torch

from seqbatch import encode
from seqbatch.engines import _products, blocks


def set_operator(monkeypatch: pytest.MonkeyPatch, operator: Any) -> None:
    """Put something in the place of oneDNN's product."""
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operator)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("added", [1, 2])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_both_ways_give_the_same(directions: int, added: int, rows: int) -> None:
    assert _products.IS_THERE, "this build of PyTorch has no oneDNN, so that nothing would be compared"
    weight, given = torch.randn(directions, 5, 6), torch.randn(directions, rows, 5)
    addend = torch.randn(min(added, directions), rows if added == 2 else 1, 6)
    results = []
    for large in (0, 10**9):
        with patch.multiple(_products, LARGE=large, MANY=0):
            out = torch.full((directions, rows, 6), float("nan"))
            _products.product_by(weight, 1)(addend, given, out)
            results.append(out)
    torch.testing.assert_close(*results)
    torch.testing.assert_close(results[0], addend + given @ weight)


def test_where_it_pays() -> None:
    like, large, many = torch.empty(0), _products.LARGE, _products.MANY
    assert _products.pays(like, large, many)
    assert not _products.pays(like, large - 1, many)
    assert not _products.pays(like, large, many - 1)
    assert not _products.pays(like.double(), large, many)
    assert not _products.pays(like.to("meta"), large, many)


def missing(*arguments: Any) -> Any:
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")


def refusing(*arguments: Any) -> Any:
    raise RuntimeError("could not create a primitive descriptor")


def wrong(rows: torch.Tensor, weight: Any, *arguments: Any) -> Any:
    return rows.new_zeros(len(rows), 4)


@pytest.mark.parametrize("operator", [missing, refusing, wrong])
def test_without_the_operators_all_runs_as_ever(monkeypatch: pytest.MonkeyPatch, operator: Any) -> None:
    gru = torch.nn.GRU(4, 4)
    xs = [torch.randn(3, 4), torch.randn(1, 4)]
    wanted = encode(gru, xs)
    set_operator(monkeypatch, operator)
    assert not _products.probe()
    with patch.multiple(_products, LARGE=0, MANY=0, IS_THERE=False):
        found = encode(gru, xs)
    torch.testing.assert_close(found, wanted)


def test_another_default_dtype_is_no_reason() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert _products.probe()
        assert blocks.probe()
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("kind", [torch.nn.GRU, torch.nn.RNN])
def test_wide_layers_as_they_are(kind: Any) -> None:
    layer = kind(3, 512, bidirectional=True)
    xs = [torch.randn(steps, 3, requires_grad=True) for steps in (_products.MANY, 1, 5)]
    assert _products.pays(xs[0], layer.hidden_size**2, _products.MANY)
    laws.check_alone(layer, xs)
