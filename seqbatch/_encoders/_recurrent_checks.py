"""Checks of the input and the state of recurrent layers and cells."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch, is_nothing
from seqbatch._checks.grammar import complaint, counted, describe, type_name
from seqbatch._encoders._layer_checks import (
    first_weight,
    require_device,
    require_dtype,
    require_features,
)
from seqbatch._engines import Hidden
from seqbatch._state import ContainerState, LSTMState, RNNState
from seqbatch._torch import autocasts
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

StateType = type[LSTMState] | type[RNNState]


class StateForm(NamedTuple):  # not an attrs class, because torch.compile cannot trace the __init__ of one
    """The form of a layer's state.

    Args:
        state_type: its class.
        num_layers: its first axis.
        num_directions: its second axis.
        remedy: how to convert a state of PyTorch's layout, for errors.
        sizes: the last axis of each tensor; that of the first is also the size of one direction's output.
    """

    state_type: StateType
    num_layers: int
    num_directions: int
    remedy: str
    sizes: list[int]


def form_of(layer: Any, state_type: StateType, remedy: str) -> StateForm:
    """Return the form of the state of a layer of PyTorch."""
    return StateForm(state_type, layer.num_layers, 2 if layer.bidirectional else 1, remedy, sizes_of(layer, state_type))


def sizes_of(layer: Any, state_type: StateType) -> list[int]:
    """Return the last axis of each tensor of the state of a layer or cell of PyTorch."""
    # Not by `getattr` with a default, because a missing attribute of a module is slow to look up, as in cells.
    projects = ("proj_size" in vars(layer) or hasattr(type(layer), "proj_size")) and layer.proj_size
    size = layer.proj_size if projects else layer.hidden_size
    return [size, layer.hidden_size] if state_type is LSTMState else [size]


def require_recurrent_input(batch: SequenceBatch, layer: Any) -> None:
    """Raise unless the batch has the features, dtype and device that the layer takes, or comes from an empty list."""
    values, weight = batch.values, first_weight(layer)
    # Fast path, because the full checks take longer than one step of one sequence.
    is_alike = weight is not None and values.dtype is weight.dtype and values.device == weight.device
    if is_alike and values.shape[1:] == (layer.input_size,):
        return
    if not is_nothing(batch):
        require_features(batch, (layer.input_size,), layer, exactly=True)
        require_dtype(batch, layer)
        require_device(batch, layer)


def require_state(state: object, form: StateForm, layer: nn.Module, batch: SequenceBatch) -> Hidden | None:
    """Return a state as engines take it if it fits the layer and the batch, else raise; None stays None."""
    if state is None:
        return None
    if not isinstance(state, form.state_type):
        name = form.state_type.__name__
        remedy = form.remedy
        if isinstance(state, ContainerState):
            remedy = "Take that of the layer, state.states[i]."
        elif isinstance(state, (LSTMState, RNNState)):
            remedy = "It is that of another type of layer."
        must = f"be an {name}, for {describe(layer)}"
        raise complaint(SeqbatchTypeError, "state", must, type_name(state), remedy)
    values, rows = batch.values, (form.num_layers, form.num_directions, batch.batch_size)
    for name, size in zip(("hidden", "cell"), form.sizes, strict=False):
        part: Tensor = getattr(state, name)
        is_alike = part.dtype is values.dtype and part.device == values.device
        if not is_alike or part.shape != (*rows, size):
            _require_matching_part(f"state.{name}", part, (*rows, size), layer, batch)
    hidden = state.to_torch()
    return hidden if isinstance(hidden, tuple) else (hidden,)


def _require_matching_part(
    subject: str, part: Tensor, shape: tuple[int, ...], layer: nn.Module, batch: SequenceBatch
) -> None:
    """Raise unless a part of a state has the shape, dtype and device that the layer takes with the batch."""
    nothing = is_nothing(batch)
    for what, found, wanted in (
        ("shape", tuple(part.shape), shape),
        ("dtype", part.dtype, part.dtype if nothing or _cast_alike(part, batch) else batch.dtype),
        ("device", part.device, part.device if nothing else batch.device),
    ):
        if found != wanted:
            must = f"have {what} {wanted}, for {counted(batch.batch_size, 'sequence')} and {describe(layer)}"
            raise complaint(SeqbatchValueError, subject, must, found)


def _cast_alike(state: Tensor, batch: SequenceBatch) -> bool:
    """Return True if autocast converts a state and a batch of other dtypes to the same dtype."""
    return autocasts(batch.device) and torch.float64 not in (state.dtype, batch.dtype)
