"""TwoWay: one layer forward and another backward, side by side."""

from typing import Any

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch, is_nothing
from seqbatch._checks.arguments import require_layer
from seqbatch._checks.grammar import complaint, describe
from seqbatch._encode.registry import is_recurrent
from seqbatch._encoders._hooked_call import run_with_hooks
from seqbatch._encoders.containers import register_container, run_child, states_of
from seqbatch._state import ContainerState
from seqbatch.errors import SeqbatchValueError
from seqbatch.layers._argument_checks import as_batch, refuse_own_forward


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
    (torch.Size([7, 7]), RNNState(2 sequences, 1 layer, 1 direction, size 3, torch.float32, cpu, requires_grad=True))
    """

    def __init__(self, forward_layer: nn.Module, backward_layer: nn.Module) -> None:
        super().__init__()
        self.forward_layer: nn.Module = _layer_of_one_direction("forward_layer", forward_layer)
        self.backward_layer: nn.Module = _layer_of_one_direction("backward_layer", backward_layer)

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
        return _run_both(self, as_batch(sequence), [False, False], [None, None])[0].values


def _layer_of_one_direction(subject: str, value: object) -> nn.Module:
    """Return the value if it is a layer of one direction, else raise."""
    layer = require_layer(subject, value)
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
        raise _unlike_outputs("lengths", backward.lengths, forward.lengths)
    found, wanted = tuple(backward.feature_shape), tuple(forward.feature_shape)
    if len(found) != len(wanted) or found[:-1] != wanted[:-1]:
        raise _unlike_outputs("features, but for the last,", found, wanted)


def _unlike_outputs(what: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> SeqbatchValueError:
    must = f"return the {what} that `layer.forward_layer` returns"
    return complaint(SeqbatchValueError, "layer.backward_layer", must, f"{found}, and there {wanted}")


def _are_recurrent(layer: TwoWay) -> list[bool]:
    """Return for each of the two layers whether it keeps a state."""
    refuse_own_forward(layer, TwoWay)
    return [is_recurrent(layer.forward_layer), is_recurrent(layer.backward_layer)]


def _run_both(
    layer: TwoWay, batch: SequenceBatch, with_state: list[bool], states: list[Any]
) -> tuple[SequenceBatch, tuple[Any, Any]]:
    """Run each layer, with a state or without, and join their outputs; return them and the final states."""
    forward, first = run_child(layer, "`forward_layer`", layer.forward_layer, batch, with_state[0], states[0])
    reverse = batch.reverse()
    backward, second = run_child(layer, "`backward_layer`", layer.backward_layer, reverse, with_state[1], states[1])
    if is_nothing(forward) or is_nothing(backward):
        return batch, (first, second)
    _require_alike(forward, backward)
    return forward.map(lambda one, other: torch.cat([one, other], -1), backward.reverse()), (first, second)


def _run_hooked(
    layer: TwoWay, batch: SequenceBatch, with_state: list[bool], states: list[Any]
) -> tuple[SequenceBatch, tuple[Any, Any]]:
    """Run as `_run_both`, with the hooks of the layer."""
    return run_with_hooks(layer, batch, lambda given: _run_both(layer, given, with_state, states))


def _run_two_way(layer: TwoWay, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, ContainerState]:
    with_state = _are_recurrent(layer)
    outputs, ends = _run_hooked(layer, batch, with_state, states_of(layer, state, with_state, batch.batch_size))
    return outputs, ContainerState(ends)


def _two_way_outputs(layer: TwoWay, batch: SequenceBatch) -> SequenceBatch:
    """Run the layers as `_run_two_way` from the initial states, when only the outputs are needed."""
    refuse_own_forward(layer, TwoWay)
    return _run_hooked(layer, batch, [False, False], [None, None])[0]


register_container(TwoWay, _run_two_way, keep_states=_are_recurrent, outputs=_two_way_outputs)
