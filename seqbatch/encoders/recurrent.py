"""Encoders of nn.LSTM, nn.GRU and nn.RNN: what they mean, whatever engine runs them."""

from typing import Any

import torch
from torch import Tensor, nn

from seqbatch import engines
from seqbatch._checks import complaint, counted, describe, type_name
from seqbatch._kinds import is_nothing
from seqbatch._lengths import to_device
from seqbatch._registry import register_recurrent
from seqbatch.batch import SequenceBatch
from seqbatch.container_state import ContainerState
from seqbatch.encoders._layers import (
    autocasts,
    keeps_forward,
    quantized_layers,
    require_device,
    require_dtype,
    require_features,
    run_on_nothing,
)
from seqbatch.engines import Hidden
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError
from seqbatch.state import LSTMState, RNNState

# Modules and not RNNBase: the quantized layers, which PyTorch means to drop some day, are no subclasses of it.
_Recurrent = Any


def _register(layer_type: type[nn.Module], state_type: type[LSTMState] | type[RNNState]) -> None:
    @register_recurrent(layer_type)
    def _(layer: _Recurrent, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, LSTMState | RNNState]:
        if keeps_forward(layer, layer_type) and not is_nothing(batch):
            require_features(batch, (layer.input_size,), layer, exactly=True)
            require_dtype(batch, layer)
            require_device(batch, layer)
        sizes = _sizes(layer, state_type)
        if state is not None:
            _require_state(state, state_type, layer, batch, sizes)
        values, final = _run(layer, batch, None if state is None else _to_hidden(state), sizes)
        if state_type is LSTMState:
            return batch.with_values(values), LSTMState.from_torch((final[0], final[1]), layer)
        return batch.with_values(values), RNNState.from_torch(final[0], layer)


for _layer_type in (nn.LSTM, *quantized_layers("LSTM")):
    _register(_layer_type, LSTMState)
for _layer_type in (nn.GRU, nn.RNN, *quantized_layers("GRU")):
    _register(_layer_type, RNNState)


def _run(layer: _Recurrent, batch: SequenceBatch, hidden: Hidden | None, sizes: list[int]) -> tuple[Tensor, Hidden]:
    """Run the layer on the sequences that have a step, and leave the others their initial state."""
    lengths = batch._lengths
    running = lengths.running
    engine = engines.choose(layer, batch.values, running)
    if running is lengths and lengths.total:
        return engine(layer, batch.values, lengths, hidden)
    rows = _rows(layer)
    # A batch of none may come from an empty list, whose dtype and device say nothing.
    like = next(layer.parameters(), batch.values) if is_nothing(batch) else batch.values
    start = hidden or tuple(like.new_zeros(rows, batch.batch_size, size) for size in sizes)
    if not lengths.total:
        nothing = like.new_zeros(0, sizes[0] * (rows // layer.num_layers))
        return run_on_nothing(layer, nothing, batch), tuple(run_on_nothing(layer, part, batch) for part in start)
    alive = to_device(lengths.not_empty, batch.device)
    chosen = None if hidden is None else tuple(part.index_select(1, alive) for part in hidden)
    values, final = engine(layer, batch.values, running, chosen)
    ended = zip(start, final, strict=True)
    return values, tuple(old.to(new.dtype).index_copy(1, alive, new) for old, new in ended)


def _sizes(layer: _Recurrent, state_type: type) -> list[int]:
    """The last axis of each tensor of the state, which for the first is also the size of one direction's output."""
    size = getattr(layer, "proj_size", 0) or layer.hidden_size
    return [size, layer.hidden_size] if state_type is LSTMState else [size]


def _rows(layer: _Recurrent) -> int:
    """The first axis of each tensor of the state in PyTorch's layout."""
    rows: int = layer.num_layers * (2 if layer.bidirectional else 1)
    return rows


def _to_hidden(state: LSTMState | RNNState) -> Hidden:
    hidden = state.to_torch()
    return hidden if isinstance(hidden, tuple) else (hidden,)


def _require_state(state: object, state_type: type, layer: _Recurrent, batch: SequenceBatch, sizes: list[int]) -> None:
    """Raise unless the state is one of this layer for this batch."""
    name = state_type.__name__
    if not isinstance(state, state_type):
        remedy = f"For a state of PyTorch's layout call {name}.from_torch(hx, layer)."
        if isinstance(state, ContainerState):
            remedy = "Take that of the layer, state.states[i]."
        elif isinstance(state, (LSTMState, RNNState)):
            remedy = "It is that of another kind of layer."
        must = f"be an {name}, for {describe(layer)}"
        raise complaint(SeqbatchTypeError, "state", must, type_name(state), remedy)
    directions = 2 if layer.bidirectional else 1
    nothing = is_nothing(batch)
    for part, size in zip(("hidden", "cell"), sizes, strict=False):
        tensor: Tensor = getattr(state, part)
        for what, found, wanted in (
            ("shape", tuple(tensor.shape), (layer.num_layers, directions, batch.batch_size, size)),
            ("dtype", tensor.dtype, tensor.dtype if nothing or _cast_alike(tensor, batch) else batch.dtype),
            ("device", tensor.device, tensor.device if nothing else batch.device),
        ):
            if found != wanted:
                must = f"have {what} {wanted}, for {counted(batch.batch_size, 'sequence')} and {describe(layer)}"
                raise complaint(SeqbatchValueError, f"state.{part}", must, found)


def _cast_alike(state: Tensor, batch: SequenceBatch) -> bool:
    """Tell whether autocast gives a state and a batch of other dtypes the same one."""
    return autocasts(batch.device) and torch.float64 not in (state.dtype, batch.dtype)
