"""Encoders of nn.LSTM, nn.GRU and nn.RNN: check the call, run it by an engine, and build the state."""

from typing import Any

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._encode.registry import register_recurrent
from seqbatch._encoders._layer_checks import keeps_forward, quantized_layers
from seqbatch._encoders._recurrent_checks import StateType, form_of, require_recurrent_input, require_state
from seqbatch._encoders._recurrent_operators import run_by_operators
from seqbatch._encoders._recurrent_runs import run_by_engine
from seqbatch._engines import Hidden
from seqbatch._state import LSTMState, RNNState
from seqbatch._torch import autocasts, in_a_graph

# Modules and not RNNBase, because the quantized layers are not subclasses of it.
_Recurrent = Any


def register_recurrent_layer(layer_type: type[nn.Module], state_type: StateType) -> None:
    """Register the encoder of a type of recurrent layer, with and without the state."""
    remedy = f"For a state of PyTorch's layout call {state_type.__name__}.from_torch(hx, layer)."

    def run_values(layer: _Recurrent, batch: SequenceBatch, state: Any) -> tuple[Tensor, Hidden]:
        is_kept = keeps_forward(layer, layer_type)
        if is_kept:
            require_recurrent_input(batch, layer)
        form = form_of(layer, state_type, remedy)
        hidden = require_state(state, form, layer, batch)
        # While tracing, the engines run inside operators, because they read the values of the lengths.
        run_checked = run_by_operators if in_a_graph() else run_by_engine
        values, final = run_checked(layer, batch, hidden, form)
        if is_kept and autocasts(batch.device):
            start = hidden[0].dtype if hidden else batch.dtype
            return _as_alone(layer, values, start), tuple(_as_alone(layer, part, start) for part in final)
        return values, final

    def run_outputs(layer: _Recurrent, batch: SequenceBatch) -> SequenceBatch:
        return batch.with_values(run_values(layer, batch, None)[0])

    @register_recurrent(layer_type, outputs=run_outputs)
    def _(layer: _Recurrent, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, LSTMState | RNNState]:
        values, final = run_values(layer, batch, state)
        if state_type is LSTMState:
            return batch.with_values(values), LSTMState.from_torch((final[0], final[1]), layer)
        return batch.with_values(values), RNNState.from_torch(final[0], layer)


def _as_alone(layer: _Recurrent, result: Tensor, start: torch.dtype) -> Tensor:
    """Convert a result to the dtype that one sequence alone has under autocast; on the CPU packed ones may differ.

    There PyTorch rounds the results of an LSTM and an RNN, and adds those of a GRU to its initial state.
    """
    if not result.is_cpu or result.dtype is torch.float64 or not isinstance(layer, nn.RNNBase):
        return result
    dtype = torch.get_autocast_dtype("cpu")
    return result.to(torch.promote_types(dtype, start) if isinstance(layer, nn.GRU) else dtype)


for _layer_type in (nn.LSTM, *quantized_layers("LSTM")):
    register_recurrent_layer(_layer_type, LSTMState)
for _layer_type in (nn.GRU, nn.RNN, *quantized_layers("GRU")):
    register_recurrent_layer(_layer_type, RNNState)
