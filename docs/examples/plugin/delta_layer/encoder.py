"""The encoder of Delta: one call for all sequences, with a mask of where each starts."""

import torch

from delta_layer import Delta
from seqbatch import SequenceBatch, register_encoder


@register_encoder(Delta)
def _(layer: Delta, batch: SequenceBatch) -> SequenceBatch:
    firsts = torch.tensor([length > 0 for length in batch.lengths], dtype=torch.bool, device=batch.device)
    starts = torch.zeros(batch.total_steps, dtype=torch.bool, device=batch.device)
    starts[batch.offsets[:-1][firsts]] = True
    return batch.map(lambda steps: layer(steps, starts))
