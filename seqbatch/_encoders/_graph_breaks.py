"""Why a layer cannot be traced although others of its type can, and what to do about it."""

from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from seqbatch._encoders._layer_checks import QUANTIZED
from seqbatch._engines import takes_packed
from seqbatch._torch import has_hooks, hooks_before, pruned_weights

# One text for all causes, because `torch.compile` shows one for a function, whatever layer it is called with.
WHY_OUTSIDE_GRAPHS = (
    "this layer has hooks, is quantized, or has a forward of its own. Remove the hooks: those of pruning by "
    "torch.nn.utils.prune.remove; in place of torch.nn.utils.weight_norm and spectral_norm use those of "
    "torch.nn.utils.parametrizations. Quantize no layer that is compiled"
)


def cause_of(layer: nn.Module) -> tuple[str, str]:
    """Return why a layer cannot be traced, as a phrase, and the remedy."""
    found = f"a layer of type {type(layer).__name__}"
    if isinstance(layer, QUANTIZED):
        return f"a quantized {found[2:]}", "Export the model before it is quantized."
    if names := pruned_weights(layer):
        return f"{found} that is pruned", f"Call torch.nn.utils.prune.remove(layer, name) for each name of {names}."
    for kind, function in ((WeightNorm, "weight_norm"), (SpectralNorm, "spectral_norm")):
        if names := [hook.name for hook in hooks_before(layer).values() if isinstance(hook, kind)]:
            remedy = f"Call torch.nn.utils.remove_{function}(layer, name) for each name of {names}"
            found = f"{found} with torch.nn.utils.{function}"
            return found, f"{remedy}, or use torch.nn.utils.parametrizations.{function} in its place."
    if has_hooks(layer):
        return f"{found} with hooks", "Remove each by the handle that registering it returned."
    return found if takes_packed(layer) else f"{found} with a forward of its own", ""
