"""Encoders of nn.Flatten and nn.Unflatten, of features and never of steps; and the error for nn.EmbeddingBag."""

from typing import Any

from torch import nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.grammar import complaint, counted, describe
from seqbatch._encode.registry import register_encoder
from seqbatch._encoders.pointwise import register_stepwise
from seqbatch.errors import SeqbatchValueError, UnsupportedLayerError


def _check_axes(layer: Any, batch: SequenceBatch) -> None:
    """Raise if a layer changes axis 0, which is the steps here and the samples in PyTorch."""
    name = "start_dim" if isinstance(layer, nn.Flatten) else "dim"
    axes = 1 + len(batch.feature_shape)
    if getattr(layer, name) in (0, -axes):
        must = f"change features, and not the steps of a sequence of {counted(axes, 'dimension')}"
        raise complaint(SeqbatchValueError, "layer", must, describe(layer), f"Pass {name}=1 for the first feature.")


register_stepwise(nn.Flatten, _check_axes)
register_stepwise(nn.Unflatten, _check_axes)


@register_encoder(nn.EmbeddingBag)
def _(layer: nn.EmbeddingBag, batch: SequenceBatch) -> SequenceBatch:
    remedy = f"Encode by nn.Embedding, and call {layer.mode}() on the SequenceBatch."
    if layer.padding_idx is not None:
        remedy = f"Leave out the steps of padding_idx, which are in no {layer.mode}. {remedy}"
    must = "return one step for each step of a sequence"
    found = f"{describe(layer)}, which returns one vector for all"
    raise complaint(UnsupportedLayerError, "layer", must, found, remedy)
