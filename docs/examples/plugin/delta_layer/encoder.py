"""The encoder of Delta: one call for all sequences, with a mask of where each starts."""

from delta_layer import Delta
from seqbatch import SequenceBatch, register_encoder


@register_encoder(Delta)
def _(layer: Delta, batch: SequenceBatch) -> SequenceBatch:
    starts = batch.positions == 0
    return batch.map(lambda steps: layer(steps, starts))
