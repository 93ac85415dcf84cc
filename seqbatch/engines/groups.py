"""The group engine: the layer itself on all sequences of a length at once, as tensors without padding; slow, and exact.

For hooks of the backward pass: PyTorch hangs them on Tensors that a layer is given and gives, and on no PackedSequence.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

from seqbatch._lengths import Lengths, ints, to_device
from seqbatch.engines import direct
from seqbatch.engines._interface import Hidden

_WHY = "The layer was given a Tensor, and no PackedSequence, because hooks of the backward pass are registered."


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine` says."""
    groups = defaultdict(list)
    for i, count in enumerate(lengths.counts):
        groups[count].append(i)
    sequences = values.split(lengths.counts)
    outputs, finals = [], []
    for count, places in groups.items():
        chosen = to_device(ints(places), values.device)
        start = None if hidden is None else tuple(part.index_select(1, chosen) for part in hidden)
        group = torch.cat([sequences[i] for i in places])
        try:
            output, final = direct.run(layer, group, Lengths((count,) * len(places)), start)
        except Exception as error:  # as of a `forward` that expects a PackedSequence
            error.add_note(_WHY)
            raise
        outputs += output.split(count)
        finals.append(final)
    order = [i for places in groups.values() for i in places]
    ranks = sorted(range(len(order)), key=order.__getitem__)
    rank = to_device(ints(ranks), values.device)
    ends = tuple(torch.cat(parts, 1).index_select(1, rank) for parts in zip(*finals, strict=True))
    return torch.cat([outputs[i] for i in ranks]), ends
