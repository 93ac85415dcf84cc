"""Encoders of layers that normalize by statistics of real steps; nn.LayerNorm and nn.RMSNorm are in `pointwise`.

- `nn.BatchNorm1d`, `nn.BatchNorm2d` and `nn.SyncBatchNorm` in training compute statistics over all steps of the batch,
  each counted once, and update the running statistics once. So the output of a sequence depends on the others, as it
  does in PyTorch: it is the output for the flat values. In evaluation each sequence gets what it would get alone. A
  layer without running statistics computes them over all steps in evaluation too. `nn.BatchNorm2d` takes steps of
  `(channels, features)`, as `nn.Conv2d` returns; its hooks see `(total_steps, channels, features, 1)`.
- `nn.GroupNorm` normalizes each step by itself, over groups of its channels: each step is a sample in PyTorch's terms.
- `nn.InstanceNorm1d` normalizes each sequence by itself, over its steps. Its running statistics are updated by the mean
  of those of the sequences, as for the samples of a batch in PyTorch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqbatch._batch import SequenceBatch
from seqbatch._checks.grammar import complaint, counted, describe
from seqbatch._checks.tracing import outside_graphs
from seqbatch._encode.registry import register_encoder
from seqbatch._encoders._buckets import run_in_groups
from seqbatch._encoders._layer_checks import (
    keeps_forward,
    register_features,
    remedy_for_dtype,
    require_device,
    require_features,
    takes_its_weights_dtype,
)
from seqbatch._encoders._stock_layers import is_untouched
from seqbatch._encoders.pointwise import register_stepwise
from seqbatch._torch import has_hooks, in_a_graph, is_lazy
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

_HALF = (torch.bfloat16, torch.float16)
_OF_TWO_DIMENSIONS = (nn.BatchNorm2d, nn.LazyBatchNorm2d)


def _check_batch_norm(layer: Any, batch: SequenceBatch) -> None:
    _require_channels(batch, layer.num_features, layer)
    if isinstance(layer, (nn.BatchNorm1d, nn.LazyBatchNorm1d)) and len(batch.feature_shape) > 2:
        must = f"have features of 1 or 2 dimensions, for {describe(layer)}"
        raise complaint(SeqbatchValueError, "sequences", must, tuple(batch.feature_shape))
    if isinstance(layer, _OF_TWO_DIMENSIONS) and len(batch.feature_shape) != 2:
        must = f"have features (channels, features), for {describe(layer)}"
        remedy = "Pass x.unsqueeze(-1), or nn.BatchNorm1d." if len(batch.feature_shape) == 1 else ""
        raise complaint(SeqbatchValueError, "sequences", must, tuple(batch.feature_shape), remedy)
    # Options first, because in evaluation the sizes need not be compared, which would specialize a graph.
    if _uses_own_statistics(layer) and not _synchronizes(layer) and batch.values.numel() == batch.feature_shape[0]:
        must = f"have 2 steps or more together, because {describe(layer)} computes statistics over them"
        raise complaint(SeqbatchValueError, "sequences", must, 1)


def _check_group_norm(layer: nn.GroupNorm, batch: SequenceBatch) -> None:
    _require_channels(batch, layer.num_channels, layer)
    if batch.values.numel() == layer.num_groups:
        must = f"have 2 steps or more together, or 2 values or more in a group, for {describe(layer)}"
        raise complaint(SeqbatchValueError, "sequences", must, 1)


def _check_instance_norm(layer: nn.InstanceNorm1d, batch: SequenceBatch) -> None:
    require_features(batch, (layer.num_features,), layer, exactly=True)
    _require_floating_like(batch, layer)
    if _uses_own_statistics(layer) and 1 in batch.lengths:
        must = f"have 2 steps or more, or none, because {describe(layer)} computes statistics over them"
        raise complaint(SeqbatchValueError, f"sequences[{batch.lengths.index(1)}]", must, 1)


def _require_channels(batch: SequenceBatch, channels: int, layer: nn.Module) -> None:
    """Raise unless the first feature axis has the size of the channels, as in PyTorch."""
    found = tuple(batch.feature_shape)
    # 0 channels match any, because a lazy layer has 0 before its first call, and 0 for ever without weights.
    if not found or found[0] != (channels or found[0]):
        remedy = "For a padded Tensor call SequenceBatch.from_padded." if found[-1:] == (channels,) else ""
        must = f"have features that begin with ({channels or 'any'},), for {describe(layer)}"
        raise complaint(SeqbatchValueError, "sequences", must, found, remedy)
    _require_floating_like(batch, layer)


def _require_floating_like(batch: SequenceBatch, layer: nn.Module) -> None:
    """Raise unless a batch has the dtype and device of a norm's tensors; half precision may have float32 weights."""
    if not batch.dtype.is_floating_point:
        raise complaint(SeqbatchTypeError, "sequences", f"have a floating dtype, for {describe(layer)}", batch.dtype)
    require_device(batch, layer)
    held = next((tensor for tensor in (*layer.parameters(), *layer.buffers()) if tensor.is_floating_point()), None)
    if held is None or batch.dtype in (held.dtype, *_HALF) or not takes_its_weights_dtype(layer):
        return
    must = f"have dtype {held.dtype}, as the weights or statistics of {describe(layer)}"
    raise complaint(SeqbatchValueError, "sequences", must, batch.dtype, remedy_for_dtype(batch, held.dtype))


