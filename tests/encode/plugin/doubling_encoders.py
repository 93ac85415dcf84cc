"""The encoder of the layer, registered when this is imported: by seqbatch, when it first meets the layer."""

from doubling_layers import Doubling  # type: ignore[import-not-found]  # there once it is installed

from seqbatch import SequenceBatch, register_encoder


@register_encoder(Doubling)
def _(layer: Doubling, batch: SequenceBatch) -> SequenceBatch:
    return batch.map(layer)
