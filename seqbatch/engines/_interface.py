"""What every engine is: a function, with no choices of its own."""

from typing import Any, Protocol

from torch import Tensor

from seqbatch._checks import complaint, type_name
from seqbatch._lengths import Lengths
from seqbatch.engines._forward import has_stock_forward
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

Hidden = tuple[Tensor, ...]


class Engine(Protocol):
    """A way to run a recurrent layer.

    Args:
        layer: the layer; one that has hooks or a `forward` of its own must be called as itself.
        values: `(total_steps, input_size)`.
        lengths: one sequence at least, and none of no steps.
        hidden: the initial state in the caller's order, one Tensor `(num_layers * num_directions, batch, size)` or
            two; None for zeros.

    Returns:
        the outputs `(total_steps, num_directions * size)`, and the final state in the form of `hidden`.
    """

    def __call__(
        self, layer: Any, values: Tensor, lengths: Lengths, hidden: Hidden | None
    ) -> tuple[Tensor, Hidden]: ...


def as_arguments(hidden: Hidden | None) -> tuple[Tensor | Hidden, ...]:
    """Give what a layer takes after its input: nothing for no state, for a subclass may take none at all."""
    if hidden is None:
        return ()
    return (hidden[0],) if len(hidden) == 1 else (hidden,)


def parts_of(result: Any, layer: Any, kind: type) -> tuple[Any, Hidden]:
    """Return the output and the state that a layer gave, if it gave both, and the output is of a kind, else raise."""
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], kind)):
        must = f"give a {kind.__name__} and a state for a {kind.__name__}, as its base does"
        raise complaint(SeqbatchTypeError, "layer", must, type_name(result), own_encoder(layer))
    output, final = result
    return output, final if isinstance(final, tuple) else (final,)


def require_shapes(layer: Any, batch: Tensor, output: Tensor, final: Hidden) -> None:
    """Raise unless an output and a state have the shapes that the layer's base gives for a batch."""
    directions, size = 2 if layer.bidirectional else 1, getattr(layer, "proj_size", 0) or layer.hidden_size
    rows, number = layer.num_layers * directions, batch.shape[0 if layer.batch_first else 1]
    sizes = [size, layer.hidden_size] if layer.mode == "LSTM" else [size]
    wanted = [(*batch.shape[:2], directions * size), *((rows, number, size) for size in sizes)]
    found = [tuple(part.shape) if isinstance(part, Tensor) else type_name(part) for part in (output, *final)]
    if found != wanted:
        must = f"give an output and a state of shapes {wanted}, as its base does"
        raise complaint(SeqbatchValueError, "layer", must, found, own_encoder(layer))


def own_encoder(layer: Any) -> str:
    """Return the remedy for a layer that is not run as its base is."""
    name = type(layer).__name__
    if has_stock_forward(type(layer)):  # whose encoder serves all other layers of this class
        how = "whose forward does this, and register an encoder for that subclass, by @register_recurrent"
        return f"Make it a subclass of {name} {how}."
    return f"Register an encoder for {name}, by @register_recurrent({name})."
