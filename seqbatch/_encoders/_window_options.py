"""Options of layers over steps: the windows or the border of each, and which are invalid."""

from numbers import Integral
from typing import Any

from torch import nn

from seqbatch._checks.grammar import complaint, describe
from seqbatch._encoders._borders import Border
from seqbatch._encoders._windows import Windows
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError


def windows_of_convolution(layer: Any) -> Windows:
    """Return the windows of an `nn.Conv1d`."""
    kernel, stride, dilation = (_one(layer, size) for size in (layer.kernel_size, layer.stride, layer.dilation))
    if isinstance(layer.padding, str):
        both = dilation * (kernel - 1) if layer.padding == "same" else 0
        left, right = both // 2, both - both // 2
    else:
        left = right = _one(layer, layer.padding)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return Windows(kernel, stride, dilation, Border(mode, left, right))


def windows_of_maximum(layer: nn.MaxPool1d) -> Windows:
    """Return the windows of an `nn.MaxPool1d`."""
    kernel, stride, dilation = (_one(layer, size) for size in (layer.kernel_size, layer.stride, layer.dilation))
    padding = _one(layer, layer.padding)
    border = Border("maximum" if padding else "constant", padding, padding)
    return Windows(kernel, stride, dilation, border, layer.ceil_mode)


def windows_of_mean(layer: nn.AvgPool1d) -> Windows:
    """Return the windows of an `nn.AvgPool1d`."""
    padding = _one(layer, layer.padding)
    divides_by: str | None = "padded" if layer.count_include_pad else "real"
    if not layer.ceil_mode and (layer.count_include_pad or not padding):
        divides_by = None  # all by the kernel
    border = Border("constant", padding, padding)
    return Windows(_one(layer, layer.kernel_size), _one(layer, layer.stride), 1, border, layer.ceil_mode, divides_by)


def windows_of_power_mean(layer: nn.LPPool1d) -> Windows:
    """Return the windows of an `nn.LPPool1d`."""
    stride = layer.kernel_size if layer.stride is None else layer.stride
    return Windows(_one(layer, layer.kernel_size), _one(layer, stride), ceil=layer.ceil_mode)


def border_of(mode: str, layer: Any) -> Border:
    """Return the border of a layer that pads."""
    return Border(mode, *(_one(layer, size) for size in layer.padding))


def _one(layer: nn.Module, size: Any) -> int:
    """Return a size of a layer as an int; PyTorch stores it as passed, as a number or in a tuple or list."""
    number: object = size[0] if isinstance(size, (tuple, list)) else size
    if not isinstance(number, Integral):
        raise complaint(SeqbatchTypeError, "layer", "have sizes and padding that are integers", describe(layer))
    return int(number)


def require_options(layer: nn.Module, windows: Windows) -> None:
    """Raise if the options are invalid, because PyTorch checks them only when the layer is called."""
    must, padding = "", (windows.border.left, windows.border.right)
    if min(windows.kernel, windows.stride, windows.dilation) < 1 or min(padding) < 0:
        must = "have a kernel, a stride and a dilation of 1 at least, and padding of 0 at least"
    elif isinstance(layer, (nn.AvgPool1d, nn.MaxPool1d)) and 2 * max(padding) > windows.kernel:
        must = "have padding of half its kernel at most"
    if must:
        raise complaint(SeqbatchValueError, "layer", must, describe(layer))
