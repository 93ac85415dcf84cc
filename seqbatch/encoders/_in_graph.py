"""Recurrent layers in graphs: an operator for each kind, `seqbatch::lstm`, `seqbatch::gru` and `seqbatch::rnn`."""

import threading
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from seqbatch._lengths import Lengths
from seqbatch._operators import Function, Operator
from seqbatch._records import Tensors
from seqbatch.batch import SequenceBatch, is_nothing
from seqbatch.encoders._causes import WHY_OUTSIDE_GRAPHS, cause_of
from seqbatch.encoders._layers import autocasts, outside_graphs
from seqbatch.encoders._recurrent import Form, StateType, run_by_engine, sizes_of
from seqbatch.engines import Hidden, is_plain
from seqbatch.state import LSTMState, RNNState


def run_in_graph(layer: Any, batch: SequenceBatch, hidden: Hidden | None, form: Form) -> tuple[Tensor, Hidden]:
    """Run a layer as `run_by_engine`, by an operator.

    Dropout between layers is PyTorch's own, in the graph: a layer that has it is one call for each layer in it.
    """
    if is_nothing(batch) or not is_plain(layer):
        outside: tuple[Tensor, Hidden] = _run_outside(layer, batch, hidden, form)
        return outside
    values, weights, rows = batch.values, layer.all_weights, form.num_layers * form.num_directions
    hidden = hidden or tuple(values.new_zeros(rows, batch.batch_size, size) for size in form.sizes)
    if autocasts(batch.device) and torch.float64 not in (values.dtype, weights[0][0].dtype):
        dtype = torch.get_autocast_dtype(batch.device.type)
        values, hidden = values.to(dtype), tuple(part.to(dtype) for part in hidden)
        weights = [[part.to(dtype) for part in way] for way in weights]
    operator, *options = _OPERATORS[layer.mode]
    together = form.num_directions if layer.dropout and layer.training else rows
    finals = []
    for first in range(0, rows, together):
        if first:
            values = nn.functional.dropout(values, layer.dropout)
        now = slice(first, first + together)
        others = [*(part[now] for part in hidden), *chain.from_iterable(weights[now])]
        sizes = together // form.num_directions, layer.bidirectional
        values, *final = operator(values, batch._lengths.tensor, others, *sizes, *options)
        finals.append(final)
    return values, tuple(torch.cat(parts) for parts in zip(*finals, strict=True))


_run_outside: Any = outside_graphs(run_by_engine, WHY_OUTSIDE_GRAPHS, cause_of)


class _Bearer(nn.Module):
    """Lends a layer without weights those that the operator is given."""

    def __init__(self, layer: nn.RNNBase, state_type: StateType) -> None:
        super().__init__()
        self.layer = layer
        directions = 2 if layer.bidirectional else 1
        self.form = Form(state_type, layer.num_layers, directions, "", sizes_of(layer, state_type))

    def forward(self, values: Tensor, lengths: Lengths, hidden: Hidden) -> tuple[Tensor, Hidden]:
        return run_by_engine(self.layer, SequenceBatch._of(values, lengths), hidden, self.form)


class _Bearers(threading.local):
    """Those of a thread, by what the layers are: no other may lend its weights meanwhile."""

    def __init__(self) -> None:
        self.known: dict[tuple[object, ...], _Bearer] = {}


_bearers = _Bearers()


def _functions(layer_type: type[Any], state_type: StateType) -> tuple[Function, Function]:
    """Give what the operator of a kind of layer does, and what its results are like."""
    parts, gates = (2 if state_type is LSTMState else 1), {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[layer_type]

    def bearer_for(weights: list[Tensor], num_layers: int, bidirectional: bool, *nonlinearity: str) -> _Bearer:
        size, number = len(weights[0]) // gates, len(weights) // (num_layers * (2 if bidirectional else 1))
        projected = number in (3, 5)
        sizes = (weights[0].shape[1], size, num_layers, *nonlinearity)
        key = (layer_type, *sizes, number, bidirectional, weights[1].shape[1])
        if key not in _bearers.known:
            options: dict[str, Any] = {"bias": number > 3, "bidirectional": bidirectional, "device": "meta"}
            if projected:
                options["proj_size"] = weights[1].shape[1]
            _bearers.known[key] = _Bearer(layer_type(*sizes, **options), state_type)
        return _bearers.known[key]

    def function(values: Tensor, lengths: Lengths, others: list[Tensor], *options: Any) -> Tensors:
        hidden, weights = tuple(others[:parts]), others[parts:]
        bearer = bearer_for(weights, *options)
        named = dict(zip((name for name, _ in bearer.named_parameters()), weights, strict=True))
        output, final = functional_call(bearer, named, (values, lengths, hidden))
        return output, *final

    def like(
        values: Tensor, lengths: Tensor, others: list[Tensor], num_layers: int, bidirectional: bool, *_: Any
    ) -> Tensors:
        size = others[0].shape[2] * (2 if bidirectional else 1)
        return values.new_empty(values.shape[0], size), *(torch.empty_like(part) for part in others[:parts])

    return function, like


_ARGUMENTS = "Tensor[] others, int num_layers, bool bidirectional, "
_LSTM = Operator("lstm", _ARGUMENTS, 3, *_functions(nn.LSTM, LSTMState))
_GRU = Operator("gru", _ARGUMENTS, 2, *_functions(nn.GRU, RNNState))
_RNN = Operator("rnn", f"{_ARGUMENTS}str nonlinearity, ", 2, *_functions(nn.RNN, RNNState))
# By the mode of a layer, with what is not told by its sizes.
_OPERATORS: dict[str, tuple[Any, ...]] = {
    "LSTM": (_LSTM,),
    "GRU": (_GRU,),
    "RNN_TANH": (_RNN, "tanh"),
    "RNN_RELU": (_RNN, "relu"),
}
