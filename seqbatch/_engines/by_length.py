"""The engine that calls the layer itself on all sequences of a length at once, as one Tensor without padding; slow.

It is for layers with their own `forward`, which may not take a PackedSequence. It is also for hooks of the backward
pass, which PyTorch registers on the Tensors that a layer takes and returns, and not on a PackedSequence.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

from seqbatch._checks.grammar import complaint
from seqbatch._engines._interface import EngineCall, Hidden, as_arguments, own_encoder, parts_of, require_shapes
from seqbatch._engines._stock import takes_packed
from seqbatch._structure.sequence_lengths import Lengths, int64_tensor, to_device
from seqbatch._torch import has_hooks
from seqbatch.errors import SeqbatchTypeError

_WHY = "The layer was called on a Tensor, not on a PackedSequence, because {}."
_HOOKS, _FORWARD = (
    _WHY.format(cause) for cause in ("hooks of the backward pass are registered", "its forward is its own")
)

_ERRORS_OF_OTHER_INPUT = (AttributeError, TypeError, RuntimeError)


def can_run(call: EngineCall) -> bool:
    """Return True unless the layer rounds by the range of its input, which would then depend on other sequences."""
    return not call.rounds_by_range


def run(layer: nn.RNNBase, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine.run` says.

    Raises:
        SeqbatchTypeError: the layer, by a `forward` or a hook of its own, does not take a Tensor, or does not return a
            Tensor and a state.
        SeqbatchValueError: its own `forward` returns other shapes than its base.
    """
    groups = defaultdict(list)
    for i, count in enumerate(lengths.counts):
        groups[count].append(i)
    sequences = values.split(lengths.counts)
    outputs, finals = [], []
    for count, places in groups.items():
        chosen = to_device(int64_tensor(places), values.device)
        start = None if hidden is None else tuple(part.index_select(1, chosen) for part in hidden)
        group = torch.cat([sequences[i] for i in places])
        try:
            output, final = _run_group(layer, group.view(len(places), count, values.shape[1]), start)
        except Exception as error:
            if _is_of_forward(error, layer):
                must = f"run on Tensors of equal length in the forward of {type(layer).__name__}, as its base does"
                raise complaint(SeqbatchTypeError, "layer", must, repr(error), own_encoder(layer)) from error
            error.add_note(_HOOKS if takes_packed(layer) else _FORWARD)
            raise
        outputs += output.split(count)
        finals.append(final)
    order = [i for places in groups.values() for i in places]
    ranks = sorted(range(len(order)), key=order.__getitem__)
    rank = to_device(int64_tensor(ranks), values.device)
    ends = tuple(torch.cat(parts, 1).index_select(1, rank) for parts in zip(*finals, strict=True))
    return torch.cat([outputs[i] for i in ranks]), ends


def _run_group(layer: nn.RNNBase, group: Tensor, start: Hidden | None) -> tuple[Tensor, Hidden]:
    """Call the layer on sequences of equal length, `(batch, steps, input_size)`; return the outputs as flat values."""
    given = group if layer.batch_first else group.transpose(0, 1)
    output, final = parts_of(layer(given, *as_arguments(start)), layer, Tensor)
    if not takes_packed(layer):  # because the hooks of a stock layer may change the outputs, as in every engine
        require_shapes(layer, given, output, final)
    if not layer.batch_first:
        output = output.transpose(0, 1)
    return output.reshape(group.shape[0] * group.shape[1], output.shape[2]), final


def _is_of_forward(error: Exception, layer: nn.Module) -> bool:
    """Return True if a layer's own `forward`, and not a hook, raised an error typical of an unsupported input type.

    Other errors, and subclasses of these, may be raised by the user on purpose.
    """
    own = not takes_packed(layer) and not has_hooks(layer)
    return own and type(error) in _ERRORS_OF_OTHER_INPUT and "DefaultCPUAllocator" not in str(error)
