"""Shortcuts: functions that run layers of one type faster than their encoder, when nothing about a call is unusual."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.compiler import is_compiling

from seqbatch._batch import SequenceBatch

# From a layer, its input and a state to a batch and a state, or None to let the encoder run the layer.
Shortcut = Callable[[nn.Module, object, Any], tuple[SequenceBatch, Any] | None]

# By type of layer, not its subclasses.
_shortcuts: dict[type, Shortcut] = {}


def register_shortcut(layer_type: type[nn.Module], run: Shortcut) -> None:
    """Register a shortcut for layers of this very type; it must return what their encoder returns, or None."""
    _shortcuts[layer_type] = run


def remove_shortcut(layer_type: type[nn.Module]) -> None:
    """Remove the shortcut of a type, because another encoder is registered for it."""
    _shortcuts.pop(layer_type, None)


def run_shortcut(layer: nn.Module, sequences: object, state: Any) -> tuple[SequenceBatch, Any] | None:
    """Run a layer by its shortcut, or return None if it has none, or the shortcut leaves the call to the encoder."""
    if is_compiling():  # because it cannot be traced
        return None
    run = _shortcuts.get(type(layer))
    return None if run is None else run(layer, sequences, state)
