"""Options of layers over steps: the windows or the border of each along an axis, and which are invalid.

Axis 0 is the steps. Axis 1 is the features, which layers of two dimensions have.
"""

from numbers import Integral
from typing import Any

from torch import nn

from seqbatch._checks.grammar import complaint, describe
from seqbatch._encoders._borders import Border
from seqbatch._encoders._windows import Windows
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

_PADDED_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d)


def windows_of_convolution(layer: Any, axis: int) -> Windows:
    """Return the windows of an `nn.Conv1d` or `nn.Conv2d`."""
    sizes = (layer.kernel_size, layer.stride, layer.dilation)
    kernel, stride, dilation = (_size_along(axis, size, layer) for size in sizes)
    if isinstance(layer.padding, str):
        both = dilation * (kernel - 1) if layer.padding == "same" else 0
        left, right = both // 2, both - both // 2
    else:
        left = right = _size_along(axis, layer.padding, layer)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return Windows(kernel, stride, dilation, Border(mode, left, right))


def windows_of_maximum(layer: nn.MaxPool1d | nn.MaxPool2d, axis: int) -> Windows:
    """Return the windows of an `nn.MaxPool1d` or `nn.MaxPool2d`."""
    sizes = (layer.kernel_size, layer.stride, layer.dilation, layer.padding)
    kernel, stride, dilation, padding = (_size_along(axis, size, layer) for size in sizes)
    border = Border("maximum" if padding else "constant", padding, padding)
    return Windows(kernel, stride, dilation, border, layer.ceil_mode)


def windows_of_mean(layer: nn.AvgPool1d | nn.AvgPool2d, axis: int) -> Windows:
    """Return the windows of an `nn.AvgPool1d` or `nn.AvgPool2d`."""
    kernel, stride, padding = (
        _size_along(axis, size, layer) for size in (layer.kernel_size, layer.stride, layer.padding)
    )
    divides_by: str | None = "padded" if layer.count_include_pad else "real"
    divides_all_alike = getattr(layer, "divisor_override", None) is not None
    if divides_all_alike or (not layer.ceil_mode and (layer.count_include_pad or not padding)):
        divides_by = None  # all by the same number
    return Windows(kernel, stride, 1, Border("constant", padding, padding), layer.ceil_mode, divides_by)


def windows_of_power_mean(layer: nn.LPPool1d | nn.LPPool2d, axis: int) -> Windows:
    """Return the windows of an `nn.LPPool1d` or `nn.LPPool2d`."""
    stride = layer.kernel_size if layer.stride is None else layer.stride
    kernel, stride = (_size_along(axis, size, layer) for size in (layer.kernel_size, stride))
    return Windows(kernel, stride, ceil=layer.ceil_mode)


def border_of(mode: str, layer: Any, axis: int) -> Border:
    """Return the border of a layer that pads."""
    sides = layer.padding[-2 * (axis + 1) :][:2]  # because PyTorch names the sides of the last axis first
    return Border(mode, *(_size_along(0, size, layer) for size in sides))


def _size_along(axis: int, size: Any, layer: nn.Module) -> int:
    """Return a size of a layer as an int; PyTorch stores it as passed, one number for all axes or one for each."""
    number: object = size[min(axis, len(size) - 1)] if isinstance(size, (tuple, list)) else size
    if not isinstance(number, Integral):
        raise complaint(SeqbatchTypeError, "layer", "have sizes and padding that are integers", describe(layer))
    return int(number)


def require_options(layer: nn.Module, windows: Windows) -> None:
    """Raise if the options are invalid, because PyTorch checks them only when the layer is called."""
    must, padding = "", (windows.border.left, windows.border.right)
    if min(windows.kernel, windows.stride, windows.dilation) < 1 or min(padding) < 0:
        must = "have a kernel, a stride and a dilation of 1 at least, and padding of 0 at least"
    elif isinstance(layer, _PADDED_POOLS) and 2 * max(padding) > windows.kernel:
        must = "have padding of half its kernel at most"
    if must:
        raise complaint(SeqbatchValueError, "layer", must, describe(layer))
