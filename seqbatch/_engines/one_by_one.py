"""The alone engine: call the layer on one sequence after another, because it rounds by the range of its input."""

import torch
from torch import Tensor, nn

from seqbatch._engines._interface import Hidden, as_arguments, parts_of
from seqbatch._structure.sequence_lengths import Lengths


def run(layer: nn.Module, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine` says.

    Raises:
        SeqbatchTypeError: the layer, by a `forward` of its own, does not return a Tensor and a state.
    """
    batch_axis = 0 if layer.batch_first else 1
    outputs, finals = [], []
    for i, sequence in enumerate(values.unsqueeze(batch_axis).split(lengths.counts, 1 - batch_axis)):
        start = None if hidden is None else tuple(part[:, i : i + 1] for part in hidden)
        output, final = parts_of(layer(sequence, *as_arguments(start)), layer, Tensor)
        outputs.append(output)
        finals.append(final)
    joined = torch.cat(outputs, 1 - batch_axis).squeeze(batch_axis)
    return joined, tuple(torch.cat(parts, 1) for parts in zip(*finals, strict=True))
