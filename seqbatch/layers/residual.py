"""Residual: adds what goes into a layer to what comes out of it."""

from typing import Any

from torch import Tensor, nn

from seqbatch._checks import complaint, describe
from seqbatch._kinds import is_nothing
from seqbatch._registry import is_recurrent, register_recurrent
from seqbatch.batch import SequenceBatch
from seqbatch.encode import encode, encode_with_state
from seqbatch.encoders.container import call_as_itself
from seqbatch.errors import SeqbatchValueError
from seqbatch.layers._layers import as_batch, module, refuse_own_forward


class Residual(nn.Module):
    """Adds what goes into a layer to what comes out of it: `x + encode(layer, x)`.

    The layer must keep lengths and features. If it keeps a state, so does this: `encode_with_state` takes and gives
    that of the layer.

    Args:
        layer: any layer that has an encoder.

    Raises:
        SeqbatchTypeError: it is no `nn.Module`.

    Source: He et al., 2016, Deep Residual Learning for Image Recognition.

    >>> xs = [torch.randn(10, 5), torch.randn(7, 5)]
    >>> outputs, state = encode_with_state(Residual(nn.LSTM(5, 5)), xs)
    >>> outputs[1].shape, state
    (torch.Size([7, 5]), LSTMState(2 sequences, 1 layer, 1 direction, size 5+5, torch.float32, cpu))
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: nn.Module = module("layer", layer)

    def forward(self, sequence: Tensor) -> Tensor:
        """Run on one sequence, from the state that the layer starts from.

        Args:
            sequence: `(steps, *features)`.

        Returns:
            `(steps, *features)`, through which gradients flow.

        Raises:
            SeqbatchTypeError: it is no Tensor, or of a dtype that the layer does not take.
            SeqbatchValueError: it is nothing that the layer takes, or the layer changes lengths or features.
            UnsupportedLayerError: no encoder handles the layer.
        """
        return self._run(as_batch(sequence), None)[0]

    def _run(self, batch: SequenceBatch, state: Any) -> tuple[Tensor, Any]:
        if is_recurrent(self.layer):
            outputs, state = encode_with_state(self.layer, batch, state)
        else:
            outputs = encode(self.layer, batch)
        if is_nothing(batch):
            return batch.values, state
        features = tuple(outputs.feature_shape), tuple(batch.feature_shape)
        lengths = (0, 0) if outputs._lengths is batch._lengths else (outputs.lengths, batch.lengths)
        for what, (found, wanted) in (("lengths", lengths), ("features", features)):
            if found != wanted:
                must = f"keep the {what} of its input, for a residual connection"
                remedy = f"It is {describe(self.layer)}."
                raise complaint(SeqbatchValueError, "layer.layer", must, f"{found} from {wanted}", remedy)
        return batch.values + outputs.values, state


def _holds_state(layer: Residual) -> bool:
    refuse_own_forward(layer, Residual)
    return is_recurrent(layer.layer)


@register_recurrent(Residual, when=_holds_state)
def _(layer: Residual, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, Any]:
    refuse_own_forward(layer, Residual)
    states: list[Any] = []

    def forward(values: Tensor) -> Tensor:
        values, end = layer._run(batch.with_values(values), state)
        states.append(end)
        return values

    values = call_as_itself(layer, forward, batch.values)
    return batch.with_values(values), states[0]
