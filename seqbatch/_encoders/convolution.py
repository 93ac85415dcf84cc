"""Encoders of layers whose windows read several steps, convolution and pooling, and of layers that pad each sequence.

A sequence `(steps, channels)` gets what it would get alone, `layer(sequence.T[None])[0].T`. Layers of two dimensions
take `(steps, channels, features)`, or `(steps, features)` for one channel, and return `(steps, channels, features)`:
what `layer(sequence.transpose(0, 1)[None])[0].transpose(0, 1)` is. The first size of their kernels is over steps.
The length of a sequence changes by the layer's own rule:

- `nn.Conv1d`, `nn.MaxPool1d`, `nn.AvgPool1d`, `nn.LPPool1d` and those of two dimensions return
  `(steps + left + right - span) / stride + 1` steps, rounded down. Here `span` is `dilation * (kernel_size - 1) + 1`,
  and `left` and `right` are the padding. With `ceil_mode` it is rounded up, but no window starts after the last step. A
  sequence too short for one window raises.
- Layers that pad return `steps + left + right` steps.
- An empty sequence stays empty, whatever the padding.

No window reads a step of another sequence. NaN or infinity in a sequence reaches the gradient of the weights as it does
alone, through a window that reads it. Then it may reach other elements of the kernel's gradient too, because windows
that are not picked count there with 0 times NaN.

A layer with hooks is called as itself, once: the hooks see all steps end to end, `(1, channels, total_steps)` or
`(1, channels, total_steps, features)`. One with its own `forward` is called once for each length, on all sequences of
that length. So the result equals that of each sequence alone, whatever the `forward` does with the steps.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqbatch._batch import SequenceBatch
from seqbatch._checks.arguments import require_tensor
from seqbatch._checks.grammar import complaint, counted, describe
from seqbatch._checks.tracing import outside_graphs
from seqbatch._encode.registry import register_encoder
from seqbatch._encoders._borders import Border, border_layout
from seqbatch._encoders._hooked_call import call_as_itself
from seqbatch._encoders._layer_checks import (
    keeps_forward,
    quantized_layers,
    refusals_of,
    register_features,
    require_device,
    require_dtype,
    require_features,
    run_on_nothing,
)
from seqbatch._encoders._window_options import (
    border_of,
    require_options,
    windows_of_convolution,
    windows_of_maximum,
    windows_of_mean,
    windows_of_power_mean,
)
from seqbatch._encoders._windows import Windows, window_layout
from seqbatch._ops.layouts import rearrange
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import has_hooks_before, is_parametrized
from seqbatch.errors import SeqbatchValueError

# From this many numbers per sequence on average, pooling each is faster on the CPU: the numbers of one long sequence
# would leave the cache between the layer and the gathers around it. A convolution needs four times as many, because
# each call costs more.
_LARGE = 2**13

# From a layer and an axis to its windows or its border along it.
_Rule = Callable[[Any, int], Windows | Border]
# From all steps end to end, `(1, channels, total_steps, *features)`, to those of the outputs, and their lengths.
_Run = Callable[[Tensor], tuple[Tensor, Lengths]]
_Start = Callable[[nn.Module, SequenceBatch, _Rule], _Run]


def _register_over_steps(
    layer_type: type[nn.Module], rule: _Rule, start: _Start | None = None, *, dimensions: int = 1
) -> None:
    """Register the encoder of a layer, by the `rule` of its windows or border; `start` replaces the long sequence.

    A layer of two dimensions has windows or a border along the features too.
    """

    @register_encoder(layer_type)
    @outside_graphs
    def _(layer: nn.Module, batch: SequenceBatch) -> SequenceBatch:
        if getattr(layer, "return_indices", False):
            must = "not return indices, because they would count the steps of the whole batch"
            raise complaint(SeqbatchValueError, "layer", must, f"{type(layer).__name__}(..., return_indices=True)")
        is_stock = keeps_forward(layer, layer_type)
        check = _require_steps_of_channels if dimensions == 1 else _require_steps_of_images
        check(layer, batch, is_stock)
        if is_stock:
            _require_dtype_and_device(layer, batch)
        if len(batch.feature_shape) < dimensions:
            batch = batch.with_values(batch.values.unsqueeze(1))  # one channel
        if not is_stock:
            return _call_on_all_steps(layer, batch, _by_length(layer, batch, rule))
        along_axes = [rule(layer, axis) for axis in range(dimensions)]
        for along_axis in along_axes:
            if isinstance(along_axis, Windows):
                require_options(layer, along_axis)
        of_steps, *of_features = along_axes
        _require_enough_steps(layer, of_steps, batch)
        for along_features in of_features:
            _require_enough_features(layer, along_features, batch)
        with refusals_of(layer, batch):
            run = start(layer, batch, rule) if start else _laid_out(layer, batch, of_steps, *of_features)
            return _call_on_all_steps(layer, batch, run)


def _call_on_all_steps(layer: nn.Module, batch: SequenceBatch, run: _Run) -> SequenceBatch:
    """Call the layer as itself on all steps end to end."""

    def forward(steps: Tensor) -> tuple[Tensor, Lengths]:
        if steps.shape[2] != batch.total_steps:
            must = f"get all {counted(batch.total_steps, 'step')} from the hooks before it"
            raise complaint(SeqbatchValueError, "layer", must, steps.shape[2])
        return run(steps)

    result, lengths = call_as_itself(layer, forward, _swapped(batch.values)[None])
    return SequenceBatch(_swapped(result[0]), lengths)


def _swapped(values: Tensor) -> Tensor:
    """Swap steps and channels, `(steps, channels, *features)` or `(channels, steps, *features)`, in a view."""
    return values.transpose(0, 1)


def _runs_one_by_one(layer: Any, batch: SequenceBatch) -> bool:
    """Return True if calling a layer on each sequence is faster, and no parametrizations may count the calls."""
    # PyTorch's nn.Conv1d takes longer on each in training or with dilation, and its nn.AvgPool1d in inference.
    if not batch.values.is_cpu or is_parametrized(layer) or isinstance(layer, (nn.Conv1d, nn.AvgPool1d)):
        return False
    if len({*batch.structure.without_empty.counts}) < 2:  # because a dense batch is faster
        return False
    channels, *features = batch.feature_shape
    of_layer, least = (layer.out_channels, 4 * _LARGE) if isinstance(layer, nn.Conv2d) else (0, _LARGE)
    return batch.total_steps * max(channels, of_layer) * prod(features) >= least * batch.batch_size


def _in_windows(layer: Any, batch: SequenceBatch, windows: Windows) -> _Run:
    """Run a layer on each sequence if they are large, on a dense batch of equal lengths, or on one long sequence."""
    one_by_one = _runs_one_by_one(layer, batch)
    layout = batch.structure.plan(window_layout, windows, one_by_one, device=batch.device)
    lengths = batch.structure if layout.lengths is None else layout.lengths

    def run(steps: Tensor) -> tuple[Tensor, Lengths]:
        if layout.plans is None and one_by_one:
            parts = steps.split(batch.structure.without_empty.counts, 2)
            # Joined by steps, so that the values are contiguous, as in the other cases.
            return _swapped(torch.cat([_swapped(layer.forward(part)[0]) for part in parts]))[None], lengths
        values = _swapped(steps[0])
        if layout.plans is None:
            dense = layer.forward(_channels_first(layer, values.unflatten(0, (-1, batch.max_length))))
            return _swapped(dense.transpose(1, 2).flatten(0, 1))[None], lengths
        lay, pick = layout.plans
        result = layer.forward(_channels_first(layer, rearrange(values, lay, _fill_of(layer))[None]))
        picked = rearrange(_swapped(result[0]).contiguous(), pick)
        if layout.corrections is not None:
            picked = picked * layout.corrections.to(picked.dtype).view(-1, *(1 for _ in picked.shape[1:]))
        return _swapped(picked)[None], lengths

    return run


def _fill_of(layer: nn.Module) -> float:
    """Return the value between sequences, which the last window may read with `ceil_mode`."""
    return float("-inf") if isinstance(layer, _MAXIMA) else 0


def _channels_first(layer: nn.Module, steps: Tensor) -> Tensor:
    """Convert `(batch, steps, channels, ...)` to `(batch, channels, steps, ...)`, a view if PyTorch is faster so."""
    viewed = isinstance(layer, nn.AvgPool1d) or (isinstance(layer, nn.MaxPool1d) and steps.requires_grad)
    swapped = steps.transpose(1, 2)
    return swapped if viewed else swapped.contiguous()


def _in_borders(layer: Any, batch: SequenceBatch, border: Border, of_features: Border | None = None) -> _Run:
    """Pad the steps of each sequence by one gather, with the value of the layer, and the features by PyTorch."""
    layout = batch.structure.plan(border_layout, border, device=batch.device)
    lengths = batch.structure if layout.lengths is None else layout.lengths
    fill = getattr(layer, "value", 0)

    def run(steps: Tensor) -> tuple[Tensor, Lengths]:
        values = _swapped(steps[0])
        if of_features is not None:
            values = functional.pad(values, (of_features.left, of_features.right), of_features.mode, fill)
        return _swapped(rearrange(values, layout.plan, fill))[None], lengths

    return run


def _laid_out(layer: nn.Module, batch: SequenceBatch, of_steps: Windows | Border, *of_features: Any) -> _Run:
    if isinstance(of_steps, Windows):
        return _in_windows(layer, batch, of_steps)
    return _in_borders(layer, batch, of_steps, *of_features)


def _by_length(layer: nn.Module, batch: SequenceBatch, rule: _Rule) -> _Run:
    """Run a layer on all sequences of a length at once."""
    groups: dict[int, list[int]] = {}
    for i, count in enumerate(batch.structure.without_empty.counts):
        groups.setdefault(count, []).append(i)
    return _in_groups(layer, batch, rule, [*groups.values()])


def _one_by_one(layer: nn.Module, batch: SequenceBatch, rule: _Rule) -> _Run:
    """Run a layer on each sequence alone, because one that quantizes its input mixes the sequences of a batch."""
    return _in_groups(layer, batch, rule, [[i] for i in range(len(batch.structure.without_empty))])


def _in_groups(layer: nn.Module, batch: SequenceBatch, rule: _Rule, groups: list[list[int]]) -> _Run:
    """Run a layer on groups of sequences of equal length, whatever number of steps it returns.

    Without any steps the layer is not called, and its outputs have the size by the `rule`.
    """
    counts = batch.structure.without_empty.counts

    def run(steps: Tensor) -> tuple[Tensor, Lengths]:
        if not counts:
            sizes = [rule(layer, axis).number(size) for axis, size in enumerate(steps.shape[3:], 1)]
            nothing = steps.new_zeros(1, getattr(layer, "out_channels", steps.shape[1]), 0, *sizes)
            return run_on_nothing(layer, nothing, batch.with_values(_swapped(steps[0]))), batch.structure
        parts, results = steps.split(counts, 2), [steps] * len(counts)
        for chosen in groups:
            # A copy, even of one, because a layer's own `forward` may modify it in place.
            result = require_tensor("layer(sequence)", layer.forward(torch.cat([parts[i] for i in chosen])))
            for i, one in zip(chosen, result.split(1), strict=True):
                results[i] = one
        found = iter(results)
        lengths = tuple(next(found).shape[2] if count else 0 for count in batch.lengths)
        return torch.cat(results, 2), batch.structure if lengths == batch.lengths else Lengths(lengths)

    return run


def _require_steps_of_channels(layer: Any, batch: SequenceBatch, is_stock: bool) -> None:
    """Raise unless each step is one value per channel."""
    if is_stock and hasattr(layer, "in_channels"):
        require_features(batch, (layer.in_channels,), layer, exactly=True)
    if len(batch.feature_shape) != 1:
        must = f"have features (channels,), for {describe(layer)}"
        remedy = "For a padded Tensor call SequenceBatch.from_padded."
        if not batch.feature_shape:
            remedy = "Pass x.unsqueeze(-1) for one channel."
        raise complaint(SeqbatchValueError, "sequences", must, tuple(batch.feature_shape), remedy)


def _require_steps_of_images(layer: Any, batch: SequenceBatch, is_stock: bool) -> None:
    """Raise unless each step has features for each channel, or for the one channel that the layer may take."""
    found, channels = tuple(batch.feature_shape), getattr(layer, "in_channels", 0) if is_stock else 0
    # A lazy layer has 0 channels before its first call.
    if not 1 <= len(found) <= 2 or (channels and channels != (found[0] if len(found) == 2 else 1)):
        sizes = f"({channels or 'channels'}, features)" + (" or (features,)" if channels < 2 else "")
        remedy = "For a padded Tensor call SequenceBatch.from_padded." if len(found) > 2 else ""
        raise complaint(SeqbatchValueError, "sequences", f"have features {sizes}, for {describe(layer)}", found, remedy)


def _require_dtype_and_device(layer: nn.Module, batch: SequenceBatch) -> None:
    """Raise unless a convolution has weights like the values, and a pool floating values."""
    if hasattr(layer, "in_channels"):
        require_dtype(batch, layer)
        require_device(batch, layer)
    elif isinstance(layer, _POOLS) and not (batch.dtype.is_floating_point or has_hooks_before(layer)):
        raise complaint(SeqbatchValueError, "sequences", f"be floating, for {describe(layer)}", batch.dtype)


def _least_size(rule: Windows | Border) -> tuple[int, str]:
    """Return the smallest size of an axis along which a layer works, and what is done there."""
    border = rule.border if isinstance(rule, Windows) else rule
    if isinstance(rule, Windows) and rule.least > border.least:
        return rule.least, "fill a window"
    return border.least, "be padded"


def _require_enough_steps(layer: nn.Module, rule: Windows | Border, batch: SequenceBatch) -> None:
    """Raise if a sequence is too short to be padded or to fill one window."""
    least, what = _least_size(rule)
    counts = batch.lengths
    if min(batch.structure.without_empty.counts, default=least) < least:
        i = next(i for i, count in enumerate(counts) if 0 < count < least)
        must = f"have {counted(least, 'step')} at least to {what}, for {describe(layer)}"
        remedy = "Pad it or leave it out" if what == "fill a window" else "Leave it out"
        raise complaint(SeqbatchValueError, f"sequences[{i}]", must, counts[i], f"{remedy}, by batch[indices].")


def _require_enough_features(layer: nn.Module, rule: Windows | Border, batch: SequenceBatch) -> None:
    """Raise if the steps have too few features to be padded or to fill one window."""
    least, what = _least_size(rule)
    size = batch.feature_shape[-1]
    if isinstance(rule, Windows) and rule.may_read_nothing(size):
        least, what = max(least, rule.dilation), "fill a window"
    if size < least:
        must = f"have {counted(least, 'feature')} at least to {what}, for {describe(layer)}"
        raise complaint(SeqbatchValueError, "sequences", must, size)


_MAXIMA = (nn.MaxPool1d, nn.MaxPool2d)
_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.LPPool1d, nn.LPPool2d, *_MAXIMA)
# For each rule, the layers of one dimension and of two.
_LAYERS: tuple[tuple[_Rule, list[type[nn.Module]]], ...] = (
    (windows_of_convolution, [nn.Conv1d, nn.Conv2d]),
    (windows_of_maximum, [nn.MaxPool1d, nn.MaxPool2d]),
    (windows_of_mean, [nn.AvgPool1d, nn.AvgPool2d]),
    (partial(border_of, "circular"), [nn.CircularPad1d, nn.CircularPad2d]),
    (partial(border_of, "constant"), [nn.ConstantPad1d, nn.ConstantPad2d]),
    (partial(border_of, "reflect"), [nn.ReflectionPad1d, nn.ReflectionPad2d]),
    (partial(border_of, "replicate"), [nn.ReplicationPad1d, nn.ReplicationPad2d]),
)
for _rule, _kinds in _LAYERS:
    for _dimensions, _kind in enumerate(_kinds, 1):
        _register_over_steps(_kind, _rule, dimensions=_dimensions)
for _dimensions, _kind in enumerate(quantized_layers("Conv1d", "Conv2d"), 1):
    _register_over_steps(_kind, windows_of_convolution, _one_by_one, dimensions=_dimensions)
# By length, because the gradient of a window that is not picked would be 0 times NaN, and reach other sequences.
_register_over_steps(nn.LPPool1d, windows_of_power_mean, _by_length)
_register_over_steps(nn.LPPool2d, windows_of_power_mean, _by_length, dimensions=2)
register_features(nn.Conv1d, lambda layer: (layer.in_channels,))
for _kind in quantized_layers("Conv1d"):
    register_features(_kind, lambda layer: (layer.in_channels,))
