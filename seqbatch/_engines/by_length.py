"""The group engine: the layer itself on all sequences of a length at once, as tensors without padding; slow, and exact.

It is for layers with their own `forward`, which may not take a PackedSequence. It is also for hooks of the backward
pass, which PyTorch registers on the Tensors that a layer takes and returns, and not on a PackedSequence.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

from seqbatch._checks.grammar import complaint
from seqbatch._engines import equal_lengths
from seqbatch._engines._interface import Hidden, own_encoder, require_shapes
from seqbatch._engines._stock import takes_packed
from seqbatch._structure.sequence_lengths import Lengths, int64_tensor, to_device
from seqbatch._torch import has_hooks
from seqbatch.errors import SeqbatchTypeError

_WHY = "The layer was called on a Tensor, not on a PackedSequence, because {}."
_HOOKS, _FORWARD = (
    _WHY.format(cause) for cause in ("hooks of the backward pass are registered", "its forward is its own")
)

_OF_OTHER_INPUT = (AttributeError, TypeError, RuntimeError)


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine` says."""
    groups = defaultdict(list)
    for i, count in enumerate(lengths.counts):
        groups[count].append(i)
    sequences = values.split(lengths.counts)
    outputs, finals = [], []
    # Not for a stock layer, because its hooks may change the outputs, as in every engine.
    check = None if takes_packed(layer) else require_shapes
    for count, places in groups.items():
        chosen = to_device(int64_tensor(places), values.device)
        start = None if hidden is None else tuple(part.index_select(1, chosen) for part in hidden)
        group = torch.cat([sequences[i] for i in places])
        try:
            output, final = equal_lengths.run(layer, group, Lengths((count,) * len(places)), start, check=check)
        except Exception as error:
            if _is_of_forward(error, layer):
                must = f"run on Tensors of equal length in the forward of {type(layer).__name__}, as its base does"
                raise complaint(SeqbatchTypeError, "layer", must, repr(error), own_encoder(layer)) from error
            error.add_note(_HOOKS if takes_packed(layer) else _FORWARD)
            raise
        outputs += output.split(count)
        finals.append(final)
    order = [i for places in groups.values() for i in places]
    ranks = sorted(range(len(order)), key=order.__getitem__)
    rank = to_device(int64_tensor(ranks), values.device)
    ends = tuple(torch.cat(parts, 1).index_select(1, rank) for parts in zip(*finals, strict=True))
    return torch.cat([outputs[i] for i in ranks]), ends


def _is_of_forward(error: Exception, layer: nn.Module) -> bool:
    """Return True if a layer's own `forward`, and not a hook, raised an error typical of an unsupported input type.

    Other errors, and subclasses of these, may be raised by the user on purpose.
    """
    own = not takes_packed(layer) and not has_hooks(layer)
    return own and type(error) in _OF_OTHER_INPUT and "DefaultCPUAllocator" not in str(error)
