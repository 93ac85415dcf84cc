"""Encoders of layers that treat every step by itself: they run on the flat values, which have no padding."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.grammar import complaint, counted, describe
from seqbatch._checks.tracing import outside_graphs
from seqbatch._encode.registry import register_encoder
from seqbatch._encoders._graph_breaks import WHY_OUTSIDE_GRAPHS, cause_of
from seqbatch._encoders._hooked_call import call_as_itself
from seqbatch._encoders._layer_checks import (
    keeps_forward,
    quantized_layers,
    refusals_of,
    register_features,
    require_device,
    require_dtype,
    require_features,
    rounds_by_range,
)
from seqbatch._torch import has_known_values, hooks_before
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.AlphaDropout,
    nn.CELU,
    nn.Dropout,
    nn.ELU,
    nn.FeatureAlphaDropout,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)
_ALONG_AN_AXIS: tuple[type[nn.Module], ...] = (nn.GLU, nn.LogSoftmax, nn.Softmax, nn.Softmin)
# The call that does along the steps of each sequence what a layer does along an axis.
_OVER_STEPS: dict[type[nn.Module], str] = {
    nn.LogSoftmax: "batch.log_softmax()",
    nn.Softmax: "batch.softmax()",
    nn.Softmin: "batch.map(torch.neg).softmax()",
}
WITH_FEATURES: dict[type[nn.Module], str] = {
    nn.LayerNorm: "normalized_shape",
    nn.Linear: "in_features",
    nn.RMSNorm: "normalized_shape",
}


def register_stepwise(
    layer_type: type[nn.Module],
    check: Callable[[Any, SequenceBatch], None],
    call: Callable[[Any, SequenceBatch], SequenceBatch] | None = None,
    on_values: Callable[[nn.Module], Callable[[Tensor], Tensor]] = lambda layer: layer,
) -> None:
    """Register the encoder of a layer that is called as itself on the flat values, after `check`.

    `call` replaces the call of a layer with a stock `forward`, and `on_values` that of every other layer.
    """

    @register_encoder(layer_type, stepwise=True)
    def _(layer: nn.Module, batch: SequenceBatch) -> SequenceBatch:
        is_stock = keeps_forward(layer, layer_type)
        if is_stock:
            check(layer, batch)
        # A copy for a layer that may work in place, because the values are the caller's.
        given = batch.clone() if not is_stock or getattr(layer, "inplace", False) else batch
        with refusals_of(layer, batch) if is_stock else nullcontext():
            return call(layer, given) if call and is_stock else given.map(on_values(layer))


def _accept_any_input(layer: nn.Module, batch: SequenceBatch) -> None:
    """Check nothing, because PyTorch checks the input of an activation before it modifies anything."""


def _features_taken(layer: nn.Module) -> tuple[int, ...]:
    sizes = next(getattr(layer, name) for layer_type, name in WITH_FEATURES.items() if isinstance(layer, layer_type))
    return (sizes,) if isinstance(sizes, int) else tuple(sizes)


def _check_features(layer: nn.Module, batch: SequenceBatch) -> None:
    require_features(batch, _features_taken(layer), layer)
    require_device(batch, layer)
    if isinstance(layer, nn.Linear) or batch.dtype not in (torch.bfloat16, torch.float16):
        require_dtype(batch, layer)  # because norms take half precision with float32 weights too


def _check_tokens(layer: nn.Embedding, batch: SequenceBatch) -> None:
    if batch.dtype not in (torch.int32, torch.int64) and not hooks_before(layer):
        must = f"have dtype torch.int32 or torch.int64, for {describe(layer)}"
        raise complaint(SeqbatchTypeError, "sequences", must, batch.dtype)
    require_device(batch, layer)
    if has_known_values(batch.values) and not hooks_before(layer):
        wrong = (batch.values < 0) | (batch.values >= layer.num_embeddings)
        if wrong.any():
            row = int(wrong.nonzero()[0, 0])
            sequence = int(torch.searchsorted(batch.offsets, row, right=True)) - 1
            must = f"hold ids from 0 to {layer.num_embeddings - 1}, for {describe(layer)}"
            found = f"{batch.values[row].tolist()} at step {row - int(batch.offsets[sequence])}"
            raise complaint(SeqbatchValueError, f"sequences[{sequence}]", must, found)


def _check_axis(layer: Any, batch: SequenceBatch) -> None:
    """Raise if the axis that a layer works along is the steps."""
    axes = 1 + len(batch.feature_shape)
    if layer.dim is None or layer.dim in (0, -axes):
        remedy = "Pass dim=-1 for the last feature" if axes > 1 else "Such a sequence has no features"
        over_steps = next((call for layer_type, call in _OVER_STEPS.items() if isinstance(layer, layer_type)), None)
        remedy += f"; over the steps call {over_steps}." if over_steps else "."
        must = f"work along a feature, not along the steps of a sequence of {counted(axes, 'dimension')}"
        raise complaint(SeqbatchValueError, "layer", must, describe(layer), remedy)


def _register_quantized(layer_type: type[nn.Module]) -> None:
    """Register the encoder of a quantized `nn.Linear`, whose hooks run once, even if each sequence runs alone."""

    def run(layer: Any, batch: SequenceBatch) -> SequenceBatch:
        is_stock = keeps_forward(layer, layer_type)
        if is_stock:
            require_features(batch, (layer.in_features,), layer)

        def forward(values: Tensor) -> tuple[Tensor, None]:
            parts = values.split(batch.structure.without_empty.counts) if rounds_by_range(layer) else [values]
            results = [layer.forward(part) for part in parts]
            return torch.cat(results) if results else values.new_zeros(*values.shape[:-1], layer.out_features), None

        # A copy for a layer with its own `forward`, because that may modify the caller's values in place.
        given = batch.values if is_stock else batch.values.clone()
        with refusals_of(layer, batch) if is_stock else nullcontext():
            return batch.with_values(call_as_itself(layer, forward, given)[0])

    register_encoder(layer_type, stepwise=True)(outside_graphs(run, WHY_OUTSIDE_GRAPHS, cause_of))


for _kind in ELEMENTWISE:
    register_stepwise(_kind, _accept_any_input)
for _kind in quantized_layers("Linear"):
    _register_quantized(_kind)
    register_features(_kind, lambda layer: (layer.in_features,))
for _kind in WITH_FEATURES:
    register_stepwise(_kind, _check_features)
    register_features(_kind, _features_taken)
for _kind in _ALONG_AN_AXIS:
    register_stepwise(_kind, _check_axis)
register_stepwise(nn.Embedding, _check_tokens)
register_features(nn.Embedding, lambda layer: (), torch.int64)
