"""What encoders ask about a layer: whether it is what its class says, and what it takes."""

import torch
from torch import Tensor, nn

from seqbatch._checks import complaint
from seqbatch.batch import SequenceBatch
from seqbatch.errors import SeqbatchValueError


def keeps_forward(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether a layer has the `forward` of the class that an encoder is registered for, and not its own."""
    return type(layer).forward is kind.forward and "forward" not in vars(layer)


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether what the class takes is what the layer takes: nothing stands before its `forward` or in its place.

    A library that shards or quantizes a layer puts a hook before it, which may well take another dtype.
    """
    return keeps_forward(layer, kind) and not layer._forward_pre_hooks


def require_features(
    batch: SequenceBatch, expected: tuple[int, ...], layer: nn.Module, *, exactly: bool = False
) -> None:
    """Raise unless the features of the batch end with the expected ones, or are exactly these."""
    found = tuple(batch.feature_shape)
    if found[max(len(found) - len(expected), 0) :] != expected or (exactly and found != expected):
        remedy = "For a padded Tensor call SequenceBatch.from_padded." if len(found) > len(expected) else ""
        must = f"have features {'' if exactly else 'that end with '}{expected}, for {describe(layer)}"
        raise complaint(SeqbatchValueError, "sequences", must, found, remedy)


def require_like_weights(batch: SequenceBatch, layer: nn.Module) -> None:
    """Raise unless the batch has the dtype and the device of the layer's weights; autocast makes up for the dtype."""
    # The first parameter and not `layer.weight`, which a parametrization would compute anew, with its side effects.
    weight = next(layer.parameters(), None)
    if weight is None:
        return
    if batch.dtype is not weight.dtype and not torch.is_autocast_enabled(batch.device.type):
        must = f"have dtype {weight.dtype}, as the weights of {describe(layer)}"
        raise complaint(SeqbatchValueError, "sequences", must, batch.dtype)
    if batch.device != weight.device:
        must = f"be on {weight.device}, as the weights of {describe(layer)}"
        raise complaint(SeqbatchValueError, "sequences", must, batch.device)


def describe(layer: nn.Module) -> str:
    """Name a layer with its sizes, in one line."""
    return f"{type(layer).__name__}({layer.extra_repr()})"


def run_on_nothing(layer: nn.Module, output: Tensor, batch: SequenceBatch) -> Tensor:
    """Let the output `(0, size)` of a batch without any step hang on the layer's weights and on the batch.

    Their gradients are then zeros and not missing: distributed training waits for the gradient of every weight.
    """
    sources = [source for source in (batch.values, *layer.parameters()) if source.requires_grad]
    return output + 0 * sum(source.sum() for source in sources) if sources else output
