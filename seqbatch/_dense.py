"""Which tensors have memory that compiled code may read by its address."""

import torch
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)  # subclasses, such as fake and distributed tensors, may have no memory of their own


def _made_in_inference_mode(is_on: bool) -> Tensor:
    with torch.inference_mode(is_on):
        return torch.empty(0, device="cpu")


# What PyTorch dispatches on for tensors whose memory holds their values. The keys of conjugate, negative, quantized,
# sparse and nested tensors differ, and those of tensors that `torch.func` wraps.
_keys_of = torch._C._dispatch_keys
_DENSE = [_keys_of(_made_in_inference_mode(is_on)) for is_on in (False, True)]


def is_dense(tensor: Tensor) -> bool:
    """Return True if the memory of a tensor on the CPU holds its values."""
    return type(tensor) in PLAIN and _keys_of(tensor) in _DENSE
