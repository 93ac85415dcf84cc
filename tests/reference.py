"""The oracle: run each sequence alone through the plain PyTorch layer, in a loop; knows nothing of seqbatch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# A state here is a list of tensors `(num_layers, num_directions, batch, size)`, those of all layers one after another.
Hidden = list[Tensor]


def run_alone(
    layer: nn.Module, sequences: Sequence[Tensor], state: Hidden | None = None
) -> tuple[list[Tensor], Hidden]:
    """Give each sequence's output, and the state after it, from a run of the layer on this sequence only."""
    outputs, finals = [], []
    for i, sequence in enumerate(sequences):
        hidden = None if state is None else [part[:, :, i].flatten(0, 1) for part in state]
        output, final, left = _run(layer, sequence, hidden)
        assert not left, "the state holds more than the layers take"
        outputs.append(output)
        finals.append(final)
    if not finals:
        return outputs, []
    return outputs, [torch.stack(parts, 2) for parts in zip(*finals, strict=True)]


def _run(layer: nn.Module, sequence: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden, Hidden]:
    """Run one sequence; also give the part of the state that this layer does not take."""
    if isinstance(layer, nn.Sequential):
        finals: Hidden = []
        for child in layer:
            sequence, final, left = _run(child, sequence, hidden)
            finals += final
            hidden = left if hidden is not None else None
        return sequence, finals, hidden or []
    if isinstance(layer, nn.RNNBase):
        return _run_recurrent(layer, sequence, hidden)
    return layer(sequence.clone()), [], hidden or []  # a copy, for a layer that works in place


def _run_recurrent(layer: nn.RNNBase, sequence: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden, Hidden]:
    directions = 2 if layer.bidirectional else 1
    sizes = [layer.proj_size or layer.hidden_size]
    if isinstance(layer, nn.LSTM):
        sizes.append(layer.hidden_size)
    mine = None if hidden is None else hidden[: len(sizes)]
    left = [] if hidden is None else hidden[len(sizes) :]
    if len(sequence):
        given: Any = () if mine is None else (mine[0],) if len(mine) == 1 else (tuple(mine),)
        output, end = layer(sequence, *given)
        final = list(end) if isinstance(end, tuple) else [end]
    else:  # PyTorch refuses a sequence of no steps; nothing happens to its state
        output = sequence.new_zeros(0, directions * sizes[0])
        final = mine or [sequence.new_zeros(layer.num_layers * directions, size) for size in sizes]
    return output, [part.unflatten(0, (layer.num_layers, directions)) for part in final], left
