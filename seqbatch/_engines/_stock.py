"""Whether the `forward` of a recurrent layer is PyTorch's own."""

from torch import nn

# Where an instance has a `forward`, and where accelerate keeps the one that it wraps in one which takes the same.
FORWARD_ATTRIBUTES = ("forward", "_original_forward", "_old_forward")


def takes_packed(layer: nn.Module) -> bool:
    """Return True if the layer's `forward` is PyTorch's own, also if accelerate wraps it: it takes a PackedSequence."""
    kind, own = type(layer), vars(layer)
    return has_stock_forward(kind) and (
        "forward" not in own or any(_is_bound(own.get(name), kind.forward) for name in FORWARD_ATTRIBUTES)
    )


def has_stock_forward(kind: type[nn.Module]) -> bool:
    """Return True if calling a layer of a class runs PyTorch's `forward`, unless the instance has its own."""
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    return kind.__call__ is nn.Module.__call__ and owner.__module__.startswith("torch.")


def _is_bound(method: object, function: object) -> bool:
    return getattr(method, "__func__", None) is function
