"""Libraries to measure against, each of which may be missing: torchrua and opacus."""

import importlib
from functools import cache
from typing import Any

from torch import Tensor, nn


@cache
def torchrua() -> Any:
    """Return the library, or None if it is not installed."""
    before = set(vars(Tensor))
    library = _imported("torchrua")
    # Importing it replaces the indexing of all tensors by a slower one, which would slow down every contender.
    for name in set(vars(Tensor)) - before:
        delattr(Tensor, name)
    return library


def opacus_layer(layer: nn.RNNBase) -> Any:
    """Return opacus's layer for a layer of torch, with the same weights, or None if opacus is not installed."""
    library = _imported("opacus.layers")
    if library is None:
        return None
    made = getattr(library, f"DP{type(layer).__name__}")(
        layer.input_size, layer.hidden_size, num_layers=layer.num_layers, bidirectional=layer.bidirectional
    )
    for name, parameter in layer.named_parameters():
        kind, product, cell = name.split("_", 2)  # as in weight_ih_l0_reverse
        # `load_state_dict` would copy, and the gradients would go to the copies.
        setattr(getattr(getattr(made, cell), product), kind, parameter)
    return made


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
