"""What engines of their own have in common: layer upon layer, with the states of each and dropout between them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from seqbatch._lengths import Lengths
from seqbatch._plans import Plan
from seqbatch.engines._interface import Hidden
from seqbatch.layouts import rearrange

# From the number of a layer, its input and its initial state to its output and final state. Rows are in an order of the
# engine's own; initial states are `(directions, batch, size)`, the longest sequence first, and final ones in the
# caller's order, for they are gathered anyway.
RunLayer = Callable[[int, Tensor, Hidden], tuple[Tensor, Hidden]]


def run_stack(
    layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None, enter: Plan, run_layer: RunLayer
) -> tuple[Tensor, Hidden]:
    """Run all layers of a layer as `Engine` says, given a function that runs one of them.

    Args:
        layer: the layer.
        values: `(total_steps, input_size)`.
        lengths: their lengths.
        hidden: as for an engine.
        enter: flat values to the engine's order of rows.
        run_layer: see above.
    """
    directions = 2 if layer.bidirectional else 1
    if hidden is None:
        zeros = values.new_zeros(layer.num_layers * directions, len(lengths), layer.hidden_size)
        starts: Hidden = (zeros, zeros) if layer.mode == "LSTM" else (zeros,)
    else:
        starts = tuple(part.index_select(1, lengths.on("order", values.device)) for part in hidden)
    current = rearrange(values, enter)
    finals = []
    for i in range(layer.num_layers):
        if i and layer.dropout:
            current = nn.functional.dropout(current, layer.dropout, layer.training)
        current, final = run_layer(i, current, tuple(part[i * directions : (i + 1) * directions] for part in starts))
        finals.append(final)
    ends = finals[0] if len(finals) == 1 else tuple(map(torch.cat, zip(*finals, strict=True)))
    return rearrange(current, enter.inverse), ends


def weights_of(layer: nn.RNNBase, index: int) -> list[list[Tensor]]:
    """Give the weights of one layer for each of its directions: input, hidden, and the biases of both if it has any."""
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if layer.bias else [])]
    ways = ["", "_reverse"] if layer.bidirectional else [""]
    return [[getattr(layer, f"{kind}_l{index}{way}") for kind in kinds] for way in ways]
