"""Which engine runs a layer on given sequences."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from seqbatch._hooks import has_backward_hooks, has_hooks
from seqbatch._lengths import Lengths
from seqbatch._modes import is_transformed
from seqbatch.engines import groups, native, packed, plain
from seqbatch.engines._forward import takes_packed
from seqbatch.engines._interface import Engine

_KINDS = (nn.LSTM, nn.GRU, nn.RNN)


def choose(layer: nn.Module, values: Tensor, lengths: Lengths) -> Engine:
    """Return the first of these engines that can run a layer.

    - `groups` is for a `forward` that is not PyTorch's, which may not take a PackedSequence; and for hooks of the
      backward pass, which PyTorch does not run around packed sequences. Where no gradients are recorded no such hook
      runs, and `packed`, which is far faster, runs the others.
    - `plain` is for what PyTorch transforms (`torch.func`, forward mode), and for subclasses of Tensor, such as fake
      ones. Packed sequences survive neither.
    - `native` is for the CPU in single and double precision, where the kernels are there: the fastest.
    - `packed` calls the layer itself, so it serves every layer, on every device, and rounds as PyTorch does.
    """
    if not takes_packed(layer) or (has_backward_hooks(layer) and torch.is_grad_enabled()):
        return groups.run
    if is_transformed() or type(values) not in native.PLAIN:
        return plain.run if is_plain(layer) else packed.run
    if native.serves(values) and _is_open(layer, values) and not torch.is_autocast_enabled("cpu"):
        return native.run
    return packed.run


def _is_open(layer: Any, values: Tensor) -> bool:
    """Return True if the kernels can compute what a layer does."""
    return (
        is_plain(layer)
        and not is_parametrized(layer)
        and not layer.proj_size
        and native.reads_weights_of(layer, values)
    )


def is_plain(layer: nn.Module) -> bool:
    """Return True if a layer has a stock `forward` and no hooks: bypassing it cannot be observed."""
    kept = type(layer).forward in [kind.forward for kind in _KINDS] and "forward" not in vars(layer)
    kept = kept and type(layer).__call__ is nn.Module.__call__
    return kept and isinstance(layer, _KINDS) and not has_hooks(layer)
