"""Whether a layer and all layers in it are stock and without hooks, so that bypassing them cannot be observed."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqbatch._encoders.pointwise import ELEMENTWISE, WITH_FEATURES
from seqbatch._torch import (
    DECODER_PARTS,
    TRANSFORMER_PARTS,
    OutputProjection,
    has_global_hooks,
    has_own_hooks,
    is_parametrized,
    parameters_of,
)

# Layers that work along the last axis, so that they return the same for flat and for padded steps; not subclasses.
# Norms of several axes are excluded below.
_OF_ANY_LAYOUT = {*ELEMENTWISE, *WITH_FEATURES, nn.ModuleList, OutputProjection}
_ACTIVATIONS = (functional.relu, functional.gelu, functional.silu, torch.relu, torch.sigmoid, torch.tanh)
_WEIGHTS = (nn.Parameter, Tensor, type(None))
_METHODS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.MultiheadAttention: ("forward",),
    nn.TransformerDecoder: ("forward",),
    nn.TransformerDecoderLayer: ("forward", *DECODER_PARTS),
    nn.TransformerEncoder: ("forward",),
    nn.TransformerEncoderLayer: ("forward", *TRANSFORMER_PARTS),
}


def is_untouched(module: nn.Module) -> bool:
    """Return True if a module itself, without its submodules, has no hooks and no parametrized or replaced weights."""
    return _is_untouched(module) and not has_global_hooks()


def _is_untouched(module: nn.Module) -> bool:
    return (
        not has_own_hooks(module)
        and not is_parametrized(module)
        and all(type(weight) in _WEIGHTS for weight in parameters_of(module).values())
    )


def is_stock_attention(layer: nn.Module) -> bool:
    """Return True if an attention layer is stock, and all modules in it are stock and work on each step alone."""
    return not has_global_hooks() and all(
        _is_untouched(module) and _is_stock_part(module) for module in layer.modules()
    )


def _is_stock_part(module: nn.Module) -> bool:
    if type(module) in _OF_ANY_LAYOUT:
        held = vars(module)
        return "forward" not in held and len(held.get("normalized_shape", "1")) == 1
    for layer_type, methods in _METHODS.items():
        if isinstance(module, layer_type):
            kept = all(getattr(type(module), name) is getattr(layer_type, name) for name in methods)
            return kept and not vars(module).keys() & {*methods} and _has_stock_parts(module)
    return False


def _has_stock_parts(module: nn.Module) -> bool:
    """Return True if a layer holds submodules and an activation of the types that it is built with."""
    if isinstance(module, (nn.TransformerDecoder, nn.TransformerEncoder)):
        is_decoder = isinstance(module, nn.TransformerDecoder)
        part = nn.TransformerDecoderLayer if is_decoder else nn.TransformerEncoderLayer
        return all(isinstance(layer, part) for layer in module.layers)
    if isinstance(module, nn.MultiheadAttention):
        return True
    activation = module.activation
    is_known = isinstance(activation, nn.Module) or activation in _ACTIVATIONS
    names = ["self_attn", "multihead_attn"] if isinstance(module, nn.TransformerDecoderLayer) else ["self_attn"]
    return is_known and all(isinstance(getattr(module, name), nn.MultiheadAttention) for name in names)
