"""The native engine: kernels of our own on the CPU, which read each step where it stands in the flat values."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seqbatch import _kernels
from seqbatch._engines import stepwise
from seqbatch._engines._interface import Hidden
from seqbatch._engines._stack import run_layers, weights_of
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import are_batched, is_dense, is_intercepted, wants_gradients

Tensors = tuple[Tensor, ...]

_KINDS = {"LSTM": 0, "GRU": 1, "RNN_TANH": 2, "RNN_RELU": 3}
# Numbers that are kept per unit and step for the backward pass, and gradients of gates; see `recurrent.h`.
SAVED = {"LSTM": 5, "GRU": 4, "RNN_TANH": 0, "RNN_RELU": 0}
_GATES = {"LSTM": 4, "GRU": 4, "RNN_TANH": 1, "RNN_RELU": 1}
_WEIGHT_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_PARTS, _FINALS = ("hidden", "cell"), ("final_hidden", "final_cell")


DTYPES = (torch.float32, torch.float64)


def serves(values: Tensor) -> bool:
    """Return True if the kernels can read these values, and neither autocast nor what intercepts asks for others."""
    is_known = values.is_cpu and values.dtype in DTYPES and is_dense(values)
    return is_known and _kernels.IS_THERE and not (torch.is_autocast_enabled("cpu") or is_intercepted())


def reads_weights_of(layer: Any, values: Tensor) -> bool:
    """Return True if the kernels can read all weights of a stock layer."""
    directions, size = 2 if layer.bidirectional else 1, layer.hidden_size
    if layer.proj_size:
        return False
    for i in range(layer.num_layers):
        input_size = directions * size if i else layer.input_size
        if not reads_weights(layer.mode, weights_of(layer, i), values, directions, input_size, size):
            return False
    return True


def reads_weights(
    mode: str, weights: Sequence[Tensor], values: Tensor, directions: int, input_size: int, size: int
) -> bool:
    """Return True if the weights of one layer have the dtype of the values and the shapes that the layer declares.

    Any weight of a layer can be replaced, and a kernel must not read beyond its memory.
    """
    rows = size * _WEIGHT_GATES[mode]
    shapes = ((rows, input_size), (rows, size), (rows,), (rows,))[: len(weights) // directions]
    for weight, shape in zip(weights, shapes * directions, strict=True):
        if not is_read_as(weight, shape, values.dtype):
            return False
    return True


def is_read_as(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Return True if the kernels can read a tensor as one of a shape and a dtype."""
    return tensor.dtype is dtype and tensor.shape == shape and is_dense(tensor)


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine` says; for values that it `serves`, and stock layers whose weights it reads."""
    output, final = run_layers(layer, values, lengths, hidden, _run_layer)
    return _apart(output), final


def run_cell(
    mode: str, weights: Sequence[Tensor], values: Tensor, lengths: Lengths, hidden: Hidden | None
) -> tuple[Tensor, Hidden]:
    """Run a cell, given by its mode and weights, as `Engine` says; for what the kernels serve and read."""
    output, *final = _run_layer(mode, lengths, 1, values, weights, hidden or ())
    return _apart(output), tuple(final)


def _apart(output: Tensor) -> Tensor:
    # A copy, because the backward pass reads the output, which callers may modify in place.
    return output.clone() if output.requires_grad else output


def _run_layer(
    mode: str,
    lengths: Lengths,
    directions: int,
    inputs: Tensor,
    weights: Sequence[Tensor],
    start: Sequence[Tensor],
) -> Tensors:
    if not all(map(is_dense, start)):  # their shapes, dtypes and devices were checked, as those of all states
        return stepwise.run_layer(mode, lengths, directions, inputs, weights, start)
    if wants_gradients((inputs, *weights, *start)):
        apply: Any = _Layer.apply  # torch gives it no types
        results: Tensors = apply(mode, lengths, directions, len(weights), inputs, *weights, *start)
        return results
    return compute(mode, lengths, directions, inputs, weights, start, keep=False)[:-1]


class _Layer(torch.autograd.Function):
    """One layer in all its directions, with a backward pass by the kernels."""

    @staticmethod
    def forward(
        ctx: Any, mode: str, lengths: Lengths, directions: int, number: int, inputs: Tensor, *rest: Tensor
    ) -> Tensors:
        *results, saved = compute(mode, lengths, directions, inputs, rest[:number], rest[number:], keep=True)
        ctx.mode, ctx.lengths, ctx.directions, ctx.number = mode, lengths, directions, number
        ctx.dtype = inputs.dtype
        kept = (results[0], saved, inputs, *rest)
        ctx.shapes = [part.shape for part in (*kept, *results)]
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(gradient is None for gradient in gradients):  # as from a function that returns none
            return (None,) * len(ctx.needs_input_grad)
        output, saved, *given = ctx.saved_tensors  # read once, because checkpoints return them once
        call = ctx.mode, ctx.lengths, ctx.directions, ctx.number
        # Hooks of autograd may have changed what was saved, and gradients may be of any kind.
        pairs = zip((output, saved, *given, *gradients), ctx.shapes, strict=True)
        is_read = all(part is None or is_read_as(part, shape, ctx.dtype) for part, shape in pairs)
        if is_read and not (torch.is_grad_enabled() or is_intercepted() or are_batched(gradients)):
            found = compute_gradients(*call, output, saved, given, gradients, ctx.needs_input_grad[4:])
        else:
            found = _replay(*call, given, gradients, again=torch.is_grad_enabled())
        return None, None, None, None, *found


def compute(
    mode: str,
    lengths: Lengths,
    directions: int,
    inputs: Tensor,
    weights: Sequence[Tensor],
    start: Sequence[Tensor],
    *,
    keep: bool,
) -> Tensors:
    """Return outputs, final states, and what the backward pass needs, which is empty unless it is kept."""
    # Contiguous copies, where need be, and the walk are held here until the kernel has read them.
    inputs, weights, start = inputs.contiguous(), _contiguous(weights), _contiguous(start)
    walk, size, total = lengths.longest_first, weights[1].shape[1], inputs.shape[0]
    output = inputs.new_empty(total, directions * size)
    finals = [inputs.new_empty(directions, walk.shape[1], size) for _ in range(2 if mode == "LSTM" else 1)]
    saved = inputs.new_empty(directions, total if keep else 0, SAVED[mode] * size)
    call = _call(mode, walk, inputs, directions, weights, output)
    for d in range(directions):
        direction = call.direction[d]
        if saved.numel():
            direction.saved = _row(saved, d)
        for name, part in zip(_PARTS, start, strict=False):
            setattr(direction, name, _row(part, d))
        for name, part in zip(_FINALS, finals, strict=False):
            setattr(direction, name, _row(part, d))
    _kernels.forward(call, inputs.dtype is torch.float64)
    return output, *finals, saved


def compute_gradients(
    mode: str,
    lengths: Lengths,
    directions: int,
    number: int,
    output: Tensor,
    saved: Tensor,
    given: list[Tensor],
    gradients: tuple[Tensor | None, ...],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of inputs, weights and initial states, or None for those that are not wanted."""
    output, saved, inputs, *rest = _contiguous((output, saved, *given))
    weights, start = rest[:number], rest[number:]
    walk, size, each = lengths.longest_first, weights[1].shape[1], number // directions
    of_inputs = torch.empty_like(inputs) if wanted[0] else None
    of_gates = inputs.new_empty(directions, inputs.shape[0], _GATES[mode] * size)
    of_weights = [
        torch.empty_like(weight) if is_wanted else None
        for weight, is_wanted in zip(weights, wanted[1 : 1 + number], strict=True)
    ]
    of_start = [torch.empty_like(part) for part in start]
    of_output, *of_finals = [None if gradient is None else gradient.contiguous() for gradient in gradients]
    call = _call(mode, walk, inputs, directions, weights, output)
    call.grad_x = None if of_inputs is None else of_inputs.data_ptr()
    for d in range(directions):
        direction = call.direction[d]
        direction.saved, direction.grad_gates = _row(saved, d), _row(of_gates, d)
        if of_output is not None:
            direction.grad_out = of_output.data_ptr() + d * size * of_output.element_size()
        for name, of_weight in zip(_WEIGHTS, of_weights[d * each : (d + 1) * each], strict=False):
            if of_weight is not None:
                setattr(direction, f"grad_{name}", of_weight.data_ptr())
        for name, part, of_part in zip(("hidden", "cell"), start, of_start, strict=False):
            setattr(direction, name, _row(part, d))
            setattr(direction, f"grad_{name}", _row(of_part, d))
        for name, of_final in zip(("hidden", "cell"), of_finals, strict=False):
            if of_final is not None:
                setattr(direction, f"grad_final_{name}", _row(of_final, d))
    _kernels.backward(call, inputs.dtype is torch.float64)
    return [of_inputs, *of_weights, *of_start]


def _replay(
    mode: str,
    lengths: Lengths,
    directions: int,
    number: int,
    given: list[Tensor],
    gradients: tuple[Tensor | None, ...],
    *,
    again: bool,
) -> list[Tensor | None]:
    """Return the same gradients from a second run through PyTorch's own functions; `again` makes a graph of them."""
    with torch.enable_grad():
        # Views, because one of them may be computed from another: no path through the caller's graph counts here.
        given = [part.view_as(part) for part in given]
        inputs, weights, start = given[0], given[1 : 1 + number], given[1 + number :]
        results = stepwise.run_layer(mode, lengths, directions, inputs, weights, start)
        ends = [(result, gradient) for result, gradient in zip(results, gradients, strict=True) if gradient is not None]
        asked = [part for part in given if part.requires_grad]
        reached, of_reached = zip(*ends, strict=True)
        found = iter(torch.autograd.grad(reached, asked, of_reached, create_graph=again, allow_unused=True))
        return [next(found) if part.requires_grad else None for part in given]


def _call(mode: str, walk: Tensor, inputs: Tensor, directions: int, weights: Sequence[Tensor], output: Tensor) -> Any:
    """Return a call with what forward and backward have in common. All tensors are contiguous; none is held."""
    first, step, size, each = walk.data_ptr(), walk.stride(0) * 8, weights[1].shape[1], len(weights) // directions
    call = _kernels.Call(
        kind=_KINDS[mode],
        directions=directions,
        threads=torch.get_num_threads(),
        isa=_kernels.ISA_NUMBER,
        sequences=walk.shape[1],
        steps=inputs.shape[0],
        input_size=inputs.shape[1],
        hidden_size=size,
        out_stride=directions * size,
        starts=first,
        lengths=first + step,
        index=first + 2 * step,
        x=inputs.data_ptr(),
    )
    for d in range(directions):
        direction = call.direction[d]
        direction.out = output.data_ptr() + d * size * output.element_size()
        for name, weight in zip(_WEIGHTS, weights[d * each : (d + 1) * each], strict=False):
            setattr(direction, name, weight.data_ptr())
    return call


def _row(tensor: Tensor, index: int) -> int:
    """Return the address of a row of a tensor."""
    address = tensor.data_ptr()
    return address + index * tensor.stride(0) * tensor.element_size() if index else address


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]
