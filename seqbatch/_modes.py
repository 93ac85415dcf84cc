"""The modes of PyTorch that a call may run in: recording gradients, `torch.func` transforms, tracing."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from seqbatch._checks import complaint
from seqbatch._tracing import in_a_graph
from seqbatch.errors import SeqbatchError

_are_transforms_active: Any = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_forward_ad: Any = torch.autograd.forward_ad


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


def not_in_a_graph(what: str, remedy: str = "") -> SeqbatchError:
    """Build the error for what would specialize a graph on its lengths; `remedy` says how to avoid that."""
    disabled = "or in a function that torch.compiler.disable keeps out of the graph"
    # An exported graph holds the whole call, so disabling a part of it is not a remedy.
    outside = "Call it outside." if torch.compiler.is_exporting() else f"Call it outside, {disabled}."
    must = "serve all lengths, so that nothing in it may depend on their numbers"
    remedy = f"{remedy} Or call{outside[4:]}" if remedy else outside
    return complaint(SeqbatchError, "graph of torch.compile or torch.export", must, what, remedy)


def refuse_in_a_graph(what: str) -> None:
    """Raise while `torch.compile` or `torch.export` traces."""
    if in_a_graph():
        raise not_in_a_graph(f"a call that needs {what}")


def require_in_graph(holds: Tensor, message: str) -> None:
    """Add a check to the graph, which raises at run time unless `holds` is True; it does not synchronize."""
    torch.ops.aten._assert_async.msg(holds, message)
