"""The single engine: call the layer itself on each sequence alone; slow, but exact whatever PyTorch does around it."""

import torch
from torch import Tensor, nn

from seqbatch._lengths import Lengths
from seqbatch.engines._interface import Hidden


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine` says; for layers without a `forward` of their own."""
    outputs, finals = [], []
    for i, sequence in enumerate(values.split(lengths.counts)):
        state = None if hidden is None else tuple(part[:, i] for part in hidden)
        output, final = layer(sequence, state if state is None or layer.mode == "LSTM" else state[0])
        outputs.append(output)
        finals.append(final if isinstance(final, tuple) else (final,))
    return torch.cat(outputs), tuple(torch.stack(parts, 1) for parts in zip(*finals, strict=True))
