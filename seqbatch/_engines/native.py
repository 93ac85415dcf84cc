"""The engine of the compiled kernels on the CPU, which read each step where it stands in the flat values."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seqbatch import _kernels
from seqbatch._engines._interface import EngineCall, Hidden
from seqbatch._engines._stack import run_layers, weights_of
from seqbatch._engines.stepwise import run_layer_stepwise
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import are_batched, is_dense, is_intercepted, wants_gradients

Tensors = tuple[Tensor, ...]

_MODES = {"LSTM": 0, "GRU": 1, "RNN_TANH": 2, "RNN_RELU": 3}
# Numbers that are kept per unit and step for the backward pass, and gradients of gates; see `recurrent.h`.
SAVED = {"LSTM": 5, "GRU": 4, "RNN_TANH": 0, "RNN_RELU": 0}
_GATES = {"LSTM": 4, "GRU": 4, "RNN_TANH": 1, "RNN_RELU": 1}
_WEIGHT_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
# By how many a direction has: with biases, and with a projection, or without.
_WEIGHTS = {
    2: ("weight_ih", "weight_hh"),
    3: ("weight_ih", "weight_hh", "weight_hr"),
    4: ("weight_ih", "weight_hh", "bias_ih", "bias_hh"),
    5: ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"),
}
_STATES, _FINALS = ("hidden", "cell"), ("final_hidden", "final_cell")
DTYPES = (torch.float32, torch.float64)


def can_run(call: EngineCall) -> bool:
    """Return True for a stock layer if the kernels can read values and weights, and PyTorch need not see the steps."""
    is_free = call.is_stock and not (call.is_intercepted or call.autocasts or call.is_parametrized)
    return is_free and reads_values(call.values) and reads_weights_of(call.layer, call.values)


def can_run_cell(mode: str, weights: Sequence[Tensor], values: Tensor, input_size: int, size: int) -> bool:
    """Return True if `run_cell` can run a cell without hooks or a `forward` of its own, given by mode and weights."""
    return serves(values) and reads_weights(mode, weights, values, 1, input_size, size)


def serves(values: Tensor) -> bool:
    """Return True if the kernels can read the values, autocast is off, and no transform or mode is active."""
    return reads_values(values) and not (torch.is_autocast_enabled("cpu") or is_intercepted())


def reads_values(values: Tensor) -> bool:
    """Return True if there are kernels for the device and dtype of the values, and their memory holds them."""
    return values.is_cpu and values.dtype in DTYPES and _kernels.IS_THERE and is_dense(values)


def reads_weights_of(layer: Any, values: Tensor) -> bool:
    """Return True if the kernels can read all weights of a stock layer."""
    directions, size, projection = 2 if layer.bidirectional else 1, layer.hidden_size, layer.proj_size
    for i in range(layer.num_layers):
        input_size = directions * (projection or size) if i else layer.input_size
        if not reads_weights(layer.mode, weights_of(layer, i), values, directions, input_size, size, projection):
            return False
    return True


def reads_weights(
    mode: str,
    weights: Sequence[Tensor],
    values: Tensor,
    directions: int,
    input_size: int,
    size: int,
    projection: int = 0,
) -> bool:
    """Return True if the weights of one layer have the dtype of the values and the shapes that the layer declares.

    Any weight of a layer can be replaced, and a kernel must not read beyond its memory.
    """
    shapes = shapes_of_weights(mode, len(weights) // directions, input_size, size, projection)
    for weight, shape in zip(weights, shapes * directions, strict=True):
        if not is_read_as(weight, shape, values.dtype):
            return False
    return True


def shapes_of_weights(mode: str, number: int, input_size: int, size: int, projection: int = 0) -> list[tuple[int, ...]]:
    """Return the shapes of the weights of one direction, which has 2 to 5 of them; `projection` is 0 without one."""
    rows = size * _WEIGHT_GATES[mode]
    shapes = [(rows, input_size), (rows, projection or size), *([(rows,), (rows,)] if number > 3 else [])]
    return [*shapes, (projection, size)] if projection else shapes


def is_read_as(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Return True if the kernels can read a tensor as one of a shape and a dtype."""
    return tensor.dtype is dtype and tensor.shape == shape and is_dense(tensor)


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine.run` says."""
    output, final = run_layers(layer, values, lengths, hidden, _run_layer_by_kernels)
    return _modifiable(output), final


def run_cell(
    mode: str, weights: Sequence[Tensor], values: Tensor, lengths: Lengths, hidden: Hidden | None
) -> tuple[Tensor, Hidden]:
    """Run a cell, given by its mode and weights, as `Engine.run` says; it requires `can_run_cell`."""
    output, *final = _run_layer_by_kernels(mode, lengths, 1, values, weights, hidden or ())
    return _modifiable(output), tuple(final)


def _modifiable(output: Tensor) -> Tensor:
    # A copy, because the backward pass reads the output, which callers may modify in place.
    return output.clone() if output.requires_grad else output


def _run_layer_by_kernels(
    mode: str,
    lengths: Lengths,
    directions: int,
    inputs: Tensor,
    weights: Sequence[Tensor],
    start: Sequence[Tensor],
) -> Tensors:
    if not all(map(is_dense, start)):  # their shapes, dtypes and devices were checked, as those of all states
        return run_layer_stepwise(mode, lengths, directions, inputs, weights, start)
    if wants_gradients((inputs, *weights, *start)):
        apply: Any = _KernelLayer.apply  # torch gives it no types
        results: Tensors = apply(mode, lengths, directions, len(weights), inputs, *weights, *start)
        return results
    return compute(mode, lengths, directions, inputs, weights, start, keep=False)[:-1]


class _KernelLayer(torch.autograd.Function):
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
        # Hooks of autograd may have changed what was saved, and gradients may be of any subclass.
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
    walk, total, (size, output_size) = lengths.longest_first, inputs.shape[0], _sizes(mode, weights)
    output = inputs.new_empty(total, directions * output_size)
    sizes = (output_size, size) if mode == "LSTM" else (size,)
    finals = [inputs.new_empty(directions, walk.shape[1], each) for each in sizes]
    saved = inputs.new_empty(directions, total if keep else 0, SAVED[mode] * size)
    call = _kernel_call(mode, walk, inputs, directions, weights, output)
    for d in range(directions):
        direction = call.direction[d]
        if saved.numel():
            direction.saved = _row(saved, d)
        for name, part in zip(_STATES, start, strict=False):
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
    walk, each, (size, output_size) = lengths.longest_first, number // directions, _sizes(mode, weights)
    of_inputs = torch.empty_like(inputs) if wanted[0] else None
    of_gates = inputs.new_empty(directions, inputs.shape[0], _GATES[mode] * size)
    of_weights = [
        torch.empty_like(weight) if is_wanted else None
        for weight, is_wanted in zip(weights, wanted[1 : 1 + number], strict=True)
    ]
    of_start = [torch.empty_like(part) for part in start]
    of_output, *of_finals = [None if gradient is None else gradient.contiguous() for gradient in gradients]
    call = _kernel_call(mode, walk, inputs, directions, weights, output)
    call.grad_x = None if of_inputs is None else of_inputs.data_ptr()
    for d in range(directions):
        direction = call.direction[d]
        direction.saved, direction.grad_gates = _row(saved, d), _row(of_gates, d)
        if of_output is not None:
            direction.grad_out = of_output.data_ptr() + d * output_size * of_output.element_size()
        for name, of_weight in zip(_WEIGHTS[each], of_weights[d * each : (d + 1) * each], strict=True):
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
    """Return the same gradients from a second run by PyTorch's functions.

    With `again` they can be differentiated in turn.
    """
    with torch.enable_grad():
        # Views, because one of them may be computed from another: no path through the caller's graph counts here.
        given = [part.view_as(part) for part in given]
        inputs, weights, start = given[0], given[1 : 1 + number], given[1 + number :]
        results = run_layer_stepwise(mode, lengths, directions, inputs, weights, start)
        ends = [(result, gradient) for result, gradient in zip(results, gradients, strict=True) if gradient is not None]
        asked = [part for part in given if part.requires_grad]
        reached, of_reached = zip(*ends, strict=True)
        found = iter(torch.autograd.grad(reached, asked, of_reached, create_graph=again, allow_unused=True))
        return [next(found) if part.requires_grad else None for part in given]


def _kernel_call(
    mode: str, walk: Tensor, inputs: Tensor, directions: int, weights: Sequence[Tensor], output: Tensor
) -> Any:
    """Return the arguments of a kernel that forward and backward share; it holds no tensor, and all are contiguous."""
    first, step, each = walk.data_ptr(), walk.stride(0) * 8, len(weights) // directions
    size, output_size = _sizes(mode, weights)
    call = _kernels.Call(
        kind=_MODES[mode],
        directions=directions,
        threads=torch.get_num_threads(),
        isa=_kernels.ISA_NUMBER,
        sequences=walk.shape[1],
        steps=inputs.shape[0],
        input_size=inputs.shape[1],
        hidden_size=size,
        projection=output_size if each % 2 else 0,
        out_stride=directions * output_size,
        starts=first,
        lengths=first + step,
        index=first + 2 * step,
        x=inputs.data_ptr(),
    )
    for d in range(directions):
        direction = call.direction[d]
        direction.out = output.data_ptr() + d * output_size * output.element_size()
        for name, weight in zip(_WEIGHTS[each], weights[d * each : (d + 1) * each], strict=True):
            setattr(direction, name, weight.data_ptr())
    return call


def _sizes(mode: str, weights: Sequence[Tensor]) -> tuple[int, int]:
    """Return the size of a layer, and that of its hidden state and of the outputs of one direction."""
    rows, output_size = weights[1].shape
    return rows // _WEIGHT_GATES[mode], output_size


def _row(tensor: Tensor, index: int) -> int:
    """Return the address of a row of a tensor."""
    address = tensor.data_ptr()
    return address + index * tensor.stride(0) * tensor.element_size() if index else address


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]
