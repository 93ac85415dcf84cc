"""What engines of their own have in common: layer upon layer, with the states of each and dropout between them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from seqbatch._lengths import Lengths
from seqbatch.engines._interface import Hidden

# From the number of a layer, its input and the initial state of each direction to its output and final state. Rows are
# in an order of the engine's own; initial states are `(1, batch, size)`, the longest sequence first, and final ones
# `(directions, batch, size)` in the caller's order, for they are gathered anyway.
RunLayer = Callable[[int, Tensor, list[Hidden]], tuple[Tensor, Hidden]]


def run_stack(
    layer: nn.RNNBase, rows: Tensor, lengths: Lengths, hidden: Hidden | None, run_layer: RunLayer
) -> tuple[Tensor, Hidden]:
    """Run all layers of a layer, given a function that runs one of them.

    Args:
        layer: the layer.
        rows: `(rows, input_size)`, in the engine's order.
        lengths: the lengths.
        hidden: as for an engine.
        run_layer: see above.

    Returns:
        the outputs, in the engine's order, and the final state as of an engine.
    """
    directions = 2 if layer.bidirectional else 1
    if hidden is None:
        sizes = [layer.proj_size or layer.hidden_size, *([layer.hidden_size] if layer.mode == "LSTM" else [])]
        zeros = tuple(rows.new_zeros(1, len(lengths), size) for size in sizes)
        starts: list[Hidden] = [zeros] * (layer.num_layers * directions)
    else:
        ordered = [part.index_select(1, lengths.on("order", rows.device)).split(1) for part in hidden]
        starts = list(zip(*ordered, strict=True))
    finals = []
    for i in range(layer.num_layers):
        if i and draws(layer):
            rows = nn.functional.dropout(rows, layer.dropout, layer.training)
        rows, final = run_layer(i, rows, starts[i * directions : (i + 1) * directions])
        finals.append(final)
    ends = finals[0] if len(finals) == 1 else tuple(map(torch.cat, zip(*finals, strict=True)))
    return rows, ends


def draws(layer: nn.RNNBase) -> bool:
    """Tell whether dropout draws random numbers, one for each row that it is given.

    Then the rows must not depend on whether gradients or states are wanted: `torch.utils.checkpoint` may run a layer
    without gradients, and once more with them.
    """
    return bool(layer.training and layer.dropout and layer.num_layers > 1)


def weights_of(layer: nn.RNNBase, index: int) -> list[list[Tensor]]:
    """Give the weights of one layer for each of its directions: input, hidden, the biases of both, the projection."""
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if layer.bias else [])]
    kinds += ["weight_hr"] if layer.proj_size else []
    ways = ["", "_reverse"] if layer.bidirectional else [""]
    return [[getattr(layer, f"{kind}_l{index}{way}") for kind in kinds] for way in ways]
