"""Which engine runs a layer on given sequences."""

import torch
from torch import Tensor, nn

from seqbatch._engines import by_length, native, packed, stepwise
from seqbatch._engines._interface import Engine
from seqbatch._engines._stock import takes_packed
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import STOCK_TENSORS, has_backward_hooks, has_hooks, is_intercepted, is_parametrized

_FORWARDS = (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)


def choose(layer: nn.Module, values: Tensor, lengths: Lengths) -> Engine:
    """Return the first of these engines that can run a layer.

    - `groups` is for a `forward` that is not PyTorch's, which may not take a PackedSequence; and for hooks of the
      backward pass, which PyTorch does not run around packed sequences. Where no gradients are recorded no such hook
      runs, and `packed`, which is far faster, runs the others.
    - `plain` is for what PyTorch transforms (`torch.func`, forward mode) or intercepts (dispatch modes), and for
      subclasses of Tensor, such as fake ones. Packed sequences survive neither.
    - `native` is for the CPU in single and double precision, where the kernels are there: the fastest.
    - `packed` calls the layer itself, so it serves every layer, on every device, and rounds as PyTorch does.
    """
    is_stock = is_plain(layer)
    if not is_stock and (not takes_packed(layer) or (has_backward_hooks(layer) and torch.is_grad_enabled())):
        return by_length.run
    if is_intercepted() or type(values) not in STOCK_TENSORS:
        return stepwise.run if is_stock else packed.run
    if is_stock and native.serves(values) and not is_parametrized(layer) and native.reads_weights_of(layer, values):
        return native.run
    return packed.run


def is_plain(layer: nn.Module) -> bool:
    """Return True if a layer has a stock `forward` and no hooks: bypassing it cannot be observed."""
    kind = type(layer)
    is_stock = kind.forward in _FORWARDS and "forward" not in vars(layer) and kind.__call__ is nn.Module.__call__
    return is_stock and isinstance(layer, nn.RNNBase) and not has_hooks(layer)
