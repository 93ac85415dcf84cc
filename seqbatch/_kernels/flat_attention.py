"""Attention computed by the compiled kernels: what they can read, and the call; knows tensors only, no layouts."""

import torch
from torch import Tensor

from seqbatch import _kernels
from seqbatch._kernels.row_copies import can_read
from seqbatch._torch import wants_gradients

DTYPES = (torch.float32, torch.float64)


def can_attend(*inputs: Tensor) -> bool:
    """Return True if the kernels can attend with what is computed from all these tensors: weights, queries and memory.

    These are on the CPU, in one dtype, in single or double precision. The kernels have no backward pass.
    """
    dtype = inputs[0].dtype
    if dtype not in DTYPES or any(one.dtype is not dtype for one in inputs) or torch.is_autocast_enabled("cpu"):
        return False
    return can_read(*inputs) and not wants_gradients(inputs)


def attend_flat(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    *,
    scale: float = 1.0,
    weight: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Compute the attention of each query step over the keys of its sequence; `can_attend` must hold.

    Args:
        query: `(query steps, heads, size)`.
        key: `(keys, heads, size)`.
        value: `(keys, heads, value_size)`.
        query_starts: `(batch + 1,)`, int64: where the query steps of each sequence start, and where the last end.
        key_starts: `(batch + 1,)`, int64: where its keys start, and where the last end.
        scale: the factor of the scores.
        weight: `(heads, size)`, for additive scores; None for dot products.
        is_causal: True if a step does not attend to later ones; then there are as many keys as query steps.

    Returns:
        `(query steps, heads, value_size)`: zeros where a sequence has no key.
    """
    steps, heads, size = query.shape
    fits = (
        steps == query_starts[-1]
        and key.shape == (key_starts[-1], heads, size)
        and value.shape[:2] == key.shape[:2]
        and (weight is None or weight.shape == (heads, size))
        and len(query_starts) == len(key_starts)
        and (not is_causal or torch.equal(query_starts, key_starts))
    )
    if not fits:  # because the kernel would read beyond their memory
        raise ValueError("Queries, keys, values, weights and lengths must be of shapes that fit each other.")
    # The numbers of a step side by side, and steps any number apart.
    query, key, value = (one if one[:1].is_contiguous() else one.contiguous() for one in (query, key, value))
    weight = None if weight is None else weight.contiguous()
    out = query.new_empty(steps, *value.shape[1:])
    call = _kernels.Attention(
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        weight=None if weight is None else weight.data_ptr(),
        out=out.data_ptr(),
        query_starts=query_starts.data_ptr(),
        key_starts=key_starts.data_ptr(),
        sequences=len(key_starts) - 1,
        heads=heads,
        size=size,
        value_size=value.shape[2],
        query_stride=query.stride(0),
        key_stride=key.stride(0),
        value_stride=value.stride(0),
        out_stride=heads * value.shape[2],
        scale=scale,
        is_causal=is_causal,
        threads=torch.get_num_threads(),
        isa=_kernels.ISA_NUMBER,
    )
    _kernels.compute_attention(call, query.dtype is torch.float64)
    return out
