"""Which hooks would run if a layer were called."""

from typing import Any

from torch import nn

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_GLOBAL = tuple(f"_global{name}" for name in HOOKS)


def has_hooks(layer: nn.Module) -> bool:
    """Tell whether hooks would run if a layer were called, its own or those of every module."""
    return has_own_hooks(layer) or has_global_hooks()


def has_own_hooks(layer: nn.Module) -> bool:
    """Tell whether hooks are registered for a layer."""
    return any(getattr(layer, name) for name in HOOKS)


def has_backward_hooks(layer: nn.Module) -> bool:
    """Tell whether hooks would run in the backward pass through a layer, its own or those of every module."""
    module: Any = nn.modules.module
    own = any(getattr(layer, name) for name in HOOKS[2:])
    return own or any(getattr(module, name, None) for name in _GLOBAL[2:])


def has_global_hooks() -> bool:
    """Tell whether hooks are registered for the forward or backward pass of every module."""
    module: Any = nn.modules.module
    return any(getattr(module, name, None) for name in _GLOBAL)
