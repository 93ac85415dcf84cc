"""Which engine runs a layer on given sequences: what each engine can, and then what was measured."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from seqbatch._hooks import has_backward_hooks, has_hooks
from seqbatch._lengths import Lengths
from seqbatch._modes import is_transformed, takes_gradients_only, wants_gradients
from seqbatch.engines import blocks, direct, groups, packed, plain, scan
from seqbatch.engines._interface import Engine
from seqbatch.engines._products import pays

# So many times the overhead of a block is what to run a padded LSTM saves, against blocks. Fitted to 4 to 64 sequences
# of 5 to 60 steps, of sizes 16 to 1024.
WORTH = 8
_KINDS = (nn.LSTM, nn.GRU, nn.RNN)


def choose(layer: nn.Module, values: Tensor, lengths: Lengths) -> Engine:
    """Choose the way to run a layer.

    - `packed` calls the layer itself, so it serves every layer, on every device. On CUDA it is what PyTorch has; on the
      CPU nothing faster is left where no gradients are wanted; and in half precision it rounds as PyTorch does.
    - `blocks` reaches oneDNN, which serves an LSTM in single precision on the CPU.
    - `scan` trains what oneDNN does not serve: its backward pass adds up the gradients of weights once, not in every
      step. And it runs wide layers, of which every step is one large product, and oneDNN has a faster one.
    - `plain` is for what PyTorch transforms (`torch.func`, forward mode), which packed sequences do not survive. Of
      these oneDNN knows gradients only.
    - `groups` is for hooks of the backward pass, which PyTorch does not run around packed sequences.
    - `direct` is what there is nothing to add to where lengths are equal, unless `scan` trains faster.
    """
    if has_backward_hooks(layer) and wants_gradients(chain([values], layer.parameters())):
        return groups.run
    transformed = is_transformed()
    if transformed and is_plain(layer) and not takes_gradients_only():
        return plain.run
    serves = values.is_cpu and values.dtype in (torch.float32, torch.float64)
    if not serves or not is_open(layer) or torch.is_autocast_enabled("cpu"):
        return plain.run if transformed and is_plain(layer) else packed.run
    equal = len(set(lengths.counts)) == 1
    if isinstance(layer, nn.LSTM) and values.dtype is torch.float32 and has_onednn() and blocks.IS_THERE:
        return direct.run if equal else blocks.run
    if transformed:
        return direct.run if equal else plain.run
    if wants_gradients(chain([values], layer.parameters())) or _is_wide(layer, values, lengths):
        return scan.run
    return direct.run if equal else packed.run


def pads(layer: nn.Module, values: Tensor, lengths: Lengths) -> bool:
    """Tell whether the padded engine, which gives no state, takes less time than the one that `choose` gives.

    It saves what does not grow with the steps: a plan, and weights and a feature that tell padding. What it adds is
    the padding, so that there must be little of it. Where PyTorch's own loop runs, it saves a plan only.
    """
    serves = values.is_cpu and values.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    if not (serves and isinstance(layer, nn.RNNBase) and is_open(layer)) or layer.bidirectional or is_transformed():
        return False
    once = not wants_gradients(chain([values], layer.parameters()))
    most = blocks.block_overhead(layer.input_size, layer.hidden_size, once)
    if isinstance(layer, nn.LSTM) and values.dtype is torch.float32 and has_onednn():
        most *= WORTH
    elif not once or _is_wide(layer, values, lengths):  # which `scan` runs
        return False
    padding = len(lengths) * lengths.longest - lengths.total
    return 0 < padding <= min(most, lengths.total)  # the second for memory


def is_open(layer: nn.Module) -> bool:
    """Tell whether the engines of our own can run a layer."""
    return is_plain(layer) and not is_parametrized(layer) and not layer.proj_size


def is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer is no more than its weights and its options, so that it need not be called itself."""
    kept = type(layer).forward in [kind.forward for kind in _KINDS] and "forward" not in vars(layer)
    return kept and isinstance(layer, _KINDS) and not has_hooks(layer)


def _is_wide(layer: nn.Module, values: Tensor, lengths: Lengths) -> bool:
    """Tell whether the smallest product of a step is worth a weight of its own layout."""
    size: Any = layer.hidden_size
    return pays(values, size**2, lengths.longest)


def has_onednn() -> bool:
    """Tell whether oneDNN is there and not switched off."""
    backend: Any = torch.backends.mkldnn  # torch gives its switch no type
    return bool(backend.is_available() and backend.enabled)
