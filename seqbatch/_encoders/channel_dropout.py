"""Encoders of nn.Dropout1d and nn.Dropout2d, which drop a channel of a sequence at all its steps.

PyTorch draws once for each channel of each sample, and here a sequence is a sample. Steps have `(channels,)` or
`(channels, features)`. Hooks see the flat values.
"""

from typing import Any

from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.grammar import complaint, describe
from seqbatch._encode.registry import register_encoder, unsupported
from seqbatch._encoders._hooked_call import call_as_itself
from seqbatch._encoders._layer_checks import keeps_forward, refusals_of
from seqbatch.errors import SeqbatchValueError


def _register_channel_dropout(layer_type: type[nn.Module], features: str, dimensions: int) -> None:
    @register_encoder(layer_type, stepwise=True)
    def _(layer: Any, batch: SequenceBatch) -> SequenceBatch:
        if not keeps_forward(layer, layer_type):
            raise unsupported(layer, reason="it has a forward of its own")
        if len(batch.feature_shape) != dimensions:
            must = f"have features {features}, for {describe(layer)}"
            raise complaint(SeqbatchValueError, "sequences", must, tuple(batch.feature_shape))

        def forward(values: Tensor) -> tuple[Tensor, None]:
            if not layer.training:
                return values, None
            ones = values.new_ones(batch.batch_size, values.shape[1], *(1 for _ in range(dimensions)))
            masks: Tensor = layer.forward(ones).squeeze(-1)
            return values * masks.index_select(0, batch.segment_ids), None

        with refusals_of(layer, batch):
            return batch.with_values(call_as_itself(layer, forward, batch.values)[0])


_register_channel_dropout(nn.Dropout1d, "(channels,)", 1)
_register_channel_dropout(nn.Dropout2d, "(channels, features)", 2)
