"""What engines of their own have in common: layer upon layer, with the states of each and dropout between them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from seqbatch._lengths import Lengths
from seqbatch._plans import Plan
from seqbatch.engines._interface import Hidden
from seqbatch.layouts import rearrange

# From the number of a layer, its input and its initial state to its output and final state; rows in an order of the
# engine's own, states `(directions, batch, size)` of the longest sequence first.
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
    rank = lengths.plan(rank_plan, device=values.device)
    if hidden is None:
        zeros = values.new_zeros(layer.num_layers * directions, len(lengths), layer.hidden_size)
        starts: Hidden = (zeros, zeros) if layer.mode == "LSTM" else (zeros,)
    else:
        starts = tuple(_reorder(part, rank.inverse) for part in hidden)
    current = rearrange(values, enter)
    finals = []
    for i in range(layer.num_layers):
        if i and layer.dropout:
            current = nn.functional.dropout(current, layer.dropout, layer.training)
        current, final = run_layer(i, current, tuple(part[i * directions : (i + 1) * directions] for part in starts))
        finals.append(final)
    ends = (torch.cat(parts) for parts in zip(*finals, strict=True))
    return rearrange(current, enter.inverse), tuple(_reorder(end, rank) for end in ends)


def weights_of(layer: nn.RNNBase, index: int) -> list[list[Tensor]]:
    """Give the weights of one layer for each of its directions: input, hidden, and the biases of both if it has any."""
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if layer.bias else [])]
    ways = ["", "_reverse"] if layer.bidirectional else [""]
    return [[getattr(layer, f"{kind}_l{index}{way}") for kind in kinds] for way in ways]


def rank_plan(lengths: Lengths) -> Plan:
    """Sequences, longest first, to the caller's order."""
    return Plan(lengths.rank, lengths.order)


def _reorder(state: Tensor, plan: Plan) -> Tensor:
    """Gather along the second axis, that of the batch."""
    return rearrange(state.transpose(0, 1), plan).transpose(0, 1)