def _uses_own_statistics(layer: Any) -> bool:
    """Return True if a norm uses the statistics of its input, and not its running statistics."""
    return bool(layer.training) or layer.running_mean is None


def _synchronizes(layer: nn.Module) -> bool:
    """Return True if a norm adds the statistics of other processes, which may have more steps."""
    spread = torch.distributed.is_available() and torch.distributed.is_initialized()
    return spread and isinstance(layer, nn.SyncBatchNorm)


def _channels_of(layer: Any) -> tuple[int, ...] | None:
    # None for size 0, because a lazy layer without weights and statistics takes any number.
    return (layer.num_features,) if layer.num_features else None


def _call_batch_norm(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    """Call a batch norm, or compute while tracing what it does in evaluation.

    PyTorch's function compares the number of values with 0. While tracing, that number may be unknown, as for steps
    that are read from a padded tensor.
    """
    if in_a_graph():
        computes = not (is_lazy(layer) or has_hooks(layer) or _uses_own_statistics(layer))
        return batch.map(partial(_normalize_by_running_statistics, layer) if computes else _on_values(layer))
    if batch.batch_size or not layer.training or layer.num_batches_tracked is None or _synchronizes(layer):
        return batch.map(_on_values(layer))
    # Restore the count, because PyTorch would count an empty batch, which changes the mean with momentum=None.
    count = layer.num_batches_tracked.clone()
    outputs = batch.map(_on_values(layer))
    layer.num_batches_tracked.copy_(count)
    return outputs


def _on_values(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the call of a batch norm on flat values; one of two dimensions gets a second of size 1."""
    if not isinstance(layer, _OF_TWO_DIMENSIONS):
        return layer

    def call(values: Tensor) -> Tensor:
        result: Tensor = layer(values.unsqueeze(-1)).squeeze(-1)
        return result

    return call


def _normalize_by_running_statistics(layer: Any, values: Tensor) -> Tensor:
    # In single precision for half precision, as PyTorch computes it.
    wide = values.float() if values.dtype in _HALF else values
    channels = (-1, *(1 for _ in values.shape[2:]))

    def per_channel(held: Tensor) -> Tensor:
        return held.to(wide.dtype).view(channels)

    result: Tensor = (wide - per_channel(layer.running_mean)) * (per_channel(layer.running_var) + layer.eps).rsqrt()
    if layer.weight is not None:
        result = result * per_channel(layer.weight)
    if layer.bias is not None:
        result = result + per_channel(layer.bias)
    return result.to(values.dtype)


for _kind in (nn.BatchNorm1d, nn.LazyBatchNorm1d, nn.SyncBatchNorm, *_OF_TWO_DIMENSIONS):
    register_stepwise(_kind, _check_batch_norm, _call_batch_norm, _on_values)
for _kind in (nn.BatchNorm1d, nn.LazyBatchNorm1d, nn.SyncBatchNorm):
    register_features(_kind, _channels_of)
register_stepwise(nn.GroupNorm, _check_group_norm)
register_features(nn.GroupNorm, lambda layer: (layer.num_channels,))
register_features(nn.InstanceNorm1d, _channels_of)


@register_encoder(nn.InstanceNorm1d)
@outside_graphs
def _(layer: nn.InstanceNorm1d, batch: SequenceBatch) -> SequenceBatch:
    is_stock = keeps_forward(layer, nn.InstanceNorm1d)
    if is_stock:
        _check_instance_norm(layer, batch)
    if is_stock and is_untouched(layer):
        return _normalize_sequences(layer, batch)
    groups = {*batch.lengths} - {0}
    if layer.training and layer.running_mean is not None and len(groups) > 1:
        must = "have no hooks and no forward of its own, because it keeps statistics and is called once for each length"
        raise complaint(SeqbatchValueError, "layer", must, f"{describe(layer)} and {counted(len(groups), 'length')}")
    return run_in_groups(lambda group: layer(group.mT).mT, batch) if groups else batch


def _normalize_sequences(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    """Compute for all sequences what the layer does for one."""
    if not _uses_own_statistics(layer):
        # Copies, as in the layer itself, whose next call may write to them before the backward pass of this one.
        held = layer.running_mean.clone(), layer.running_var.clone(), layer.weight, layer.bias
        return batch.map(lambda values: functional.batch_norm(values, *held, eps=layer.eps))
    wide = batch.map(Tensor.float) if batch.dtype in _HALF else batch
    rows = batch.segment_ids
    means = wide.mean()
    centred = wide.map(lambda values: values - means.index_select(0, rows))
    variances = centred.map(torch.square).mean()
    values = centred.values * (variances + layer.eps).rsqrt().index_select(0, rows)
    if layer.weight is not None:
        values = values * layer.weight
    if layer.bias is not None:
        values = values + layer.bias
    if layer.running_mean is not None and batch.total_steps:
        _update_statistics(layer, batch, means.detach(), variances.detach())
    return batch.with_values(values.to(batch.dtype))


@torch.no_grad()
def _update_statistics(layer: Any, batch: SequenceBatch, means: Tensor, variances: Tensor) -> None:
    """Update the running statistics of the layer by those of the sequences, each sequence counted once."""
    counts = batch.structure.on(batch.device).tensor[:, None]
    there = counts > 0
    unbiased = variances * counts / (counts - 1).clamp(min=1)
    share = (layer.momentum or 0.0) / there.sum()
    for running, found in ((layer.running_mean, means), (layer.running_var, unbiased)):
        running.mul_(1 - (layer.momentum or 0.0)).add_((found * there).sum(0) * share)
