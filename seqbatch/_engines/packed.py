"""The engine that calls the layer itself on a PackedSequence, on every device; it rounds as PyTorch does."""

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from seqbatch._engines._interface import EngineCall, Hidden, as_arguments, parts_of
from seqbatch._ops.layouts import flat_to_packed, packed_to_flat
from seqbatch._structure.sequence_lengths import Lengths


def can_run(call: EngineCall) -> bool:
    """Return True if the layer takes a PackedSequence, and no hooks need Tensors.

    PyTorch registers hooks of the backward pass on Tensors only. Without gradients no such hook runs.
    """
    return call.takes_packed and not call.runs_backward_hooks and not call.rounds_by_range


def run(layer: nn.Module, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine.run` says; PyTorch itself sorts the state and brings it back into order.

    Raises:
        SeqbatchTypeError: the layer, by a `forward` of its own, does not return a PackedSequence and a state.
    """
    packed = flat_to_packed(values, lengths)
    output, final = parts_of(layer(packed, *as_arguments(hidden)), layer, PackedSequence)
    return packed_to_flat(output.data, lengths), final
