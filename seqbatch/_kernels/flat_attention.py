"""Attention by the compiled kernels, forward and backward: what they can read; knows tensors only, no layouts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from seqbatch import _kernels
from seqbatch._kernels.replayed_gradients import replay
from seqbatch._kernels.row_copies import can_read, is_read_as
from seqbatch._torch import is_intercepted, wants_gradients

DTYPES = (torch.float32, torch.float64)
Starts = tuple[Tensor, Tensor]  # of queries and keys


def can_attend(*inputs: Tensor) -> bool:
    """Return True if the kernels can attend with what is computed from all these tensors, and no gradient is wanted.

    These are weights, queries and memory, as for `can_compute`.
    """
    return can_compute(*inputs) and not wants_gradients(inputs)


def can_compute(*inputs: Tensor) -> bool:
    """Return True if the kernels can read all these tensors: on the CPU, in one dtype, single or double precision."""
    dtype = inputs[0].dtype
    if dtype not in DTYPES or any(one.dtype is not dtype for one in inputs) or torch.is_autocast_enabled("cpu"):
        return False
    return can_read(*inputs)


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
    log_sums: Tensor | None = None,
) -> Tensor:
    """Compute the attention of each query step over the keys of its sequence, without gradients.

    It requires `can_compute`.

    Args:
        query: `(query steps, heads, size)`.
        key: `(keys, heads, size)`.
        value: `(keys, heads, value_size)`.
        query_starts: `(batch + 1,)`, int64: where the query steps of each sequence start, and where the last end.
        key_starts: `(batch + 1,)`, int64: where its keys start, and where the last end.
        scale: the factor of the scores.
        weight: `(heads, size)`, for additive scores; None for dot products.
        is_causal: True if a step does not attend to later ones; then there are as many keys as query steps.
        log_sums: `(query steps, heads)`, contiguous, to be filled with what the backward pass needs; None without one.

    Returns:
        `(query steps, heads, value_size)`: zeros for a sequence without keys.
    """
    steps, heads, size = query.shape
    # As numbers, because a comparison with a tensor takes longer than the attention of a short sequence.
    fits = (
        steps == query_starts[-1].item()
        and key.shape == (key_starts[-1].item(), heads, size)
        and value.shape[:2] == key.shape[:2]
        and (weight is None or weight.shape == (heads, size))
        and len(query_starts) == len(key_starts)
        and (not is_causal or torch.equal(query_starts, key_starts))
    )
    if not fits:  # because the kernel would read beyond their memory
        raise ValueError("Queries, keys, values, weights and lengths must be of shapes that fit each other.")
    out = query.new_empty(steps, *value.shape[1:])
    inputs = _with_whole_steps(query, key, value)
    if weight is not None:
        inputs.append(weight.contiguous())
    call = _describe_call(inputs, out, log_sums, (query_starts, key_starts), scale=scale, is_causal=is_causal)
    _kernels.compute_attention(call, query.dtype is torch.float64)
    return out


def attend_with_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor | None,
    query_starts: Tensor,
    key_starts: Tensor,
    by_pytorch: Callable[..., Tensor],
    *,
    scale: float = 1.0,
) -> Tensor:
    """Compute the attention of one head as `attend_flat`, with gradients; requires `can_compute`.

    Args:
        query: `(query steps, size)`.
        key: `(keys, size)`.
        value: `(keys, value_size)`.
        weight: `(1, size)`, for additive scores; None for dot products.
        query_starts: as for `attend_flat`.
        key_starts: as for `attend_flat`.
        by_pytorch: computes the same from queries, keys, values and any weight by functions of PyTorch, for the
            gradients that the kernels do not compute, such as those of gradients.
        scale: the factor of the scores.

    Returns:
        `(query steps, value_size)`; gradients flow.
    """
    inputs = (query, key, value) if weight is None else (query, key, value, weight)
    starts = query_starts, key_starts
    if not wants_gradients(inputs):
        return attend_flat(query[:, None], key[:, None], value[:, None], *starts, scale=scale, weight=weight)[:, 0]
    apply: Any = _Attention.apply  # torch gives it no types
    out: Tensor = apply(by_pytorch, starts, scale, *inputs)
    return out.clone()  # because the backward pass reads the result, which callers may modify in place


class _Attention(torch.autograd.Function):
    """Attention of one head, with a backward pass by the kernels."""

    @staticmethod
    def forward(ctx: Any, by_pytorch: Callable[..., Tensor], starts: Starts, scale: float, *inputs: Tensor) -> Tensor:
        query, key, value, *weight = inputs
        log_sums = query.new_empty(len(query), 1)
        parts = query[:, None], key[:, None], value[:, None]
        only_weight = weight[0] if weight else None
        out = attend_flat(*parts, *starts, scale=scale, weight=only_weight, log_sums=log_sums)[:, 0]
        ctx.by_pytorch, ctx.starts, ctx.scale, ctx.dtype = by_pytorch, starts, scale, out.dtype
        kept = (*inputs, out, log_sums)
        ctx.shapes = [part.shape for part in (*kept, out)]
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        if gradient is None:  # as from a function that returns none
            return (None,) * len(ctx.needs_input_grad)
        kept = ctx.saved_tensors  # read once, because checkpoints return them once
        # Hooks of autograd may have changed what was saved, and the gradient may be batched or of any subclass.
        pairs = zip((*kept, gradient), ctx.shapes, strict=True)
        is_read = all(is_read_as(part, shape, ctx.dtype) for part, shape in pairs)
        if is_read and not (torch.is_grad_enabled() or is_intercepted()):
            return None, None, None, *_compute_gradients(gradient, kept, ctx.starts, ctx.scale)
        again = torch.is_grad_enabled()
        return None, None, None, *replay(lambda inputs: [ctx.by_pytorch(*inputs)], kept[:-2], gradients, again=again)


def _compute_gradients(gradient: Tensor, kept: Sequence[Tensor], starts: Starts, scale: float) -> list[Tensor]:
    """Return the gradients of queries, keys, values and any weight from what was saved."""
    *inputs, out, log_sums = _with_whole_steps(*kept)
    # The kernel has no strides for these two, and hooks of autograd may return any.
    log_sums, gradient = log_sums.contiguous(), gradient.contiguous()
    found = [one.new_empty(one.shape) for one in inputs]
    parts = [*(one[:, None] for one in inputs[:3]), *inputs[3:]]
    call = _describe_call(parts, out[:, None], log_sums, starts, scale=scale)
    call.grad_out = gradient.data_ptr()
    for name, one in zip(("query", "key", "value", "weight"), found, strict=False):  # dot products have no weight
        setattr(call, f"grad_{name}", one.data_ptr())
    _kernels.compute_attention_gradients(call, out.dtype is torch.float64)
    return found


def _with_whole_steps(*tensors: Tensor) -> list[Tensor]:
    """Return tensors whose steps are contiguous, with any stride between them."""
    return [one if one.is_contiguous() or one[:1].is_contiguous() else one.contiguous() for one in tensors]


def _describe_call(
    inputs: Sequence[Tensor],
    out: Tensor,
    log_sums: Tensor | None,
    starts: Starts,
    *,
    scale: float = 1.0,
    is_causal: bool = False,
) -> _kernels.Attention:
    """Return what forward and backward share of a call, which holds no tensor.

    Each step of `inputs` and `out` is contiguous, and all of `log_sums`.
    """
    query, key, value, *weight = inputs
    return _kernels.Attention(
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        weight=weight[0].data_ptr() if weight else None,
        out=out.data_ptr(),
        log_sums=None if log_sums is None else log_sums.data_ptr(),
        query_starts=starts[0].data_ptr(),
        key_starts=starts[1].data_ptr(),
        sequences=len(starts[1]) - 1,
        heads=query.shape[1],
        size=query.shape[2],
        value_size=value.shape[2],
        query_stride=query.stride(0),
        key_stride=key.stride(0),
        value_stride=value.stride(0),
        out_stride=out.stride(0),
        scale=scale,
        is_causal=is_causal,
        threads=torch.get_num_threads(),
        isa=_kernels.ISA_NUMBER,
    )
