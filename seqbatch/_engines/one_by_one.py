"""The engine that calls the layer on one sequence after another; slow, but it can run every layer.

It is for quantized layers, which round by the range of their input.
"""

import torch
from torch import Tensor, nn

from seqbatch._engines._interface import EngineCall, Hidden, as_arguments, parts_of
from seqbatch._structure.sequence_lengths import Lengths


def can_run(call: EngineCall) -> bool:
    """Return True, because a layer runs each sequence alone as it would for the caller."""
    return True


def run(layer: nn.Module, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine.run` says.

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
