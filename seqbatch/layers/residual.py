"""Residual: adds the input of a layer to its output."""

from typing import Any

from torch import Tensor, nn

from seqbatch._batch import SequenceBatch, is_nothing
from seqbatch._checks.arguments import require_layer
from seqbatch._checks.grammar import complaint, describe
from seqbatch._encode import encode
from seqbatch._encode.registry import is_recurrent
from seqbatch._encoders._hooked_call import run_with_hooks
from seqbatch._encoders.containers import register_container, run_child
from seqbatch.errors import SeqbatchValueError
from seqbatch.layers._argument_checks import as_batch, refuse_own_forward


class Residual(nn.Module):
    """Adds the input of a layer to its output: `x + encode(layer, x)`.

    The layer must keep lengths and features. If it keeps a state, so does this: `encode_with_state` takes and returns
    the state of the layer.

    Args:
        layer: any layer that has an encoder.

    Raises:
        SeqbatchTypeError: `layer` is not an `nn.Module`.

    Source: He et al., 2016, Deep Residual Learning for Image Recognition.

    >>> xs = [torch.randn(10, 5), torch.randn(7, 5)]
    >>> outputs, state = encode_with_state(Residual(nn.LSTM(5, 5)), xs)
    >>> outputs[1].shape, state
    (torch.Size([7, 5]), LSTMState(2 sequences, 1 layer, 1 direction, size 5, torch.float32, cpu, requires_grad=True))
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: nn.Module = require_layer("layer", layer)

    def forward(self, sequence: Tensor) -> Tensor:
        """Run on one sequence, from the state that the layer starts from.

        Args:
            sequence: `(steps, *features)`.

        Returns:
            `(steps, *features)`, through which gradients flow.

        Raises:
            SeqbatchTypeError: it is not a Tensor, or of a dtype that the layer does not take.
            SeqbatchValueError: the layer does not take it, or changes lengths or features.
            UnsupportedLayerError: no encoder handles the layer.
        """
        batch = as_batch(sequence)
        return _add_input(self, batch, encode(self.layer, batch))


def _add_input(layer: Residual, batch: SequenceBatch, outputs: SequenceBatch) -> Tensor:
    """Add the output of the inner layer to its input, or raise."""
    if is_nothing(batch):
        return outputs.values
    features = tuple(outputs.feature_shape), tuple(batch.feature_shape)
    lengths = (0, 0) if outputs.structure is batch.structure else (outputs.lengths, batch.lengths)
    for what, (found, wanted) in (("lengths", lengths), ("features", features)):
        if found != wanted:
            must = f"keep the {what} of its input, for a residual connection"
            remedy = f"It is {describe(layer.layer)}."
            raise complaint(SeqbatchValueError, "layer.layer", must, f"{found} from {wanted}", remedy)
    return batch.values + outputs.values


def _is_recurrent(layer: Residual) -> list[bool]:
    refuse_own_forward(layer, Residual)
    return [is_recurrent(layer.layer)]


def _run_residual(
    layer: Residual, batch: SequenceBatch, state: Any, with_state: bool = True
) -> tuple[SequenceBatch, Any]:
    refuse_own_forward(layer, Residual)

    def run(given: SequenceBatch) -> tuple[SequenceBatch, Any]:
        outputs, end = run_child(layer, "`layer`", layer.layer, given, with_state, state)
        return given.with_values(_add_input(layer, given, outputs)), end

    return run_with_hooks(layer, batch, run)


def _residual_outputs(layer: Residual, batch: SequenceBatch) -> SequenceBatch:
    """Run the layer when only the outputs are needed; it need not keep a state."""
    return _run_residual(layer, batch, None, with_state=False)[0]


register_container(Residual, _run_residual, keep_states=_is_recurrent, outputs=_residual_outputs)
