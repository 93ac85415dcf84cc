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

# Numbers that are kept per unit and step for the backward pass; see `recurrent.h`.
SAVED = {"LSTM": 5, "GRU": 4, "RNN_TANH": 0, "RNN_RELU": 0}
_WEIGHT_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
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
        results: Tensors = apply_with_gradients(form, *tensors)
        return results
    return _kernels.forward(form, tensors, keep=False)[:-1]


class _KernelLayer(torch.autograd.Function):
    """One layer in all its directions, with a backward pass by the kernels."""

    @staticmethod
    def forward(ctx: Any, form: LayerForm, *tensors: Tensor) -> Tensors:
        *results, saved = _kernels.forward(form, tensors, keep=True)
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
            return None, *_kernels.backward(ctx.form, output, saved, tensors, gradients, ctx.needs_input_grad[1:])
        run = partial(run_layer_stepwise, ctx.form)
        return None, *replay(run, tensors, gradients, again=torch.is_grad_enabled())


# Runs one layer as `RunLayer`, with its tensors one by one, while gradients are recorded; torch gives it no types.
apply_with_gradients: Any = _KernelLayer.apply
