"""What PyTorch may be doing around a call, that an autograd function of one's own knows nothing of."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def wants_gradients(tensors: Iterable[Tensor]) -> bool:
    """Tell whether a backward pass may follow through what is computed from tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_transformed() -> bool:
    """Tell whether `torch.func` or forward-mode differentiation runs."""
    active: Any = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
    return bool(active()) or getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0


def are_batched(gradients: Iterable[Tensor | None]) -> bool:
    """Tell whether gradients of many outputs are asked for at once, as `torch.autograd.grad(is_grads_batched=True)`."""
    functorch: Any = getattr(torch._C, "_functorch", None)
    batched: Any = getattr(functorch, "is_legacy_batchedtensor", lambda gradient: False)
    return any(gradient is not None and batched(gradient) for gradient in gradients)
