"""Encoders of nn.LSTM, nn.GRU and nn.RNN, whatever engine runs them."""

from typing import Any

import torch
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._encode.registry import register_recurrent
from seqbatch._encoders._layer_checks import autocasts, keeps_forward, quantized_layers
from seqbatch._encoders._recurrent_calls import Form, StateType, require_input, require_state, run_by_engine, sizes_of
from seqbatch._encoders._recurrent_operators import run_in_graph
from seqbatch._state import LSTMState, RNNState
from seqbatch._torch import in_a_graph

# Modules and not RNNBase, because the quantized layers are not subclasses of it.
_Recurrent = Any


def _register(layer_type: type[nn.Module], state_type: StateType) -> None:
    def run(layer: _Recurrent, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, LSTMState | RNNState]:
        if keeps_forward(layer, layer_type):
            require_input(batch, layer)
        form = _form_of(layer, state_type)
        hidden = require_state(state, form, layer, batch)
        way = run_in_graph if in_a_graph() else run_by_engine
        values, final = way(layer, batch, hidden, form)
        if keeps_forward(layer, layer_type) and autocasts(batch.device):
            start = hidden[0].dtype if hidden else batch.dtype
            values = _as_alone(layer, values, start)
            final = tuple(_as_alone(layer, part, start) for part in final)
        if state_type is LSTMState:
            return batch.with_values(values), LSTMState.from_torch((final[0], final[1]), layer)
        return batch.with_values(values), RNNState.from_torch(final[0], layer)

    register_recurrent(layer_type)(run)


def _as_alone(layer: _Recurrent, result: Tensor, start: torch.dtype) -> Tensor:
    """Convert a result to the dtype that one sequence alone has under autocast; on the CPU packed ones may differ.

    There PyTorch rounds the results of an LSTM and an RNN, and adds those of a GRU to its initial state.
    """
    if not result.is_cpu or result.dtype is torch.float64 or not isinstance(layer, nn.RNNBase):
        return result
    dtype = torch.get_autocast_dtype("cpu")
    return result.to(torch.promote_types(dtype, start) if isinstance(layer, nn.GRU) else dtype)


def _form_of(layer: _Recurrent, state_type: StateType) -> Form:
    remedy = f"For a state of PyTorch's layout call {state_type.__name__}.from_torch(hx, layer)."
    directions = 2 if layer.bidirectional else 1
    return Form(state_type, layer.num_layers, directions, remedy, sizes_of(layer, state_type))


for _layer_type in (nn.LSTM, *quantized_layers("LSTM")):
    _register(_layer_type, LSTMState)
for _layer_type in (nn.GRU, nn.RNN, *quantized_layers("GRU")):
    _register(_layer_type, RNNState)
