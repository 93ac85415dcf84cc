"""The packed engine: call the layer itself on a PackedSequence; exact for every layer, on every device."""

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from seqbatch._checks import complaint, type_name
from seqbatch._lengths import Lengths
from seqbatch.engines._interface import Hidden, as_arguments
from seqbatch.errors import SeqbatchTypeError
from seqbatch.layouts import from_packed, to_packed


def run(layer: nn.Module, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine` says; PyTorch itself sorts the state and brings it back into order.

    Raises:
        SeqbatchTypeError: the layer, by a `forward` of its own, gives no PackedSequence and state.
    """
    packed = to_packed(values, lengths)
    result = layer(packed, *as_arguments(hidden))
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], PackedSequence)):
        must = "give a PackedSequence and a state for a PackedSequence, as its base does"
        remedy = f"Register an encoder for {type(layer).__name__}."
        raise complaint(SeqbatchTypeError, "layer", must, type_name(result), remedy)
    output, final = result
    return from_packed(output.data, lengths), final if isinstance(final, tuple) else (final,)
