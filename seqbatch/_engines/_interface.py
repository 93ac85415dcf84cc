"""The interface of engines: a function that runs a recurrent layer by one method."""

from typing import Any, Protocol

from torch import Tensor

from seqbatch._checks.grammar import complaint, type_name
from seqbatch._engines._stock import has_stock_forward
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

Hidden = tuple[Tensor, ...]


class Engine(Protocol):
    """A function that runs a recurrent layer.

    Args:
        layer: the layer; if it has hooks or its own `forward`, it must be called as itself.
        values: `(total_steps, input_size)`.
        lengths: of at least one sequence, none of them empty.
        hidden: the initial state in the caller's order, one Tensor `(num_layers * num_directions, batch, size)` or
            two; None for zeros.

    Returns:
        the outputs `(total_steps, num_directions * size)`, and the final state in the form of `hidden`.
    """

    def __call__(
        self, layer: Any, values: Tensor, lengths: Lengths, hidden: Hidden | None
    ) -> tuple[Tensor, Hidden]: ...


def as_arguments(hidden: Hidden | None) -> tuple[Tensor | Hidden, ...]:
    """Return a layer's arguments after its input: none without a state, because a subclass may not take one."""
    if hidden is None:
        return ()
    return (hidden[0],) if len(hidden) == 1 else (hidden,)


def parts_of(result: Any, layer: Any, kind: type) -> tuple[Any, Hidden]:
    """Return the output and the state of a layer's result if it holds both and the output has the type, else raise."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], kind)):
        must = f"return a {kind.__name__} and a state for a {kind.__name__}, as its base does"
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
