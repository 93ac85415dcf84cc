"""The native engine: kernels of our own on the CPU, which read each step where it stands in the flat values."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seqbatch import _kernels
from seqbatch._lengths import Lengths
from seqbatch._modes import are_batched, wants_gradients
from seqbatch.engines import plain
from seqbatch.engines._interface import Hidden
from seqbatch.engines._stack import run_layers, weights_of

Tensors = tuple[Tensor, ...]

_KINDS = {"LSTM": 0, "GRU": 1, "RNN_TANH": 2, "RNN_RELU": 3}
# Numbers that are kept per unit and step for the backward pass, and gradients of gates; see `recurrent.h`.
_SAVED = {"LSTM": 5, "GRU": 4, "RNN_TANH": 0, "RNN_RELU": 0}
_GATES = {"LSTM": 4, "GRU": 4, "RNN_TANH": 1, "RNN_RELU": 1}
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


# Subclasses, such as fake and distributed tensors, may have no memory that a kernel could read.
PLAIN = (Tensor, nn.Parameter)


def serves(values: Tensor) -> bool:
    """Return True if the kernels run on this device and dtype."""
    is_known = values.is_cpu and values.dtype in (torch.float32, torch.float64)
    return _kernels.IS_THERE and is_known and type(values) in PLAIN


def reads_weights_of(layer: nn.RNNBase, values: Tensor) -> bool:
    """Return True if all weights have the dtype of the values and the shapes that the layer declares.

    Any weight of a layer can be replaced, and a kernel must not read beyond its memory.
    """
    directions, size = 2 if layer.bidirectional else 1, layer.hidden_size
    rows = size * {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    for i in range(layer.num_layers):
        weights = weights_of(layer, i)
        shapes = [(rows, directions * size if i else layer.input_size), (rows, size), (rows,), (rows,)]
        for weight, shape in zip(weights, shapes[: len(weights) // directions] * directions, strict=True):
            is_alike = type(weight) in PLAIN and weight.dtype is values.dtype and weight.is_cpu
            if not is_alike or weight.shape != shape:
                return False
    return True


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine` says; for values that it `serves`, and stock layers whose weights it reads."""
    output, final = run_layers(layer, values, lengths, hidden, _run_layer)
    # A copy, because the backward pass reads the output, which callers may modify in place.
    return (output.clone() if output.requires_grad else output), final


def _run_layer(
    mode: str,
    lengths: Lengths,
    directions: int,
    inputs: Tensor,
    weights: Sequence[Tensor],
    start: Sequence[Tensor],
) -> Tensors:
    if wants_gradients((inputs, *weights, *start)):
        apply: Any = _Layer.apply  # torch gives it no types
        results: Tensors = apply(mode, lengths, directions, len(weights), inputs, *weights, *start)
        return results
    return _forward(mode, lengths, directions, inputs, weights, start, keep=False)[:-1]


class _Layer(torch.autograd.Function):
    """One layer in all its directions, with a backward pass by the kernels."""

    @staticmethod
    def forward(
        ctx: Any, mode: str, lengths: Lengths, directions: int, number: int, inputs: Tensor, *rest: Tensor
    ) -> Tensors:
        *results, saved = _forward(mode, lengths, directions, inputs, rest[:number], rest[number:], keep=True)
        ctx.mode, ctx.lengths, ctx.directions, ctx.number = mode, lengths, directions, number
        ctx.save_for_backward(results[0], saved, inputs, *rest)
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(gradient is None for gradient in gradients):  # as from a function that returns none
            return (None,) * len(ctx.needs_input_grad)
        output, saved, *given = ctx.saved_tensors  # read once, because checkpoints return them once
        if torch.is_grad_enabled() or are_batched(gradients):
            with torch.enable_grad():
                found = _replay(ctx.mode, ctx.lengths, ctx.directions, ctx.number, given, gradients)
        else:
            found = _backward(ctx, output, saved, given, gradients)
        return None, None, None, None, *found


