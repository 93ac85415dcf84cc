"""Whether a recurrent layer is PyTorch's own: its `forward`, and what would run around it."""

from torch import nn

from seqbatch._torch import has_hooks

# Where an instance has a `forward`, and where accelerate keeps the one that it wraps in one which takes the same.
_FORWARD_ATTRIBUTES = ("forward", "_original_forward", "_old_forward")
_STOCK_FORWARDS = (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)


def is_stock_recurrent(layer: nn.Module) -> bool:
    """Return True if a recurrent layer has a stock `forward` and no hooks: bypassing it cannot be observed."""
    layer_type = type(layer)
    is_stock = layer_type.forward in _STOCK_FORWARDS and "forward" not in vars(layer)
    is_called_as_stock = layer_type.__call__ is nn.Module.__call__ and isinstance(layer, nn.RNNBase)
    return is_stock and is_called_as_stock and not has_hooks(layer)


def takes_packed(layer: nn.Module) -> bool:
    """Return True if the layer's `forward` is PyTorch's own, also if accelerate wraps it: it takes a PackedSequence."""
    layer_type, own = type(layer), vars(layer)
    return has_stock_forward(layer_type) and (
        "forward" not in own or any(_is_bound(own.get(name), layer_type.forward) for name in _FORWARD_ATTRIBUTES)
    )


def has_stock_forward(layer_type: type[nn.Module]) -> bool:
    """Return True if calling a layer of a class runs PyTorch's `forward`, unless the instance has its own."""
    owner = next(base for base in layer_type.__mro__ if "forward" in vars(base))
    return layer_type.__call__ is nn.Module.__call__ and owner.__module__.startswith("torch.")


def _is_bound(method: object, function: object) -> bool:
    return getattr(method, "__func__", None) is function
