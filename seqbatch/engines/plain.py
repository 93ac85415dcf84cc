"""The plain engine: step by step, by functions of PyTorch that each of its transforms knows; slow, and exact."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from seqbatch._lengths import Lengths
from seqbatch._plans import packed_plan
from seqbatch.engines._interface import Hidden
from seqbatch.engines._stack import run_stack, weights_of
from seqbatch.engines._steps import turn_plan
from seqbatch.layouts import rearrange


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine` says; for layers without hooks or a `forward` of their own."""
    packed = lengths.plan(packed_plan, device=values.device)
    turn = lengths.plan(turn_plan, device=values.device) if layer.bidirectional else None

    def run_layer(index: int, rows: Tensor, start: list[Hidden]) -> tuple[Tensor, Hidden]:
        inputs = [rows] if turn is None else [rows, rearrange(rows, turn)]
        ways = zip(inputs, weights_of(layer, index), start, strict=True)
        results = [_run_way(layer.mode, lengths, *parts) for parts in ways]
        output = results[0][0] if turn is None else torch.cat([results[0][0], rearrange(results[1][0], turn)], 1)
        return output, tuple(torch.stack(parts) for parts in zip(*(final for _, final in results), strict=True))

    rows, final = run_stack(layer, rearrange(values, packed), lengths, hidden, run_layer)
    return rearrange(rows, packed.inverse), final


def run_layer(
    mode: str, lengths: Lengths, directions: int, inputs: Tensor, weights: Sequence[Tensor], start: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Run one layer in all its directions on flat values, from states in the caller's order; see the native engine."""
    packed = lengths.plan(packed_plan, device=inputs.device)
    rows, each = rearrange(inputs, packed), len(weights) // directions
    turn = lengths.plan(turn_plan, device=inputs.device)
    size = weights[1].shape[1]
    if start:
        states = [part.index_select(1, lengths.on("order", inputs.device)) for part in start]
    else:
        states = [inputs.new_zeros(directions, len(lengths), size) for _ in range(2 if mode == "LSTM" else 1)]
    outputs, finals = [], []
    for d in range(directions):
        given = rearrange(rows, turn) if d else rows
        way = list(weights[d * each : (d + 1) * each])
        output, final = _run_way(mode, lengths, given, way, tuple(part[d : d + 1] for part in states))
        outputs.append(rearrange(output, turn) if d else output)
        finals.append(final)
    return rearrange(torch.cat(outputs, 1), packed.inverse), *map(torch.stack, zip(*finals, strict=True))


def _run_way(mode: str, lengths: Lengths, rows: Tensor, weights: list[Tensor], start: Hidden) -> tuple[Tensor, Hidden]:
    """Run one layer in one direction, on rows in packed order; its output, and its state in the caller's order."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if len(rest) > 1 else (None, None)
    project = rest[-1] if len(rest) % 2 else None
    state = tuple(part[0] for part in start)
    outputs, ended = [], []
    for step in linear(rows, w_ih, b_ih).split(lengths.step_sizes):
        count = step.shape[0]
        if count < state[0].shape[0]:
            ended.append(tuple(part[count:] for part in state))
            state = tuple(part[:count] for part in state)
        state = _next(mode, step, linear(state[0], w_hh, b_hh), state)
        if project is not None:
            state = linear(state[0], project), state[1]
        outputs.append(state[0])
    rank = lengths.on("rank", rows.device)
    ends = zip(state, *reversed(ended), strict=True)
    return torch.cat(outputs), tuple(torch.cat(parts).index_select(0, rank) for parts in ends)


def _next(mode: str, given: Tensor, recalled: Tensor, state: Hidden) -> Hidden:
    """Give the state after a step, from what the input and the hidden state add to the gates."""
    if mode == "LSTM":
        i, f, g, o = (given + recalled).chunk(4, 1)
        cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell
    if mode == "GRU":
        (r, z, n), (r_h, z_h, n_h) = given.chunk(3, 1), recalled.chunk(3, 1)
        new = (n + (r + r_h).sigmoid() * n_h).tanh()
        return (new + (z + z_h).sigmoid() * (state[0] - new),)
    return (torch.tanh(given + recalled) if mode == "RNN_TANH" else torch.relu(given + recalled),)
