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
from seqbatch.engines._blocks import cut
from seqbatch.engines._forward import takes_packed
from seqbatch.engines._interface import Engine
from seqbatch.engines._products import pays
from seqbatch.engines._stack import draws

# So many times the overhead of a block in training is what to run an LSTM padded saves, beside fewer blocks; and an
# overhead is no more rows than this, however small a layer, since rows cost more than their products. Fitted to 4 to 64
# sequences of 5 to 60 steps, and a few of up to 4,000, of sizes 16 to 256, in inference and training.
WORTH = 2
FEW_ROWS = 256
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
    - `groups` is for a `forward` that is not PyTorch's, which may not take a PackedSequence; and for hooks of the
      backward pass, which PyTorch does not run around packed sequences. Where no gradients are recorded no such hook
      runs, and `packed`, which is far faster, runs the others.
    - `direct` is what there is nothing to add to where lengths are equal, unless `scan` trains faster.
    """
    if not takes_packed(layer) or (has_backward_hooks(layer) and torch.is_grad_enabled()):
        return groups.run
    transformed = is_transformed()
    if transformed and is_plain(layer) and not takes_gradients_only():
        return plain.run
    serves = values.is_cpu and values.dtype in (torch.float32, torch.float64)
    if not serves or not is_open(layer) or torch.is_autocast_enabled("cpu"):
        return plain.run if transformed and is_plain(layer) else packed.run
    equal = len(set(lengths.counts)) == 1
    if isinstance(layer, nn.LSTM) and _reaches_onednn(values):
        return direct.run if equal else blocks.run
    if transformed:
        return direct.run if equal else plain.run
    if wants_gradients(chain([values], layer.parameters())) or _is_wide(layer, values, lengths):
        return scan.run
    return direct.run if equal else packed.run


def pads(layer: nn.Module, values: Tensor, lengths: Lengths) -> bool:
    """Tell whether the padded engine, which gives no state, takes less time than the one that `choose` gives.

    It saves what does not grow with the steps: a plan, and weights and a feature that tell padding. What it adds is
    padding, of which there must be little more than in the best blocks. Where PyTorch's own loop runs, a plan is all
    that it saves, and padding all that it adds.
    """
    serves = values.is_cpu and values.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    if not (serves and isinstance(layer, nn.RNNBase) and is_open(layer)) or layer.bidirectional or is_transformed():
        return False
    rows = len(lengths) * lengths.longest
    padding = rows - lengths.total
    # Not more padding than steps, for memory, if it is many rows; nor other draws than `choose` leads to, see `draws`.
    if not 0 < padding <= max(lengths.total, FEW_ROWS) or draws(layer):
        return False
    once = not wants_gradients(chain([values], layer.parameters()))
    overhead, in_training = (
        min(blocks.block_overhead(layer.input_size, layer.hidden_size, kept), FEW_ROWS) for kept in (once, False)
    )
    if isinstance(layer, nn.LSTM) and _reaches_onednn(values):
        return padding <= overhead or rows - _rows_of_blocks(lengths, overhead) <= WORTH * in_training
    return once and padding <= overhead and not _is_wide(layer, values, lengths)


def _rows_of_blocks(lengths: Lengths, overhead: int) -> int:
    """Count the rows of the best blocks, and an overhead for each block after the first."""
    cuts = cut(lengths.counts, overhead)
    return sum((end - begin) * count for begin, end, count in cuts) + overhead * (len(cuts) - 1)


def is_open(layer: nn.Module) -> bool:
    """Tell whether the engines of our own can run a layer."""
    return is_plain(layer) and not is_parametrized(layer) and not layer.proj_size


def is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer is no more than its weights and its options, so that it need not be called itself."""
    kept = type(layer).forward in [kind.forward for kind in _KINDS] and "forward" not in vars(layer)
    kept = kept and type(layer).__call__ is nn.Module.__call__
    return kept and isinstance(layer, _KINDS) and not has_hooks(layer)


def _is_wide(layer: nn.Module, values: Tensor, lengths: Lengths) -> bool:
    """Tell whether the smallest product of a step is worth a weight of its own layout."""
    size: Any = layer.hidden_size
    return pays(values, size**2, lengths.longest)


def _reaches_onednn(values: Tensor) -> bool:
    """Tell whether an LSTM takes oneDNN's kernel."""
    return values.dtype is torch.float32 and has_onednn() and blocks.IS_THERE


def has_onednn() -> bool:
    """Tell whether oneDNN is there and not switched off."""
    backend: Any = torch.backends.mkldnn  # torch gives its switch no type
    return bool(backend.is_available() and backend.enabled)
