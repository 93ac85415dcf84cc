"""Encoders of layers that treat every step by itself: they run on the flat values, which have no padding."""

from typing import Any

import torch
from torch import nn

from seqbatch._checks import complaint
from seqbatch._registry import register_encoder
from seqbatch.batch import SequenceBatch
from seqbatch.encoders._layers import describe, is_plain, require_features, require_like_weights
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

_ELEMENTWISE: tuple[type[nn.Module], ...] = (
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
_quantized = getattr(torch.ao.nn.quantized, "dynamic", None)


def _each_step(layer: nn.Module, batch: SequenceBatch) -> SequenceBatch:
    """Call the layer as itself on the flat values; one that works in place gets a copy, for they are the caller's."""
    if getattr(layer, "inplace", False):
        batch = batch.clone()
    return batch.map(layer)


for _kind in (*_ELEMENTWISE, getattr(_quantized, "Linear", nn.Linear)):
    register_encoder(_kind)(_each_step)


@register_encoder(nn.Linear)
def _(layer: nn.Linear, batch: SequenceBatch) -> SequenceBatch:
    if is_plain(layer, nn.Linear):
        require_features(batch, (layer.in_features,), layer)
        require_like_weights(batch, layer)
    return _each_step(layer, batch)


@register_encoder(nn.LayerNorm)
def _(layer: nn.LayerNorm, batch: SequenceBatch) -> SequenceBatch:
    if is_plain(layer, nn.LayerNorm):
        require_features(batch, tuple(layer.normalized_shape), layer)
        require_like_weights(batch, layer)
    return _each_step(layer, batch)


@register_encoder(nn.RMSNorm)
def _(layer: nn.RMSNorm, batch: SequenceBatch) -> SequenceBatch:
    if is_plain(layer, nn.RMSNorm):
        require_features(batch, tuple(layer.normalized_shape), layer)
        require_like_weights(batch, layer)
    return _each_step(layer, batch)


@register_encoder(nn.Embedding)
def _(layer: nn.Embedding, batch: SequenceBatch) -> SequenceBatch:
    if is_plain(layer, nn.Embedding) and batch.dtype not in (torch.int32, torch.int64):
        must = f"have dtype torch.int32 or torch.int64, for {describe(layer)}"
        raise complaint(SeqbatchTypeError, "sequences", must, batch.dtype)
    return _each_step(layer, batch)


def _along_an_axis(layer: Any, batch: SequenceBatch) -> SequenceBatch:
    """Run a layer that works along an axis, unless that is the steps."""
    axes = 1 + len(batch.feature_shape)
    if layer.dim is None or layer.dim in (0, -axes):
        remedy = "Give dim=-1 for the last feature; for a softmax over the steps call batch.softmax()."
        must = f"work along a feature of sequences with {axes} axes, not along their steps"
        raise complaint(SeqbatchValueError, "layer", must, describe(layer), remedy)
    return _each_step(layer, batch)


for _kind in _ALONG_AN_AXIS:
    register_encoder(_kind)(_along_an_axis)
