"""Attention computed by the compiled kernels: what they can read, and the call; knows tensors only, no layouts."""

import torch
from torch import Tensor

from seqbatch import _kernels
from seqbatch._kernels.row_copies import can_read
from seqbatch._torch import wants_gradients

DTYPES = (torch.float32, torch.float64)


def serves(*inputs: Tensor) -> bool:
    """Return True if the kernels can attend with what is computed from all these tensors: weights, queries and memory.

    These are on the CPU, in one dtype, in single or double precision. The kernels have no backward pass.
    """
    dtype = inputs[0].dtype
    if dtype not in DTYPES or any(one.dtype is not dtype for one in inputs) or torch.is_autocast_enabled("cpu"):
        return False
    return can_read(*inputs) and not wants_gradients(inputs)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    *,
    scale: float,
    is_causal: bool = False,
) -> Tensor:
    """Compute the attention of each query step over the keys of its sequence; `serves` must hold.

    Args:
        query: `(query steps, heads, size)`.
        key: `(keys, heads, size)`.
        value: `(keys, heads, size)`.
        query_starts: `(batch + 1,)`, int64: where the query steps of each sequence start, and where the last end.
        key_starts: `(batch + 1,)`, int64: where its keys start, and where the last end.
        scale: the factor of the scores.
        is_causal: True if a step does not attend to later ones; then there are as many keys as query steps.

    Returns:
        `(query steps, heads, size)`: zeros where a sequence has no key.
    """
    steps, heads, size = query.shape
    assert key.shape == value.shape == (key_starts[-1], heads, size), "keys and values have the heads of queries"
    assert steps == query_starts[-1], "all sequences together have all query steps"
    # The numbers of a step side by side, and steps any number apart.
    query, key, value = (one if one[:1].is_contiguous() else one.contiguous() for one in (query, key, value))
    out = query.new_empty(query.shape)
    call = _kernels.Attention(
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        out=out.data_ptr(),
        query_starts=query_starts.data_ptr(),
        key_starts=key_starts.data_ptr(),
        sequences=len(key_starts) - 1,
        heads=heads,
        size=size,
        query_stride=query.stride(0),
        key_stride=key.stride(0),
        value_stride=value.stride(0),
        out_stride=heads * size,
        scale=scale,
        is_causal=is_causal,
        threads=torch.get_num_threads(),
        isa=_kernels.ISA_NUMBER,
    )
    _kernels.attend(call, query.dtype is torch.float64)
    return out
