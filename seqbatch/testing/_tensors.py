"""What the laws compare: the tensors of a state, gradients, and bits."""

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from seqbatch._registry import is_recurrent
from seqbatch.encode import encode, encode_with_state


def run(layer: nn.Module, sequences: Any, state: Any = None) -> tuple[Any, Any]:
    """Encode, and give the state too, None for a layer that keeps none."""
    if is_recurrent(layer):
        return encode_with_state(layer, sequences, state)
    return encode(layer, sequences), None


def tensors_of(state: Any) -> list[Tensor]:
    """Give the tensors of a state: of a Tensor, of a tuple or list, or of the attributes of an attrs class."""
    if state is None:
        return []
    if isinstance(state, Tensor):
        return [state]
    if attrs.has(type(state)):
        state = [getattr(state, field.name) for field in attrs.fields(type(state))]
    if isinstance(state, (tuple, list)):
        return [tensor for part in state for tensor in tensors_of(part)]
    raise TypeError(f"a state must be a Tensor, an attrs class, a tuple or a list of these; got {type(state).__name__}")


def gradients(results: list[Tensor], sources: list[Tensor]) -> list[Tensor]:
    """Give the gradients of a sum weighted differently from element to element; zeros where there are none."""
    wanted = [source for source in sources if source.requires_grad]
    flat = torch.cat([torch.zeros(0), *(result.flatten().cpu() for result in results)])
    loss = (flat * torch.arange(1, 1 + len(flat)).cos()).sum()
    if not wanted or not loss.requires_grad:
        return [torch.zeros_like(source) for source in wanted]
    found = torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=True)
    return [
        torch.zeros_like(source) if gradient is None else gradient
        for source, gradient in zip(wanted, found, strict=True)
    ]


def assert_same_bits(found: Tensor, wanted: Tensor, message: str = "other values") -> None:
    """Compare bit by bit, also in dtypes that PyTorch cannot compare."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), message
    parts = [torch.view_as_real(one) if one.is_complex() else one for one in (found, wanted)]
    found, wanted = (one.reshape(-1).view(torch.uint8) for one in parts)
    assert torch.equal(found, wanted), message
