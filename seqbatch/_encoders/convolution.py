"""Encoders of layers whose windows read several steps, convolution and pooling, and of layers that pad each sequence.

A sequence `(steps, channels)` gets what it would get alone, `layer(sequence.T[None])[0].T`. Its length changes by the
layer's own rule:

- `nn.Conv1d`, `nn.MaxPool1d`, `nn.AvgPool1d` and `nn.LPPool1d` return `(steps + left + right - span) / stride + 1`
  steps, rounded down. Here `span` is `dilation * (kernel_size - 1) + 1`, and `left` and `right` are the padding. With
  `ceil_mode` it is rounded up, but no window starts after the last step. A sequence too short for one window raises.
- Layers that pad return `steps + left + right` steps.
- An empty sequence stays empty, whatever the padding.

No window reads a step of another sequence. NaN or infinity in a sequence reaches the gradient of the weights as it does
alone, through a window that reads it. Then it may reach other elements of the kernel's gradient too, because windows
that are not picked count there with 0 times NaN.

A layer with hooks is called as itself, once: the hooks see all steps end to end, `(1, channels, total_steps)`. One with
its own `forward` is called once for each length, on all sequences of that length. So the result equals that of each
sequence alone, whatever the `forward` does with the steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

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
from seqbatch._torch import has_hooks_before
from seqbatch.errors import SeqbatchValueError

# From all steps end to end, `(1, channels, total_steps)`, to those of the outputs, and their lengths.
_Run = Callable[[Tensor], tuple[Tensor, Lengths]]
_Start = Callable[[nn.Module, SequenceBatch], _Run]


def _register_over_steps(
    layer_type: type[nn.Module], rule: Callable[[Any], Windows | Border], start: _Start | None = None
) -> None:
    """Register the encoder of a layer, by the `rule` of its windows or border; `start` replaces the long sequence."""

    @register_encoder(layer_type)
    @outside_graphs
    def _(layer: nn.Module, batch: SequenceBatch) -> SequenceBatch:
        if getattr(layer, "return_indices", False):
            must = "not return indices, because they would count the steps of the whole batch"
            raise complaint(SeqbatchValueError, "layer", must, f"{type(layer).__name__}(..., return_indices=True)")
        is_stock = keeps_forward(layer, layer_type)
        _require_steps_of_channels(layer, batch, is_stock)
        if not is_stock:
            return _call_on_all_steps(layer, batch, _by_length(layer, batch))
        drawn = rule(layer)
        if isinstance(drawn, Windows):
            require_options(layer, drawn)
        _require_enough_steps(layer, drawn, batch)
        with refusals_of(layer, batch):
            return _call_on_all_steps(layer, batch, start(layer, batch) if start else _laid_out(layer, batch, drawn))


def _call_on_all_steps(layer: nn.Module, batch: SequenceBatch, run: _Run) -> SequenceBatch:
    """Call the layer as itself on all steps end to end."""

    def forward(steps: Tensor) -> tuple[Tensor, Lengths]:
        if steps.shape[-1] != batch.total_steps:
            must = f"get all {counted(batch.total_steps, 'step')} from the hooks before it"
            raise complaint(SeqbatchValueError, "layer", must, steps.shape[-1])
        return run(steps)

    result, lengths = call_as_itself(layer, forward, batch.values.T[None])
    return SequenceBatch(result[0].T, lengths)


def _in_windows(layer: Any, batch: SequenceBatch, windows: Windows) -> _Run:
    """Run a layer on all sequences in one long sequence, or as a dense batch if their lengths are equal."""
    layout = batch.structure.plan(window_layout, windows, device=batch.device)
    lengths = batch.structure if layout.lengths is None else layout.lengths

    def run(steps: Tensor) -> tuple[Tensor, Lengths]:
        values = steps[0].T
        if layout.plans is None:
            dense = layer.forward(_channels_first(layer, values.unflatten(0, (-1, batch.max_length))))
            return dense.mT.flatten(0, 1).T[None], lengths
        lay, pick = layout.plans
        result = layer.forward(_channels_first(layer, rearrange(values, lay, _fill_of(layer))[None]))
        picked = rearrange(result[0].T.contiguous(), pick)
        if layout.corrections is not None:
            picked = picked * layout.corrections.to(picked.dtype)
        return picked.T[None], lengths

    return run


def _fill_of(layer: nn.Module) -> float:
    """Return the value between sequences, which the last window may read with `ceil_mode`."""
    return float("-inf") if isinstance(layer, nn.MaxPool1d) else 0


def _channels_first(layer: nn.Module, steps: Tensor) -> Tensor:
    """Convert `(batch, steps, channels)` to `(batch, channels, steps)`, a view if PyTorch is faster with one."""
    viewed = isinstance(layer, nn.AvgPool1d) or (isinstance(layer, nn.MaxPool1d) and steps.requires_grad)
    return steps.mT if viewed else steps.mT.contiguous()


def _in_borders(layer: Any, batch: SequenceBatch, border: Border) -> _Run:
    """Pad each sequence by one gather, with the value of the layer."""
    layout = batch.structure.plan(border_layout, border, device=batch.device)
    lengths = batch.structure if layout.lengths is None else layout.lengths
    fill = getattr(layer, "value", 0)
    return lambda steps: (rearrange(steps[0].T, layout.plan, fill).T[None], lengths)


def _laid_out(layer: nn.Module, batch: SequenceBatch, rule: Windows | Border) -> _Run:
    return _in_windows(layer, batch, rule) if isinstance(rule, Windows) else _in_borders(layer, batch, rule)


def _by_length(layer: nn.Module, batch: SequenceBatch) -> _Run:
    """Run a layer on all sequences of a length at once."""
    groups: dict[int, list[int]] = {}
    for i, count in enumerate(batch.structure.without_empty.counts):
        groups.setdefault(count, []).append(i)
    return _in_groups(layer, batch, [*groups.values()])


def _one_by_one(layer: nn.Module, batch: SequenceBatch) -> _Run:
    """Run a layer on each sequence alone, because one that quantizes its input mixes the sequences of a batch."""
    return _in_groups(layer, batch, [[i] for i in range(len(batch.structure.without_empty))])


def _in_groups(layer: nn.Module, batch: SequenceBatch, groups: list[list[int]]) -> _Run:
    """Run a layer on groups of sequences of equal length, whatever number of steps it returns."""
    counts = batch.structure.without_empty.counts

    def run(steps: Tensor) -> tuple[Tensor, Lengths]:
        if not counts:
            nothing = steps.new_zeros(1, getattr(layer, "out_channels", steps.shape[1]), 0)
            return run_on_nothing(layer, nothing, batch.with_values(steps[0].T)), batch.structure
        parts, results = steps.split(counts, -1), [steps] * len(counts)
        for chosen in groups:
            # A copy, even of one, because a layer's own `forward` may modify it in place.
            result = require_tensor("layer(sequence)", layer.forward(torch.cat([parts[i] for i in chosen])))
            for i, one in zip(chosen, result.split(1), strict=True):
                results[i] = one
        found = iter(results)
        lengths = tuple(next(found).shape[-1] if count else 0 for count in batch.lengths)
        return torch.cat(results, -1), batch.structure if lengths == batch.lengths else Lengths(lengths)

    return run


def _require_steps_of_channels(layer: Any, batch: SequenceBatch, is_stock: bool) -> None:
    """Raise unless the batch has the channels, the dtype and the device that the layer takes."""
    if is_stock and hasattr(layer, "in_channels"):
        require_features(batch, (layer.in_channels,), layer, exactly=True)
        require_dtype(batch, layer)
        require_device(batch, layer)
    if len(batch.feature_shape) != 1:
        must = f"have features (channels,), for {describe(layer)}"
        remedy = "For a padded Tensor call SequenceBatch.from_padded."
        if not batch.feature_shape:
            remedy = "Pass x.unsqueeze(-1) for one channel."
        raise complaint(SeqbatchValueError, "sequences", must, tuple(batch.feature_shape), remedy)
    if is_stock and isinstance(layer, _POOLS) and not (batch.dtype.is_floating_point or has_hooks_before(layer)):
        raise complaint(SeqbatchValueError, "sequences", f"be floating, for {describe(layer)}", batch.dtype)


def _require_enough_steps(layer: nn.Module, rule: Windows | Border, batch: SequenceBatch) -> None:
    """Raise if a sequence is too short to be padded or to fill one window."""
    border = rule.border if isinstance(rule, Windows) else rule
    least, what, remedy = border.least, "be padded", "Leave it out"
    if isinstance(rule, Windows) and rule.least > least:
        least, what, remedy = rule.least, "fill a window", "Pad it or leave it out"
    counts = batch.lengths
    if min(batch.structure.without_empty.counts, default=least) < least:
        i = next(i for i, count in enumerate(counts) if 0 < count < least)
        must = f"have {counted(least, 'step')} at least to {what}, for {describe(layer)}"
        raise complaint(SeqbatchValueError, f"sequences[{i}]", must, counts[i], f"{remedy}, by batch[indices].")


_POOLS = (nn.AvgPool1d, nn.LPPool1d, nn.MaxPool1d)
_register_over_steps(nn.Conv1d, windows_of_convolution)
register_features(nn.Conv1d, lambda layer: (layer.in_channels,))
for _kind in quantized_layers("Conv1d"):
    _register_over_steps(_kind, windows_of_convolution, _one_by_one)
    register_features(_kind, lambda layer: (layer.in_channels,))
_register_over_steps(nn.MaxPool1d, windows_of_maximum)
_register_over_steps(nn.AvgPool1d, windows_of_mean)
# By length, because the gradient of a window that is not picked would be 0 times NaN, and reach other sequences.
_register_over_steps(nn.LPPool1d, windows_of_power_mean, _by_length)
_register_over_steps(nn.CircularPad1d, partial(border_of, "circular"))
_register_over_steps(nn.ConstantPad1d, partial(border_of, "constant"))
_register_over_steps(nn.ReflectionPad1d, partial(border_of, "reflect"))
_register_over_steps(nn.ReplicationPad1d, partial(border_of, "replicate"))
