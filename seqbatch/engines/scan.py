"""The scan engine: step by step in packed order, all directions at once, with a backward pass of its own."""

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from seqbatch._lengths import Lengths
from seqbatch._modes import are_batched
from seqbatch._plans import packed_plan
from seqbatch.engines._cells import Cell, GRUCell, LSTMCell, RNNCell, Tensors
from seqbatch.engines._interface import Hidden
from seqbatch.engines._stack import run_stack, weights_of
from seqbatch.engines._steps import Steps, steps_of, turn_plan
from seqbatch.layouts import rearrange

_CELLS: dict[str, Cell] = {
    "LSTM": LSTMCell(),
    "GRU": GRUCell(),
    "RNN_TANH": RNNCell("tanh"),
    "RNN_RELU": RNNCell("relu"),
}


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine` says; for layers without projection, hooks or a `forward` of their own."""
    steps = lengths.plan(steps_of, device=values.device)

    def run_layer(index: int, current: Tensor, start: list[Hidden]) -> tuple[Tensor, Hidden]:
        ways = weights_of(layer, index)
        weights = [_join_ways(parts) for parts in zip(*ways, strict=True)]
        biases: list[Tensor | None] = [bias[:, None] for bias in weights[2:]] or [None, None]
        if not layer.bidirectional:
            rows, *final = _apply(layer.mode, steps, (), current[None], *weights[:2], *biases, *start[0])
            return rows.squeeze(0), tuple(final)  # rows[0] would fill zeros in the backward pass
        turn = lengths.plan(turn_plan, device=current.device)
        both = torch.stack([current, rearrange(current, turn)])
        starts = map(torch.cat, zip(*start, strict=True))
        # Weights of which the backward pass reads copies: kept for PyTorch to raise if they are changed before it.
        read = tuple(part for w_ih, w_hh, *_ in ways for part in ([w_ih, w_hh] if current.requires_grad else [w_hh]))
        rows, *final = _apply(layer.mode, steps, read, both, *weights[:2], *biases, *starts)
        return torch.cat([rows[0], rearrange(rows[1], turn)], 1), tuple(final)

    packed = lengths.plan(packed_plan, device=values.device)
    rows, final = run_stack(layer, rearrange(values, packed), lengths, hidden, run_layer)
    return rearrange(rows, packed.inverse), final


def _join_ways(parts: Tensors) -> Tensor:
    """Give the weights of all directions as one tensor; of one without a copy."""
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def _apply(*arguments: Any) -> Tensors:
    apply: Any = _Scan.apply  # torch gives it no types
    results: Tensors = apply(*arguments)
    return results


class _Scan(torch.autograd.Function):
    """One layer in all its directions: rows in packed order to rows, final hidden state and, for an LSTM, cell."""

    @staticmethod
    def forward(ctx: Any, mode: str, steps: Steps, read: Tensors, inputs: Tensor, *rest: Any) -> Tensors:
        w_ih, w_hh, b_ih, b_hh, *start = rest
        size = start[0].shape[2]
        if b_ih is None:
            gates = torch.bmm(inputs, w_ih.transpose(1, 2))
        else:
            # A GRU adds the last third of the hidden state's bias inside its reset gate, not here.
            known = b_ih + b_hh if mode != "GRU" else torch.cat([(b_ih + b_hh)[..., :-size], b_ih[..., -size:]], 2)
            gates = torch.baddbmm(known, inputs, w_ih.transpose(1, 2))
        computed = _CELLS[mode].forward(steps, gates, w_hh.transpose(1, 2), b_hh, tuple(start))
        ctx.mode, ctx.steps, ctx.number = mode, steps, len(computed)
        ctx.save_for_backward(*computed, inputs, *rest, *read)
        ctx.given = slice(len(computed), len(computed) + 1 + len(rest))
        ctx.set_materialize_grads(False)
        rows = [room[:, -inputs.shape[1] :] for room in computed[: len(start)]]
        return rows[0], *(part.index_select(1, steps.ends) for part in rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(gradient is None for gradient in gradients):  # as from a function that gives none
            return (None,) * len(ctx.needs_input_grad)
        kept = ctx.saved_tensors  # asked for once, since checkpoints give them once
        computed, given = kept[: ctx.number], kept[ctx.given]
        steps: Steps = ctx.steps
        if torch.is_grad_enabled() or are_batched(gradients):
            with torch.enable_grad():
                return None, None, None, *_replay(ctx.mode, steps, given, gradients)
        inputs, w_ih, w_hh, *_ = given
        outside = _from_outside(steps, computed[0][:, -inputs.shape[1] :], gradients)
        d_x, d_h, d_start = _CELLS[ctx.mode].backward(steps, w_hh, computed, *outside)
        of_inputs, of_w_ih, of_w_hh, of_b_ih, of_b_hh = ctx.needs_input_grad[3:8]  # not of biases that are not there
        return (
            None,
            None,
            None,
            torch.bmm(d_x, w_ih) if of_inputs else None,
            torch.bmm(d_x.transpose(1, 2), inputs) if of_w_ih else None,
            _of_hidden_weights(d_h, computed[0].index_select(1, steps.before)) if of_w_hh else None,
            d_x.sum(1, keepdim=True) if of_b_ih else None,
            torch.cat([part.sum(1, keepdim=True) for part in d_h], 2) if of_b_hh else None,
            *d_start,
        )


def _from_outside(steps: Steps, rows: Tensor, gradients: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Give the gradients of rows, of hidden state and cell, but for what the step after adds; new ones, to write to."""
    of_output, *of_ends = gradients  # a cell has none from outside but at the ends
    found = [rows.new_zeros(rows.shape) for _ in (of_ends if of_output is None else of_ends[1:])]
    if of_output is not None:
        found.insert(0, of_output.clone(memory_format=torch.contiguous_format))
    for part, end in zip(found, of_ends, strict=True):
        if end is not None:
            part.index_add_(1, steps.ends, end)
    return found


def _of_hidden_weights(d_h: Tensors, earlier: Tensor) -> Tensor:
    """Give the gradient of the weights from hidden state to gates, from that of what they add in each step."""
    return torch.cat([torch.bmm(part.transpose(1, 2), earlier) for part in d_h], 1)


def _replay(
    mode: str, steps: Steps, wanted: tuple[Tensor | None, ...], gradients: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """Give the same gradients as functions of everything, from a second run through PyTorch's own functions."""
    sizes = torch.tensor(steps.sizes, device="cpu")
    ways: Any = zip(*map(_ways, wanted), strict=False)  # of which only biases may be None
    results = [_run_one_way(mode, sizes, *parts) for parts in ways]
    outputs = [torch.stack([result[0] for result in results])]
    finals = zip(*(result[1:] for result in results), strict=True)
    outputs += [torch.cat(parts).index_select(1, steps.rank) for parts in finals]
    ends = [(output, gradient) for output, gradient in zip(outputs, gradients, strict=True) if gradient is not None]
    asked = [part for part in wanted if part is not None and part.requires_grad]
    reached, weights = zip(*ends, strict=True)
    found = iter(torch.autograd.grad(reached, asked, weights, create_graph=True, allow_unused=True))
    return [next(found) if part is not None and part.requires_grad else None for part in wanted]


def _ways(part: Tensor | None) -> Iterable[Tensor | None]:
    """Give what belongs to each direction, its axis kept."""
    return repeat(None) if part is None else part.split(1)


def _run_one_way(
    mode: str, sizes: Tensor, inputs: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any, *start: Tensor
) -> Tensors:
    """Run one direction on packed rows by PyTorch's function; biases may be None."""
    biases = [] if b_ih is None else [b_ih[0, 0], b_hh[0, 0]]
    state = start if mode == "LSTM" else start[0]
    function: Any = getattr(torch, mode.lower())  # PyTorch's own, of which gradients of any order are to be had
    results: Tensors = function(
        inputs[0], sizes, state, [w_ih[0], w_hh[0], *biases], bool(biases), 1, 0.0, False, False
    )
    return results
