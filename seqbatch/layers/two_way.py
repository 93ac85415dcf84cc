"""TwoWay: one layer forward and another backward, side by side."""

from typing import Any

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch, is_nothing
from seqbatch._checks.grammar import complaint, describe
from seqbatch._encode import encode
from seqbatch._encode.registry import is_recurrent, register_empty_input, register_recurrent, register_rows_of_children
from seqbatch._encoders.containers import RunChild, call_as_itself, run_from, states_of
from seqbatch._state import ContainerState
from seqbatch.errors import SeqbatchValueError
from seqbatch.layers._argument_checks import as_batch, module, refuse_own_forward


class TwoWay(nn.Module):
    """Runs one layer on the sequences and another on the reversed sequences, and joins the outputs.

    The output of the second layer is reversed back, and both are joined along the last feature. So each step holds what
    the first layer computed from all steps up to it, and what the second computed from all steps from the end to it.
    Both layers must return equal lengths. If a layer keeps a state, so does this: a ContainerState of both, with None
    for a layer without a state.

    Args:
        forward_layer: any layer that has an encoder; if recurrent, of one direction.
        backward_layer: the layer for the reversed sequences, under the same conditions.

    Raises:
        SeqbatchTypeError: one of them is not an `nn.Module`.
        SeqbatchValueError: one of them, or a layer in it, is bidirectional.

    Source: Schuster and Paliwal, 1997, Bidirectional Recurrent Neural Networks.

    >>> xs = [torch.randn(10, 5), torch.randn(7, 5)]
    >>> outputs, state = encode_with_state(TwoWay(nn.GRU(5, 3), nn.LSTM(5, 4)), xs)
    >>> outputs[1].shape, state.states[0]
    (torch.Size([7, 7]), RNNState(2 sequences, 1 layer, 1 direction, size 3, torch.float32, cpu))
    """

    def __init__(self, forward_layer: nn.Module, backward_layer: nn.Module) -> None:
        super().__init__()
        self.forward_layer: nn.Module = _one_way("forward_layer", forward_layer)
        self.backward_layer: nn.Module = _one_way("backward_layer", backward_layer)

    def forward(self, sequence: Tensor) -> Tensor:
        """Run on one sequence, from the states that the layers start from.

        Args:
            sequence: `(steps, *features)`.

        Returns:
            `(steps, *features)` of both layers, joined along the last axis; gradients flow.

        Raises:
            SeqbatchTypeError: it is not a Tensor, or of a dtype that a layer does not take.
            SeqbatchValueError: a layer does not take it, or the outputs cannot be joined.
            UnsupportedLayerError: no encoder handles a layer.
        """
        return self._run(as_batch(sequence), lambda i, layer, given: encode(layer, given)).values

    def _keep_states(self) -> list[bool]:
        return [is_recurrent(self.forward_layer), is_recurrent(self.backward_layer)]

    def _run(self, batch: SequenceBatch, run_layer: RunChild) -> SequenceBatch:
        """Run both layers by a function, and join their outputs."""
        results = [run_layer(0, self.forward_layer, batch), run_layer(1, self.backward_layer, batch.reverse())]
        if any(map(is_nothing, results)):
            return batch
        _require_alike(*results)
        return results[0].map(lambda one, other: torch.cat([one, other], -1), results[1].reverse())


def _one_way(subject: str, value: object) -> nn.Module:
    """Return the value if it is a layer of one direction, else raise."""
    layer = module(subject, value)
    for part in layer.modules():
        if getattr(part, "bidirectional", False):
            remedy = "It would run in both directions; pass two layers of one direction."
            raise complaint(SeqbatchValueError, subject, "be of one direction", describe(part), remedy)
    return layer


def _require_alike(forward: SequenceBatch, backward: SequenceBatch) -> None:
    """Raise unless the outputs of both layers can be joined along the last feature."""
    if not forward.feature_shape:
        must = "return steps of at least one feature dimension, along which they are joined"
        raise complaint(SeqbatchValueError, "layer.forward_layer", must, "features ()")
    if backward.structure is not forward.structure and backward.lengths != forward.lengths:
        raise _unlike("lengths", backward.lengths, forward.lengths)
    found, wanted = tuple(backward.feature_shape), tuple(forward.feature_shape)
    if len(found) != len(wanted) or found[:-1] != wanted[:-1]:
        raise _unlike("features, but for the last,", found, wanted)


def _unlike(what: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> SeqbatchValueError:
    must = f"return the {what} that `layer.forward_layer` returns"
    return complaint(SeqbatchValueError, "layer.backward_layer", must, f"{found}, and there {wanted}")


def _hold_states(layer: TwoWay) -> bool:
    refuse_own_forward(layer, TwoWay)
    return any(layer._keep_states())


def _run(layer: TwoWay, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, ContainerState]:
    refuse_own_forward(layer, TwoWay)
    keep_states = layer._keep_states()
    states = states_of(layer, state, keep_states, batch.batch_size)
    return _run_as_itself(layer, batch, run_from(states, keep_states)), ContainerState(tuple(states))


def _run_outputs(layer: TwoWay, batch: SequenceBatch) -> SequenceBatch:
    """Run the layers as `_run` from the initial states, when only the outputs are needed."""
    refuse_own_forward(layer, TwoWay)
    return _run_as_itself(layer, batch, lambda i, layer, given: encode(layer, given))


def _run_as_itself(layer: TwoWay, batch: SequenceBatch, run_layer: RunChild) -> SequenceBatch:
    results: list[SequenceBatch] = []

    def forward(values: Tensor) -> Tensor:
        results.append(layer._run(batch.with_values(values), run_layer))
        return results[0].values

    values = call_as_itself(layer, forward, batch.values)
    return results[0].with_values(values)


register_recurrent(TwoWay, when=_hold_states, outputs=_run_outputs)(_run)
register_empty_input(TwoWay, lambda layer, batch: batch)
register_rows_of_children(TwoWay)
