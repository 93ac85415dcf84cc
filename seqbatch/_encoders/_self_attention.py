"""Attention within each sequence: projections of all steps at once, then a kernel, or scores bucket by bucket."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from seqbatch._encoders._buckets import bucket_overhead, buckets_of
from seqbatch._kernels.flat_attention import attend_flat, can_attend
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import is_transformed, parameters_of, takes_gradients_only


def attend(attention: nn.MultiheadAttention, values: Tensor, lengths: Lengths, causal: bool) -> Tensor:
    """Compute self-attention of every step over its sequence, or over the steps up to it.

    The kernels read each step where it stands. Where they do not run, steps are copied to buckets before the
    projection, because they are a third as wide then. Padding is zeros, real steps do not attend to it, and its outputs
    are dropped. So it adds nothing to the gradient of a weight.

    Args:
        attention: a layer with a stock `forward` and without hooks.
        values: `(total_steps, embed_dim)`.
        lengths: the lengths, none of them 0; the batch may be empty.
        causal: True if steps do not attend to later ones.

    Returns:
        `(total_steps, embed_dim)`.
    """
    if not lengths.total:
        nothing = functional.linear(values, attention.in_proj_weight, attention.in_proj_bias)[:, : attention.embed_dim]
        return functional.linear(nothing, attention.out_proj.weight, attention.out_proj.bias)
    if runs_by_kernels(attention, values):
        projected = functional.linear(values, attention.in_proj_weight, attention.in_proj_bias)
        heads = len(values), 3, attention.num_heads, attention.head_dim
        query, key, value = projected.view(heads).unbind(1)
        offsets, scale = lengths.offsets, attention.head_dim**-0.5
        attended = attend_flat(query, key, value, offsets, offsets, scale=scale, is_causal=causal)
        return functional.linear(attended.flatten(1), attention.out_proj.weight, attention.out_proj.bias)
    overhead, extra = bucket_overhead(attention.embed_dim, values.device), number_of_keys_before(attention)
    buckets = lengths.plan(buckets_of, overhead, causal, extra, device=values.device)
    projected = functional.linear(buckets.fill(values, lengths), attention.in_proj_weight, attention.in_proj_bias)
    before = keys_before(attention, projected)
    results = []
    for rows, shape, mask in zip(buckets.split(projected), buckets.shapes, buckets.masks, strict=True):
        # (query, key and value, number, heads, steps, features of a head)
        parts = rows.view(*shape, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
        # By one `unbind`, whose backward pass is one `stack`; slices would be added up.
        query, key, value = parts.unbind()
        results.append(attend_in_bucket(attention, query, (key, value), before, mask, causal))
    return functional.linear(buckets.join(results, lengths), attention.out_proj.weight, attention.out_proj.bias)


def runs_by_kernels(attention: nn.MultiheadAttention, *values: Tensor) -> bool:
    """Return True if the kernels compute the attention with these queries and memory."""
    if number_of_keys_before(attention) or (attention.training and attention.dropout):
        return False
    weights = (weight for weight in parameters_of(attention).values() if weight is not None)
    return can_attend(*values, *weights)


def attend_in_bucket(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key_and_value: tuple[Tensor, ...],
    before: Tensor | None,
    mask: Tensor | None,
    causal: bool,
) -> Tensor:
    """Compute the attention of all sequences of a bucket, before the output projection.

    Args:
        attention: the layer.
        query: `(number, heads, steps, features of a head)`.
        key_and_value: two of `(number, heads, keys, features of a head)`.
        before: as from `keys_before`.
        mask: the mask of the bucket.
        causal: True if steps do not attend to later ones.

    Returns:
        `(number * steps, embed_dim)`.
    """
    number, _, steps, _ = query.shape
    if before is not None:
        added = before.expand(-1, number, -1, -1, -1).unbind()
        key_and_value = tuple(torch.cat(pair, 2) for pair in zip(added, key_and_value, strict=True))
        if causal:  # extra queries, whose results are dropped, because the mask lets query n attend to n keys
            query = functional.pad(query, (0, 0, before.shape[3], 0))
    key, value = key_and_value
    dropout = attention.dropout if attention.training else 0.0
    with supported_kernels():
        attended = functional.scaled_dot_product_attention(query, key, value, mask, dropout, causal)
    return attended[:, :, -steps:].transpose(1, 2).reshape(number * steps, attention.embed_dim)


def supported_kernels() -> AbstractContextManager[Any]:
    """Exclude the kernels of PyTorch that do not support `vmap` and forward mode, while either is active."""
    asks_more = is_transformed() and not takes_gradients_only()
    return sdpa_kernel(SDPBackend.MATH) if asks_more else nullcontext()


def number_of_keys_before(attention: nn.MultiheadAttention) -> int:
    """Return the number of keys that `add_bias_kv` and `add_zero_attn` add to those of every sequence."""
    return int(attention.bias_k is not None) + int(attention.add_zero_attn)


def keys_before(attention: nn.MultiheadAttention, like: Tensor) -> Tensor | None:
    """Return the keys and values that `add_bias_kv` and `add_zero_attn` add to those of every sequence.

    PyTorch appends them, where the causal mask of its kernels would hide them. Here they come first, so that every step
    attends to them; the order of keys does not matter.

    Returns:
        `(2, 1, num_heads, number, head_dim)`; None if there are none.
    """
    if not number_of_keys_before(attention):
        return None
    shape = (2, 1, attention.num_heads, 1, attention.head_dim)
    parts = []
    if attention.bias_k is not None and attention.bias_v is not None:
        parts.append(torch.stack([attention.bias_k, attention.bias_v]).to(like.dtype).view(shape))
    if attention.add_zero_attn:
        parts.append(like.new_zeros(shape))
    return torch.cat(parts, 3)
