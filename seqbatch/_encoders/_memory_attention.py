"""Attention of each sequence over its memory: the sequence of the same index in another batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqbatch._batch import SequenceBatch
from seqbatch._encoders._buckets import pair_bucket_overhead, pair_buckets_of
from seqbatch._encoders._self_attention import attend_in_bucket, keys_before, number_of_keys_before, runs_by_kernels
from seqbatch._kernels.flat_attention import attend_flat
from seqbatch._structure.sequence_lengths import Lengths


def attend_to_memory(
    attention: nn.MultiheadAttention, values: Tensor, lengths: Lengths, memory: SequenceBatch
) -> Tensor:
    """Compute the attention of every step over the memory of its sequence.

    The kernels read each step where it stands. Where they do not run, steps are copied to buckets before the
    projections. Padding is zeros, real steps do not attend to it, and its outputs are dropped. So it adds nothing to
    the gradient of a weight.

    Args:
        attention: a layer with a stock `forward` and without hooks.
        values: `(total_steps, embed_dim)`.
        lengths: the lengths of the queries.
        memory: key and value, a batch of features `(kdim,)`.

    Returns:
        `(total_steps, embed_dim)`. Where memory is empty, and no key is added to it, a step attends to zeros.
    """
    weight, bias, memory_weight, memory_bias = _projections(attention)
    heads = attention.num_heads, attention.head_dim
    if runs_by_kernels(attention, values, memory.values):
        query = functional.linear(values, weight, bias).view(len(values), *heads)
        of_memory = functional.linear(memory.values, memory_weight, memory_bias)
        key, value = of_memory.view(memory.total_steps, 2, *heads).unbind(1)
        starts, scale = (lengths.offsets, memory.structure.offsets), attention.head_dim**-0.5
        attended = attend_flat(query, key, value, *starts, scale=scale)
        return functional.linear(attended.flatten(1), attention.out_proj.weight, attention.out_proj.bias)
    overhead, extra = pair_bucket_overhead(attention.embed_dim, values.device), number_of_keys_before(attention)
    buckets = memory.structure.plan(
        pair_buckets_of,
        lengths.counts,
        overhead,
        0 if extra else 1,
        extra,
        False,
        device=values.device,
    )
    projected = functional.linear(buckets.queries.fill(values, lengths), weight, bias)
    of_memory = functional.linear(buckets.memory.fill(memory.values, memory.structure), memory_weight, memory_bias)
    before = keys_before(attention, projected)
    results = []
    for rows, memory_rows, shape, memory_shape, mask in zip(
        buckets.queries.split(projected),
        buckets.memory.split(of_memory),
        buckets.queries.shapes,
        buckets.memory.shapes,
        buckets.memory.masks,
        strict=True,
    ):
        query = rows.view(*shape, *heads).transpose(1, 2)
        key_and_value = memory_rows.view(*memory_shape, 2, *heads).permute(2, 0, 3, 1, 4).unbind()
        results.append(attend_in_bucket(attention, query, key_and_value, before, mask, False))
    attended = buckets.queries.join(results or [projected], lengths)
    return functional.linear(attended, attention.out_proj.weight, attention.out_proj.bias)


def _projections(attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Return weight and bias of the projection of queries, and those of keys and values together."""
    size = attention.embed_dim
    if attention.in_proj_weight is None:  # because keys or values have another size
        weight = attention.q_proj_weight
        # Not by `cat`, which joins weights of unequal shapes too.
        memory_weight = torch.stack([attention.k_proj_weight, attention.v_proj_weight]).flatten(0, 1)
    else:
        weight, memory_weight = attention.in_proj_weight.split([size, 2 * size])
    if attention.in_proj_bias is None:
        return weight, None, memory_weight, None
    bias, memory_bias = attention.in_proj_bias.split([size, 2 * size])
    return weight, bias, memory_weight, memory_bias
