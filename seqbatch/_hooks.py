"""Which hooks would run if a layer were called."""

from typing import Any

from torch import nn

_BACKWARD = ("_backward_pre_hooks", "_backward_hooks")
HOOKS = ("_forward_pre_hooks", "_forward_hooks", *_BACKWARD)


def has_hooks(layer: nn.Module) -> bool:
    """Tell whether hooks would run if a layer were called, its own or those of every module."""
    return has_own_hooks(layer) or has_global_hooks()


def has_own_hooks(layer: nn.Module, names: tuple[str, ...] = HOOKS) -> bool:
    """Tell whether hooks are registered for a layer."""
    return any(getattr(layer, name) for name in names)


def has_global_hooks(names: tuple[str, ...] = HOOKS) -> bool:
    """Tell whether hooks are registered for the forward or backward pass of every module."""
    module: Any = nn.modules.module
    return any(getattr(module, f"_global{name}", None) for name in names)


def has_backward_hooks(layer: nn.Module) -> bool:
    """Tell whether hooks would run in the backward pass through a layer, its own or those of every module."""
    return has_own_hooks(layer, _BACKWARD) or has_global_hooks(_BACKWARD)
