"""Encoders of containers: each layer in them by its own encoder, in order, with the states of recurrent ones.

An `nn.ModuleList`, which PyTorch cannot call, is run like an `nn.Sequential`.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.grammar import complaint, counted, describe, type_name
from seqbatch._encode import encode, encode_with_state
from seqbatch._encode.registry import (
    is_recurrent,
    register_empty,
    register_recurrent,
    register_rows,
    takes_rows,
    unsupported,
)
from seqbatch._encoders._hooked_call import run_with_hooks
from seqbatch._encoders._layer_checks import keeps_forward
from seqbatch._state import ContainerState, batch_sizes_of
from seqbatch._torch import skipped_in_graphs
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

_Container = nn.Sequential | nn.ModuleList
_CONTAINER_TYPES: tuple[type[Any], ...] = (nn.Sequential, nn.ModuleList)


def _which_keep_states(layer: _Container) -> list[bool]:
    """Return for each layer in a container whether it keeps a state; raise if one has no encoder."""
    # A `forward` of its own may do anything with the layers in it.
    if not any(isinstance(layer, one) and keeps_forward(layer, one) for one in _CONTAINER_TYPES):
        raise unsupported(layer, reason="it has a forward of its own")
    return [is_recurrent(child) for child in layer]


def _run_container(
    layer: _Container, batch: SequenceBatch, state: ContainerState | None
) -> tuple[SequenceBatch, ContainerState]:
    """Run the layers in a container one after another, from their initial states to the final ones."""
    recurrent = _which_keep_states(layer)
    outputs, ends = _run_in_order(layer, batch, recurrent, states_of(layer, state, recurrent, batch.batch_size))
    return outputs, ContainerState(ends)


def _container_outputs(layer: _Container, batch: SequenceBatch) -> SequenceBatch:
    """Run the layers as `_run_container` from the initial states, when only the outputs are needed."""
    number = len(_which_keep_states(layer))
    return _run_in_order(layer, batch, [False] * number, [None] * number)[0]


def _run_in_order(
    layer: _Container, batch: SequenceBatch, with_state: list[bool], states: list[Any]
) -> tuple[SequenceBatch, tuple[Any, ...]]:
    def run(current: SequenceBatch) -> tuple[SequenceBatch, tuple[Any, ...]]:
        ends = []
        for i, (child, has_state, start) in enumerate(zip(layer, with_state, states, strict=True)):
            current, end = run_child(layer, f"layer {i}", child, current, has_state, start)
            ends.append(end)
        return current, tuple(ends)

    return run_with_hooks(layer, batch, run)


def run_child(
    layer: nn.Module, place: str, child: nn.Module, batch: SequenceBatch, with_state: bool, start: Any
) -> tuple[SequenceBatch, Any]:
    """Run a layer of a container by its own encoder; without a state the final one is None. Errors name its place."""
    try:
        return encode_with_state(child, batch, start) if with_state else (encode(child, batch), None)
    except Exception as error:
        _add_place(error, layer, place)
        raise


@skipped_in_graphs  # because PyTorch shows the line of the model
def _add_place(error: Exception, layer: nn.Module, place: str) -> None:
    error.add_note(f"as {place} of {type(layer).__name__}")


def register_container(
    layer_type: type[Any],
    run: Callable[[Any, SequenceBatch, Any], tuple[SequenceBatch, Any]],
    *,
    keep_states: Callable[[Any], list[bool]],
    outputs: Callable[[Any, SequenceBatch], SequenceBatch],
) -> None:
    """Register the encoder of a layer that runs others; `keep_states` returns for each whether it keeps a state."""
    register_recurrent(layer_type, when=lambda layer: any(keep_states(layer)), outputs=outputs)(run)
    register_empty(layer_type, lambda layer, batch: batch)  # because the layers in it handle it
    register_rows(layer_type, lambda layer: any(map(takes_rows, layer.children())))


for _container_type in _CONTAINER_TYPES:
    register_container(_container_type, _run_container, keep_states=_which_keep_states, outputs=_container_outputs)


def states_of(layer: nn.Module, state: object, recurrent: list[bool], batch_size: int) -> list[object]:
    """Return the state of each layer in the container, or raise."""
    if state is None:
        return [None] * len(recurrent)
    if not isinstance(state, ContainerState):
        raise complaint(SeqbatchTypeError, "state", f"be a ContainerState, for {describe(layer)}", type_name(state))
    holds = [part is not None for part in state.states]
    if holds != recurrent:
        wanted = [i for i, keeps in enumerate(recurrent) if keeps]
        must = f"hold {counted(len(recurrent), 'state')}, None but for the layers {wanted}"
        found = f"{counted(len(holds), 'state')}, not None for {[i for i, there in enumerate(holds) if there]}"
        raise complaint(SeqbatchValueError, "state.states", must, found)
    _require_batch_size(state, batch_size)
    return list(state.states)


@skipped_in_graphs  # because the comparison would specialize a graph, where the encoders of the layers check states
def _require_batch_size(state: ContainerState, batch_size: int) -> None:
    if batch_sizes_of(state) - {batch_size}:
        must = f"be of {counted(batch_size, 'sequence')}, as the batch"
        raise complaint(SeqbatchValueError, "state", must, state.batch_size)
