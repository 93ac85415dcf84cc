"""The engine of the compiled kernels on the CPU, which read each step where it stands in the flat values."""

from collections.abc import Sequence
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from seqbatch import _kernels
from seqbatch._engines._interface import EngineCall, Hidden
from seqbatch._engines._stack import LayerForm, RunLayer, Tensors, run_layers, weights_of
from seqbatch._engines.stepwise import run_layer_stepwise
from seqbatch._kernels.replayed_gradients import replay
from seqbatch._kernels.row_copies import is_read_as
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import are_batched, is_dense, is_intercepted, wants_gradients

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
    shapes = shapes_of_weights(mode, len(weights), input_size, size)
    return serves(values) and are_read_as(weights, shapes, values.dtype)


def serves(values: Tensor) -> bool:
    """Return True if the kernels can read the values, autocast is off, and no transform or mode is active."""
    return reads_values(values) and not (torch.is_autocast_enabled("cpu") or is_intercepted())


def reads_values(values: Tensor) -> bool:
    """Return True if there are kernels for the device and dtype of the values, and their memory holds them."""
    return values.is_cpu and values.dtype in DTYPES and _kernels.IS_THERE and is_dense(values)


def reads_weights_of(layer: Any, values: Tensor) -> bool:
    """Return True if the kernels can read all weights of a stock layer.

    Any weight of a layer can be replaced, and a kernel must not read beyond its memory.
    """
    directions, size, projection = 2 if layer.bidirectional else 1, layer.hidden_size, layer.proj_size
    for i in range(layer.num_layers):
        weights, input_size = weights_of(layer, i), directions * (projection or size) if i else layer.input_size
        shapes = shapes_of_weights(layer.mode, len(weights) // directions, input_size, size, projection)
        if not are_read_as(weights, shapes * directions, values.dtype):
            return False
    return True


def shapes_of_weights(mode: str, number: int, input_size: int, size: int, projection: int = 0) -> list[tuple[int, ...]]:
    """Return the shapes of the weights of one direction, which has 2 to 5 of them; `projection` is 0 without one."""
    rows = size * _WEIGHT_GATES[mode]
    shapes = [(rows, input_size), (rows, projection or size), *([(rows,), (rows,)] if number > 3 else [])]
    return [*shapes, (projection, size)] if projection else shapes


def are_read_as(tensors: Sequence[Tensor], shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> bool:
    """Return True if the kernels can read each tensor as one of its shape and of the dtype."""
    return len(tensors) == len(shapes) and all(map(is_read_as, tensors, shapes, repeat(dtype)))


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine.run` says."""
    output, final = run_layers(layer, values, lengths, hidden, _choose_run_layer(hidden))
    return _modifiable(output), final


def run_cell(
    mode: str, weights: Sequence[Tensor], values: Tensor, lengths: Lengths, hidden: Hidden | None
) -> tuple[Tensor, Hidden]:
    """Run a cell, given by its mode and weights, as `Engine.run` says; it requires `can_run_cell`."""
    form = LayerForm(mode, lengths, 1, len(weights))
    output, *final = _choose_run_layer(hidden)(form, (values, *weights, *(hidden or ())))
    return _modifiable(output), tuple(final)


def _choose_run_layer(hidden: Hidden | None) -> RunLayer:
    """Return the kernels if they can read the states, whose shapes, dtypes and devices were checked."""
    return _run_layer_by_kernels if hidden is None or all(map(is_dense, hidden)) else run_layer_stepwise


def _modifiable(output: Tensor) -> Tensor:
    # A copy, because the backward pass reads the output, which callers may modify in place.
    return output.clone() if output.requires_grad else output


def _run_layer_by_kernels(form: LayerForm, tensors: Tensors) -> Tensors:
    if wants_gradients(tensors):
        apply: Any = _KernelLayer.apply  # torch gives it no types
        results: Tensors = apply(form, *tensors)
        return results
    return compute(form, tensors, keep=False)[:-1]


class _KernelLayer(torch.autograd.Function):
    """One layer in all its directions, with a backward pass by the kernels."""

    @staticmethod
    def forward(ctx: Any, form: LayerForm, *tensors: Tensor) -> Tensors:
        *results, saved = compute(form, tensors, keep=True)
        kept = (results[0], saved, *tensors)
        ctx.form, ctx.dtype = form, tensors[0].dtype
        ctx.shapes = [part.shape for part in (*kept, *results)]
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(gradient is None for gradient in gradients):  # as from a function that returns none
            return (None,) * len(ctx.needs_input_grad)
        output, saved, *tensors = ctx.saved_tensors  # read once, because checkpoints return them once
        # Hooks of autograd may have changed what was saved, and gradients may be of any subclass.
        pairs = zip((output, saved, *tensors, *gradients), ctx.shapes, strict=True)
        is_read = all(part is None or is_read_as(part, shape, ctx.dtype) for part, shape in pairs)
        if is_read and not (torch.is_grad_enabled() or is_intercepted() or are_batched(gradients)):
            return None, *compute_gradients(ctx.form, output, saved, tensors, gradients, ctx.needs_input_grad[1:])
        run = partial(run_layer_stepwise, ctx.form)
        return None, *replay(run, tensors, gradients, again=torch.is_grad_enabled())


def compute(form: LayerForm, tensors: Sequence[Tensor], *, keep: bool) -> Tensors:
    """Return outputs, final states, and what the backward pass needs, which is empty unless it is kept."""
    # Contiguous copies, where need be, and the walk are held here until the kernel has read them.
    inputs, weights, start = form.parts_of(_contiguous(tensors))
    walk, sizes = form.lengths.longest_first, _sizes(form.mode, weights)
    total, directions, (size, output_size) = inputs.shape[0], form.directions, sizes
    output = inputs.new_empty(total, directions * output_size)
    final_sizes = (output_size, size) if form.mode == "LSTM" else (size,)
    finals = [inputs.new_empty(directions, walk.shape[1], each) for each in final_sizes]
    saved = inputs.new_empty(directions, total if keep else 0, SAVED[form.mode] * size)
    call, of_directions = _kernel_call(form, walk, sizes, inputs, weights, output)
    for d, direction in enumerate(of_directions):
        if saved.numel():
            direction.saved = _row(saved, d)
        for name, part in zip(_STATES, start, strict=False):
            setattr(direction, name, _row(part, d))
        for name, part in zip(_FINALS, finals, strict=False):
            setattr(direction, name, _row(part, d))
    _kernels.forward(call, inputs.dtype is torch.float64)
    return output, *finals, saved


def compute_gradients(
    form: LayerForm,
    output: Tensor,
    saved: Tensor,
    tensors: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of inputs, weights and initial states, or None for those that are not wanted."""
    output, saved, *tensors = _contiguous((output, saved, *tensors))
    inputs, weights, start = form.parts_of(tensors)
    walk, sizes = form.lengths.longest_first, _sizes(form.mode, weights)
    size, output_size = sizes
    wants_inputs, wanted_weights, _ = form.parts_of(wanted)
    of_inputs = torch.empty_like(inputs) if wants_inputs else None
    of_gates = inputs.new_empty(form.directions, inputs.shape[0], _GATES[form.mode] * size)
    pairs = zip(weights, wanted_weights, strict=True)
    of_weights = [torch.empty_like(weight) if is_wanted else None for weight, is_wanted in pairs]
    of_start = [torch.empty_like(part) for part in start]
    of_output, *of_finals = [None if gradient is None else gradient.contiguous() for gradient in gradients]
    call, of_directions = _kernel_call(form, walk, sizes, inputs, weights, output)
    call.grad_x = None if of_inputs is None else of_inputs.data_ptr()
    for d, direction in enumerate(of_directions):
        direction.saved, direction.grad_gates = _row(saved, d), _row(of_gates, d)
        if of_output is not None:
            direction.grad_out = of_output.data_ptr() + d * output_size * of_output.element_size()
        for name, of_weight in zip(_WEIGHTS[form.each], form.of_direction(of_weights, d), strict=True):
            if of_weight is not None:
                setattr(direction, f"grad_{name}", of_weight.data_ptr())
        for name, part, of_part in zip(_STATES, start, of_start, strict=False):
            setattr(direction, name, _row(part, d))
            setattr(direction, f"grad_{name}", _row(of_part, d))
        for name, of_final in zip(_FINALS, of_finals, strict=False):
            if of_final is not None:
                setattr(direction, f"grad_{name}", _row(of_final, d))
    _kernels.backward(call, inputs.dtype is torch.float64)
    return [of_inputs, *of_weights, *of_start]


def _kernel_call(
    form: LayerForm, walk: Tensor, sizes: tuple[int, int], inputs: Tensor, weights: Sequence[Tensor], output: Tensor
) -> tuple[_kernels.Call, list[Any]]:
    """Return what forward and backward share of a call, and its parts by direction; it holds no tensor.

    All tensors are contiguous.
    """
    mode, _, directions, each = form
    size, output_size = sizes
    first, step = walk.data_ptr(), walk.stride(0) * 8
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
    of_directions = call.direction[:directions]
    for d, direction in enumerate(of_directions):
        direction.out = output.data_ptr() + d * output_size * output.element_size()
        for name, weight in zip(_WEIGHTS[each], form.of_direction(weights, d), strict=True):
            setattr(direction, name, weight.data_ptr())
    return call, of_directions


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
