"""The interface of engines, and what they share: the call they are asked about, and checks of a layer's result."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from seqbatch._checks.grammar import complaint, type_name
from seqbatch._engines._stock import has_stock_forward
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

Hidden = tuple[Tensor, ...]


class EngineCall(NamedTuple):  # not an attrs class, because creating one takes twice as long
    """What decides which engine runs a recurrent layer. Lengths do not: every engine takes all.

    Args:
        layer: the layer.
        values: the flat values, `(total_steps, input_size)`.
        is_stock: the layer has a stock `forward` and no hooks, so that bypassing it cannot be observed.
        takes_packed: its `forward` is PyTorch's own, so that it takes a PackedSequence.
        runs_backward_hooks: gradients are recorded, and hooks would run in the backward pass.
        is_parametrized: parametrizations compute its weights.
        rounds_by_range: it is quantized and rounds its input by the range of the whole input.
        is_intercepted: a transform, a dispatch mode or a subclass of Tensor must see each operation.
        autocasts: `torch.autocast` is on for the CPU.
    """

    layer: Any
    values: Tensor
    is_stock: bool
    takes_packed: bool
    runs_backward_hooks: bool
    is_parametrized: bool
    rounds_by_range: bool
    is_intercepted: bool
    autocasts: bool


class Engine(Protocol):
    """A module that runs recurrent layers by one method.

    `can_run` returns True if the engine can run a call that no engine before it in the order can.

    `run` runs a layer.

    Args:
        layer: the layer; if it has hooks or its own `forward`, it must be called as itself.
        values: `(total_steps, input_size)`.
        lengths: of at least one sequence, none of them empty.
        hidden: the initial state in the caller's order, one Tensor `(num_layers * num_directions, batch, size)` or
            two; None for zeros.

    Returns:
        the outputs `(total_steps, num_directions * size)`, and the final state in the form of `hidden`.
    """

    def can_run(self, call: EngineCall) -> bool: ...
    def run(self, layer: Any, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]: ...


def as_arguments(hidden: Hidden | None) -> tuple[Tensor | Hidden, ...]:
    """Return a layer's arguments after its input: none without a state, because a subclass may not take one."""
    if hidden is None:
        return ()
    return (hidden[0],) if len(hidden) == 1 else (hidden,)


def parts_of(result: Any, layer: Any, output_type: type) -> tuple[Any, Hidden]:
    """Return the output and the state of a layer's result if it holds both and the output has the type, else raise."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], output_type)):
        must = f"return a {output_type.__name__} and a state for a {output_type.__name__}, as its base does"
        raise complaint(SeqbatchTypeError, "layer", must, type_name(result), own_encoder(layer))
    output, final = result
    return output, final if isinstance(final, tuple) else (final,)


def require_shapes(layer: Any, batch: Tensor, output: Tensor, final: Hidden) -> None:
    """Raise unless an output and a state have the shapes that the layer's base returns for a batch."""
    directions, size = 2 if layer.bidirectional else 1, getattr(layer, "proj_size", 0) or layer.hidden_size
    rows, number = layer.num_layers * directions, batch.shape[0 if layer.batch_first else 1]
    sizes = [size, layer.hidden_size] if layer.mode == "LSTM" else [size]
    wanted = [(*batch.shape[:2], directions * size), *((rows, number, size) for size in sizes)]
    found = [tuple(part.shape) if isinstance(part, Tensor) else type_name(part) for part in (output, *final)]
    if found != wanted:
        must = f"return an output and a state of shapes {wanted}, as its base does"
        raise complaint(SeqbatchValueError, "layer", must, found, own_encoder(layer))


def own_encoder(layer: Any) -> str:
    """Return the remedy for a layer that is not run as its base is."""
    name = type(layer).__name__
    if has_stock_forward(type(layer)):  # because another encoder for the class would run its other layers too
        how = "whose forward does this, and register an encoder for that subclass, by @register_recurrent"
        return f"Make it a subclass of {name} {how}."
    return f"Register an encoder for {name}, by @register_recurrent({name})."
