"""Encoders of containers: each layer in them by its own encoder, in order, with the states of recurrent ones.

An `nn.ModuleList`, which PyTorch cannot call, is run like an `nn.Sequential`.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.grammar import complaint, counted, describe, type_name
from seqbatch._encode import encode, encode_with_state
from seqbatch._encode.registry import (
    is_recurrent,
    register_empty_input,
    register_recurrent,
    register_rows_of_children,
    unsupported,
)
from seqbatch._encoders._graph_breaks import WHY_OUTSIDE_GRAPHS, cause_of
from seqbatch._encoders._layer_checks import keeps_forward, outside_graphs
from seqbatch._state import ContainerState
from seqbatch._torch import HOOKS, NOT_COMPILED, has_hooks, in_a_graph
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

# From the index of a layer in its container, that layer, and its input, to its output.
RunChild = Callable[[int, nn.Module, SequenceBatch], SequenceBatch]
_Container = nn.Sequential | nn.ModuleList
_KINDS: tuple[type[Any], ...] = (nn.Sequential, nn.ModuleList)


def _holds_state(layer: _Container) -> bool:
    return any(_recurrent(layer))


def _recurrent(layer: _Container) -> list[bool]:
    """Return for each layer in a container whether it keeps a state; raise if one has no encoder."""
    _refuse_own_forward(layer)
    return [is_recurrent(child) for child in layer]


def _refuse_own_forward(layer: _Container) -> None:
    """Raise if the layer has its own `forward`, because that may do anything with the layers in it."""
    if not any(isinstance(layer, kind) and keeps_forward(layer, kind) for kind in _KINDS):
        raise unsupported(layer, reason="it has a forward of its own")


def _run(layer: _Container, batch: SequenceBatch, state: ContainerState | None) -> tuple[SequenceBatch, ContainerState]:
    """Run the layers in a container one after another, from their initial states to the final ones."""
    recurrent = _recurrent(layer)
    states = states_of(layer, state, recurrent, batch.batch_size)
    return _run_in_order(layer, batch, run_from(states, recurrent)), ContainerState(tuple(states))


def run_from(states: list[Any], recurrent: list[bool]) -> RunChild:
    """Return the function that runs a layer from its state in `states`, and replaces that by its final state."""

    def run_child(i: int, child: nn.Module, current: SequenceBatch) -> SequenceBatch:
        if not recurrent[i]:
            return encode(child, current)
        current, states[i] = encode_with_state(child, current, states[i])
        return current

    return run_child


def _run_outputs(layer: _Container, batch: SequenceBatch) -> SequenceBatch:
    """Run the layers as `_run` from the initial states, when only the outputs are needed."""
    _recurrent(layer)
    return _run_in_order(layer, batch, lambda i, child, current: encode(child, current))


def _run_in_order(layer: _Container, batch: SequenceBatch, run_child: RunChild) -> SequenceBatch:
    results: list[SequenceBatch] = []

    def forward(values: Tensor) -> Tensor:
        current = batch.with_values(values)
        for i, child in enumerate(layer):
            current = run_child(i, child, current)
        results.append(current)
        return current.values

    values = call_as_itself(layer, forward, batch.values)
    return results[0].with_values(values)


for _kind in _KINDS:
    register_recurrent(_kind, when=_holds_state, outputs=_run_outputs)(_run)
    register_empty_input(_kind, lambda layer, batch: batch)  # because the layers in it handle it
    register_rows_of_children(_kind)


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
    if not in_a_graph() and state._sizes - {batch_size}:
        must = f"be of {counted(batch_size, 'sequence')}, as the batch"
        raise complaint(SeqbatchValueError, "state", must, state.batch_size)
    return list(state.states)


def call_as_itself(layer: nn.Module, forward: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Call a layer with another `forward`, so that its hooks and the global hooks run on the flat values.

    The caller's layer is not modified: a shallow copy is called, which shares parameters and layers, and whose hooks
    get the layer itself. While tracing, a layer without hooks needs only `forward`.
    """
    if in_a_graph() and not has_hooks(layer):
        return forward(values)
    result: Tensor = _call_shell_outside(layer, forward, values)
    return result


def _call_shell(layer: nn.Module, forward: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    # Not `copy.copy`, because it fails on a parametrized layer and copies the weights of a quantized one. Not the
    # `__new__` of the class, because that of a layer sharded by `fully_shard` creates another layer. Without the result
    # of `layer.compile`, because that would not call this forward.
    shell = object.__new__(type(layer))
    vars(shell).update(vars(layer), forward=forward, **NOT_COMPILED)
    for kind in HOOKS:
        hooks = getattr(layer, kind)
        vars(shell)[kind] = OrderedDict((key, partial(_call_hook, hook, layer, shell)) for key, hook in hooks.items())
    result: Tensor = shell(values)
    return result


_call_shell_outside: Any = outside_graphs(_call_shell, WHY_OUTSIDE_GRAPHS, cause_of)


def _call_hook(hook: Callable[..., Any], layer: nn.Module, shell: nn.Module, copied: nn.Module, *rest: Any) -> Any:
    """Call a hook with the layer in place of its copy; `shell` is bound so that the copy lives as long as its hooks."""
    return hook(layer, *rest)
