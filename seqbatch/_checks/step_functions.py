"""Refusal of layers that would run all sequences as one, where a function must treat every step by itself."""

from torch import Tensor, nn

from seqbatch._checks.grammar import complaint, describe
from seqbatch.errors import UnsupportedLayerError


def require_steps_apart(function: object, values: Tensor) -> None:
    """Raise if a function is a layer that would take all sequences for one, or holds such a layer.

    Where a step has several axes of features, the layer may run within each step, as one over the letters of words.
    """
    if not isinstance(function, nn.Module) or values.dim() > 2:
        return
    for module in function.modules():
        if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            held = "" if module is function else f", which holds {describe(module)}"
            remedy = "To run a layer call encode(layer, batch). For one sequence at a time call map_sequences."
            found = f"{describe(function)}{held}"
            raise complaint(UnsupportedLayerError, "function", "treat every step by itself", found, remedy)
