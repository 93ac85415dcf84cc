"""What PyTorch does now: tracing, transforms, modes, hooks; by names that it does not document.

This file alone reads such names. `tests/test_torch.py` says for each of them what breaks if PyTorch changes it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# By name, and not as `torch.compiler.is_compiling`: a function that names the module torch is itself compiled after a
# graph break, and then returns True outside the graph.
from torch._guards import TracingContext
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.utils import _pytree

_are_transforms_active: Any = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_forward_ad: Any = torch.autograd.forward_ad
_module: Any = nn.modules.module

# ------------------------------------------------------------------------------------------------------------- tracing


def in_a_graph() -> bool:
    """Return True if `torch.compile` or `torch.export` is tracing in this thread.

    `is_compiling` holds for the whole process. Other threads, such as that of a DataLoader, are not tracing.
    """
    return is_dynamo_compiling() or (is_compiling() and TracingContext.try_get() is not None)


def known_or_false(condition: Any) -> bool:
    """Return True if a condition on sizes is known to hold; False if it is not, or unknown while tracing."""
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # here, because importing it is slow

    return bool(guard_or_false(condition))


# -------------------------------------------------------------------------------------------------- gradients and modes


def wants_gradients(tensors: Iterable[Tensor]) -> bool:
    """Return True if a backward pass may follow through what is computed from tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_transformed() -> bool:
    """Return True if `torch.func` or forward-mode differentiation is active."""
    return bool(_are_transforms_active()) or getattr(_forward_ad, "_current_level", -1) >= 0


def is_intercepted() -> bool:
    """Return True if operations must be visible to PyTorch: to a transform, or to a mode such as that of fake tensors.

    Tensors made meanwhile may be of use only until it ends.
    """
    return is_transformed() or bool(torch._C._len_torch_dispatch_stack())


def takes_gradients_only() -> bool:
    """Return True if only reverse-mode transforms, such as `torch.func.grad`, are active, and not `vmap`."""
    functorch: Any = getattr(torch._C, "_functorch", None)
    stack: Any = getattr(functorch, "get_interpreter_stack", lambda: None)()
    in_forward_mode = getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0
    return bool(stack) and not in_forward_mode and all(one.key() == functorch.TransformType.Grad for one in stack)


def are_batched(gradients: Iterable[Tensor | None]) -> bool:
    """Return True if gradients are batched, as by `torch.autograd.grad(is_grads_batched=True)`."""
    functorch: Any = getattr(torch._C, "_functorch", None)
    batched: Any = getattr(functorch, "is_legacy_batchedtensor", lambda gradient: False)
    return any(gradient is not None and batched(gradient) for gradient in gradients)


# -------------------------------------------------------------------------------------------------------------- memory

# Subclasses, such as fake and distributed tensors, may have no memory of their own.
STOCK_TENSORS = (Tensor, nn.Parameter)


def _made_in_inference_mode(is_on: bool) -> Tensor:
    with torch.inference_mode(is_on):
        return torch.empty(0, device="cpu")


# What PyTorch dispatches on for tensors whose memory holds their values. The keys of conjugate, negative, quantized,
# sparse and nested tensors differ, and those of tensors that `torch.func` wraps.
_keys_of = torch._C._dispatch_keys
_DENSE = [_keys_of(_made_in_inference_mode(is_on)) for is_on in (False, True)]


def is_dense(tensor: Tensor) -> bool:
    """Return True if the memory of a tensor on the CPU holds its values, so that compiled code may read its address."""
    return type(tensor) in STOCK_TENSORS and _keys_of(tensor) in _DENSE


# --------------------------------------------------------------------------------------------------------------- hooks

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class UnobservedHook:
    """A hook of every module that leaves results as they are, so that bypassing it cannot be observed."""


def has_hooks(layer: nn.Module) -> bool:
    """Return True if hooks would run if a layer were called, its own or those of every module."""
    return has_own_hooks(layer) or has_global_hooks()


# The names are spelled out, because these functions run at each call: a loop over names takes three times as long.
def has_own_hooks(layer: nn.Module) -> bool:
    """Return True if hooks are registered for a layer."""
    return bool(layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks)


def has_global_hooks() -> bool:
    """Return True if hooks are registered for the forward or backward pass of every module, but for our own."""
    module = _module
    if module._global_forward_hooks or module._global_backward_pre_hooks or module._global_backward_hooks:
        return True
    before = module._global_forward_pre_hooks
    return bool(before) and not all(isinstance(hook, UnobservedHook) for hook in tuple(before.values()))


def has_backward_hooks(layer: nn.Module) -> bool:
    """Return True if hooks would run in the backward pass through a layer, its own or those of every module."""
    own = layer._backward_pre_hooks or layer._backward_hooks
    return bool(own or _module._global_backward_pre_hooks or _module._global_backward_hooks)


def is_parametrized(layer: nn.Module) -> bool:
    """Return True if parametrizations compute weights of a layer.

    As `torch.nn.utils.parametrize.is_parametrized`, in a tenth of the time where there are none.
    """
    return "parametrizations" in layer._modules


# ------------------------------------------------------------------------------------------------------------- pytrees


def register_pytree(
    kind: type[Any], names: list[str], flatten: Callable[[Any], list[Any]], unflatten: Callable[..., Any]
) -> None:
    """Register a class as a pytree, so that torch.export and torch.func see the tensors in it.

    Args:
        kind: the class.
        names: of its leaves.
        flatten: from an object to its leaves.
        unflatten: from its leaves to an object. While PyTorch traces or transforms, they may be anything.
    """

    def flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], None]:
        return [(_pytree.GetAttrKey(name), leaf) for name, leaf in zip(names, flatten(value), strict=True)], None

    _pytree.register_pytree_node(
        kind,
        lambda value: (flatten(value), None),
        lambda leaves, _: unflatten(*leaves),
        serialized_type_name=f"seqbatch.{kind.__name__}",
        flatten_with_keys_fn=flatten_with_keys,
    )