def _forward(
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
    size, each = weights[1].shape[1], len(weights) // directions
    total, states = inputs.shape[0], 2 if mode == "LSTM" else 1
    output = inputs.new_empty(total, directions * size)
    finals = [inputs.new_empty(directions, len(lengths), size) for _ in range(states)]
    saved = inputs.new_empty(directions, total if keep else 0, _SAVED[mode] * size)
    held = _Held()
    call = _call(held, mode, lengths, directions, inputs, weights, output)
    for d in range(directions):
        direction = call.direction[d]
        _set_weights(held, direction, weights[d * each : (d + 1) * each])
        direction.out = output[:, d * size :].data_ptr()
        direction.saved = saved[d].data_ptr() if keep and saved.numel() else None
        for name, part in zip(("hidden", "cell"), start, strict=False):
            setattr(direction, name, held.pointer(part[d]))
        for name, part in zip(("final_hidden", "final_cell"), finals, strict=False):
            setattr(direction, name, part[d].data_ptr())
    _kernels.forward(call, inputs.dtype is torch.float64)
    return output, *finals, saved


def _backward(
    ctx: Any, output: Tensor, saved: Tensor, given: list[Tensor], gradients: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """Return the gradients of inputs, weights and initial states, or None for those that are not wanted."""
    mode, lengths, directions, number = ctx.mode, ctx.lengths, ctx.directions, ctx.number
    inputs, weights, start = given[0], tuple(given[1 : 1 + number]), given[1 + number :]
    wanted = ctx.needs_input_grad[4:]
    size, each = weights[1].shape[1], number // directions
    of_inputs = torch.empty_like(inputs, memory_format=torch.contiguous_format) if wanted[0] else None
    of_gates = inputs.new_empty(directions, inputs.shape[0], _GATES[mode] * size)
    of_weights = [
        torch.empty_like(weight, memory_format=torch.contiguous_format) if is_wanted else None
        for weight, is_wanted in zip(weights, wanted[1 : 1 + number], strict=True)
    ]
    of_start = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in start]
    held = _Held()
    call = _call(held, mode, lengths, directions, inputs, weights, output)
    call.grad_x = None if of_inputs is None else of_inputs.data_ptr()
    of_output, *of_finals = gradients
    if of_output is not None:
        of_output = of_output.contiguous()
    for d in range(directions):
        direction = call.direction[d]
        _set_weights(held, direction, weights[d * each : (d + 1) * each])
        direction.out = output[:, d * size :].data_ptr()
        direction.saved = saved[d].data_ptr()
        direction.grad_gates = of_gates[d].data_ptr()
        if of_output is not None:
            direction.grad_out = of_output[:, d * size :].data_ptr()
        for name, of_weight in zip(_WEIGHTS, of_weights[d * each : (d + 1) * each], strict=False):
            if of_weight is not None:
                setattr(direction, f"grad_{name}", of_weight.data_ptr())
        for name, part, of_part in zip(("hidden", "cell"), start, of_start, strict=False):
            setattr(direction, name, held.pointer(part[d]))
            setattr(direction, f"grad_{name}", of_part[d].data_ptr())
        for name, of_final in zip(("hidden", "cell"), of_finals, strict=False):
            if of_final is not None:
                setattr(direction, f"grad_final_{name}", held.pointer(of_final[d]))
    _kernels.backward(call, inputs.dtype is torch.float64)
    return [of_inputs, *of_weights, *of_start]


def _replay(
    mode: str,
    lengths: Lengths,
    directions: int,
    number: int,
    given: list[Tensor],
    gradients: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """Return the same gradients as functions of everything, from a second run through PyTorch's own functions."""
    inputs, weights, start = given[0], given[1 : 1 + number], given[1 + number :]
    results = plain.run_layer(mode, lengths, directions, inputs, weights, start)
    ends = [(result, gradient) for result, gradient in zip(results, gradients, strict=True) if gradient is not None]
    asked = [part for part in given if part.requires_grad]
    reached, of_reached = zip(*ends, strict=True)
    found = iter(torch.autograd.grad(reached, asked, of_reached, create_graph=True, allow_unused=True))
    return [next(found) if part.requires_grad else None for part in given]


class _Held:
    """Contiguous copies that must live until the kernels have read them."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def pointer(self, tensor: Tensor) -> int:
        """Return where a contiguous copy of a tensor stands, or the tensor itself if it is contiguous."""
        tensor = tensor.contiguous()
        self._tensors.append(tensor)
        return tensor.data_ptr()


def _call(
    held: _Held, mode: str, lengths: Lengths, directions: int, inputs: Tensor, weights: Sequence[Tensor], output: Tensor
) -> Any:
    walk = lengths.longest_first
    # Held, because another thread may have computed the same lengths meanwhile, and kept its own instead.
    first, step = held.pointer(walk), walk.stride(0) * walk.element_size()
    return _kernels.Call(
        kind=_KINDS[mode],
        directions=directions,
        threads=torch.get_num_threads(),
        isa=_kernels.ISA_NUMBER,
        sequences=len(lengths),
        steps=inputs.shape[0],
        input_size=inputs.shape[1],
        hidden_size=weights[1].shape[1],
        out_stride=output.shape[1],
        starts=first,
        lengths=first + step,
        index=first + 2 * step,
        x=held.pointer(inputs),
    )


def _set_weights(held: _Held, direction: Any, weights: Iterable[Tensor]) -> None:
    for name, weight in zip(_WEIGHTS, weights, strict=False):
        setattr(direction, name, held.pointer(weight))
