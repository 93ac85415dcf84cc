"""The engine that computes step by step, by functions of PyTorch that every transform supports; slow, and exact."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from seqbatch._engines._interface import EngineCall, Hidden
from seqbatch._engines._stack import LayerForm, Tensors, run_layers
from seqbatch._ops.layouts import rearrange
from seqbatch._ops.time_steps import run_time_steps
from seqbatch._structure.plans import packed_backward_plan, packed_plan
from seqbatch._structure.sequence_lengths import Lengths


def can_run(call: EngineCall) -> bool:
    """Return True for a stock layer where PyTorch must see each operation.

    It could run every stock layer, but elsewhere `packed` is faster.
    """
    return call.is_stock and call.is_intercepted


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine.run` says."""
    return run_layers(layer, values, lengths, hidden, run_layer_stepwise)


def run_layer_stepwise(form: LayerForm, tensors: Sequence[Tensor]) -> Tensors:
    """Run one layer as `RunLayer` says: rows in packed order, the longest sequence first."""
    mode, lengths, directions, _ = form
    inputs, weights, start = form.parts_of(tensors)
    if not start:
        sizes = [weights[1].shape[1], *([weights[1].shape[0] // 4] if mode == "LSTM" else [])]
        start = [inputs.new_zeros(directions, len(lengths), size) for size in sizes]
    outputs, finals = [], []
    for d in range(directions):
        plan = lengths.plan(packed_backward_plan if d else packed_plan, device=inputs.device)
        of_one = tuple(part[d] for part in start)
        output, final = _run_direction(mode, lengths, rearrange(inputs, plan), form.of_direction(weights, d), of_one)
        outputs.append(rearrange(output, plan.inverse))
        finals.append(final)
    output = outputs[0] if directions == 1 else torch.cat(outputs, 1)
    return output, *map(torch.stack, zip(*finals, strict=True))


def _run_direction(
    mode: str, lengths: Lengths, rows: Tensor, weights: Sequence[Tensor], start: Hidden
) -> tuple[Tensor, Hidden]:
    """Run one layer in one direction, on rows in packed order; return its output, and its state in caller's order."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if len(rest) > 1 else (None, None)
    project = rest[-1] if len(rest) % 2 else None

    def step(given: Tensor, state: Hidden) -> tuple[Tensor, Hidden]:
        state = _next_state(mode, given, linear(state[0], w_hh, b_hh), state)
        if project is not None:
            state = linear(state[0], project), state[1]
        return state[0], state

    outputs, final = run_time_steps(step, linear(rows, w_ih, b_ih), lengths, start)
    return torch.cat(outputs), final


def _next_state(mode: str, given: Tensor, recalled: Tensor, state: Hidden) -> Hidden:
    """Compute the state after a step, from what the input and the hidden state add to the gates."""
    if mode == "LSTM":
        i, f, g, o = (given + recalled).chunk(4, 1)
        cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell
    if mode == "GRU":
        (r, z, n), (r_h, z_h, n_h) = given.chunk(3, 1), recalled.chunk(3, 1)
        new = (n + (r + r_h).sigmoid() * n_h).tanh()
        return (new + (z + z_h).sigmoid() * (state[0] - new),)
    return (torch.tanh(given + recalled) if mode == "RNN_TANH" else torch.relu(given + recalled),)
