"""The product in every step, of rows by one and the same weight: laid out once for oneDNN where that pays."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# What is added, `(directions, rows, columns)`, the rows `(directions, rows, inner)` and where the result goes.
Product = Callable[[Tensor, Tensor, Tensor], None]

# Elements of a weight from which on oneDNN took less time than MKL: in a step of a GRU of 512 features half of it for 4
# to 32 sequences, of 1024 a third; with 256 features there was little between them, and with fewer its call costs more.
LARGE = 2**18
# To lay out a weight takes as long as some ten steps of one sequence.
MANY = 16


def product_by(weight: Tensor, steps: int) -> Product:
    """Give the function that multiplies rows by a weight and adds.

    Args:
        weight: `(directions, inner, columns)`.
        steps: how many times it will be called.
    """
    if not pays(weight, weight[0].numel(), steps):
        # As a matrix of its own it is read faster in every step than as a view.
        own = weight.contiguous()

        def plain(addend: Tensor, rows: Tensor, out: Tensor) -> None:
            if out is addend:
                out.baddbmm_(rows, own)  # which does not copy what it adds to
            else:
                torch.baddbmm(addend, rows, own, out=out)

        return plain
    laid_out = [_lay_out(one.t().contiguous()) for one in weight]

    def product(addend: Tensor, rows: Tensor, out: Tensor) -> None:
        for way, one in enumerate(laid_out):
            torch.add(addend[way % len(addend)], _multiply(rows[way], one), out=out[way])

    return product


def pays(like: Tensor, elements: int, steps: int) -> bool:
    """Tell whether to lay out a weight of so many elements for so many steps, in the dtype and on the device given."""
    if not (like.is_cpu and like.dtype is torch.float32 and elements >= LARGE and steps >= MANY):
        return False
    backend: Any = torch.backends.mkldnn  # torch gives its switch no type
    return bool(backend.enabled) and IS_THERE


def _lay_out(weight: Tensor) -> Tensor:
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return laid_out


def _multiply(rows: Tensor, laid_out: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, laid_out, None, "none", [], "")
    return product


def probe() -> bool:
    """Try whether this PyTorch has the operators, which it does not document, and they do what they should."""
    rows, weight = (
        torch.ones(2, 3, device="cpu", dtype=torch.float32),
        torch.ones(4, 3, device="cpu", dtype=torch.float32),
    )
    try:
        return bool(torch.equal(_multiply(rows, _lay_out(weight)), rows @ weight.t()))
    except Exception:  # whatever they raise, there is another way
        return False


IS_THERE = probe()
