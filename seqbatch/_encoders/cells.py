"""Encoders of nn.LSTMCell, nn.GRUCell and nn.RNNCell: a cell runs at each step on the sequences that have that step."""

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from seqbatch import _engines
from seqbatch._batch import SequenceBatch, is_nothing
from seqbatch._checks.grammar import complaint, counted, type_name
from seqbatch._checks.tracing import outside_graphs
from seqbatch._encode.registry import register_recurrent, register_rows
from seqbatch._encoders._layer_checks import QUANTIZED_CELLS, keeps_forward, quantized_layers
from seqbatch._encoders._recurrent_checks import (
    StateForm,
    StateType,
    require_recurrent_input,
    require_state,
    sizes_of,
)
from seqbatch._encoders._recurrent_runs import run_without_empty
from seqbatch._engines import Hidden
from seqbatch._ops.layouts import rearrange
from seqbatch._ops.time_steps import run_time_steps
from seqbatch._state import LSTMState, RNNState
from seqbatch._structure.plans import packed_plan
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import (
    autocasts,
    has_hooks,
    is_parametrized,
    is_transformed,
    parameters_of,
    set_parameters,
    takes_gradients_only,
)
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

# Modules and not RNNCellBase, because the quantized cells are not subclasses of it.
_Cell = Any
# From the rows of one step and the state of these sequences, empty for the initial step, to their next state.
_Step = Callable[[Tensor, Hidden], Hidden]

# Up to this many steps, calling the cell is faster than setting up an engine; measured for sizes of 16 to 512.
_FEW_STEPS = 4


def register_cell(cell_type: type[nn.Module], state_type: StateType) -> None:
    """Register the encoder of a type of cell, which has `input_size` and `hidden_size`, and checks both.

    The input of a subclass with its own `forward` is not checked, because it may take other features.
    """
    register_rows(cell_type)
    parts = "hidden[None, None], cell[None, None]" if state_type is LSTMState else "hidden[None, None]"
    remedy = f"For the state of a cell of PyTorch pass {state_type.__name__}({parts})."

    @register_recurrent(cell_type)
    @outside_graphs
    def _(cell: _Cell, batch: SequenceBatch, state: Any) -> tuple[SequenceBatch, LSTMState | RNNState]:
        if keeps_forward(cell, cell_type):
            require_recurrent_input(batch, cell)
        form = StateForm(state_type, 1, 1, remedy, sizes_of(cell, state_type))
        hidden = require_state(state, form, cell, batch)
        values, final = run_without_empty(cell, batch, hidden, form, partial(_run_cell_values, cell, form))
        if not (batch.total_steps or is_nothing(batch)) and autocasts(batch.device) and _is_stock_cell(cell):
            dtype = _step_of(cell, form)(batch.values, ())[0].dtype
            values, final = values.to(dtype), tuple(part.to(dtype) for part in final)
        return batch.with_values(values), state_type(*[part.unsqueeze(0) for part in final])


def _run_cell_values(
    cell: _Cell, form: StateForm, values: Tensor, lengths: Lengths, hidden: Hidden | None
) -> tuple[Tensor, Hidden]:
    """Run a cell by the kernels, by the engine of the equal layer if there are many steps, or step by step."""
    is_stock = _is_stock_cell(cell)
    if is_stock:
        mode, weights = _mode_of(cell), _weights_of(cell)
        if _engines.can_run_cell(mode, weights, values, cell.input_size, cell.hidden_size):
            return _engines.run_cell(mode, weights, values, lengths, hidden)
    if is_stock and (_needs_layer(values) if is_transformed() else _layer_is_faster(values, lengths)):
        layer = _as_layer(cell)
        engine = _engines.choose(_engines.describe_call(layer, values, rounds_by_range=False))
        return engine.run(layer, values, lengths, hidden)
    run_steps = _run_alone if isinstance(cell, QUANTIZED_CELLS) else _run_steps
    return run_steps(_step_of(cell, form), values, lengths, hidden)


def _run_alone(step: _Step, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run one sequence after another, because a quantized cell rounds by the range of its whole input."""
    outputs: list[Tensor] = []
    finals: list[Hidden] = []
    for i, sequence in enumerate(values.split(lengths.counts)):
        state: Hidden = () if hidden is None else tuple(part[0, i : i + 1] for part in hidden)
        for row in sequence.split(1):
            state = step(row, state)
            outputs.append(state[0])
        finals.append(state)
    return torch.cat(outputs), tuple(torch.cat(parts)[None] for parts in zip(*finals, strict=True))


def _run_steps(step: _Step, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    """Run step by step, each step of all sequences that have it at once."""
    plan = lengths.plan(packed_plan, device=values.device)

    def run(rows: Tensor, state: Hidden) -> tuple[Tensor, Hidden]:
        state = step(rows, state)
        return state[0], state

    start = () if hidden is None else tuple(part[0] for part in hidden)
    outputs, final = run_time_steps(run, rearrange(values, plan), lengths, start)
    return rearrange(torch.cat(outputs), plan.inverse), tuple(part[None] for part in final)


def _step_of(cell: _Cell, form: StateForm) -> _Step:
    """Return the function that calls the cell itself, and checks its result."""
    one = len(form.sizes) == 1
    must = "return a hidden state" if one else "return a pair (hidden, cell)"
    remedy = f"Register an encoder for {type(cell).__name__}."

    def step(rows: Tensor, state: Hidden) -> Hidden:
        # Without a state none is passed, because a cell may have its own initial state.
        result = cell(rows, state[0] if one else state) if state else cell(rows)
        parts = (result,) if one else result
        is_state = isinstance(parts, (tuple, list)) and len(parts) == len(form.sizes)
        if not (is_state and all(isinstance(part, Tensor) for part in parts)):
            raise complaint(SeqbatchTypeError, "layer", f"{must}, as its base does", type_name(result), remedy)
        for part, size in zip(parts, form.sizes, strict=True):
            if part.shape != (len(rows), size):
                shape = f"of shape ({len(rows)}, {size}) for {counted(len(rows), 'sequence')}"
                raise complaint(SeqbatchValueError, "layer", f"{must} {shape}", tuple(part.shape), remedy)
        return tuple(parts)

    return step


# PyTorch's cells, the layer that computes the same, and the names of their weights.
_LAYERS: dict[type[nn.Module], Any] = {nn.LSTMCell: nn.LSTM, nn.GRUCell: nn.GRU, nn.RNNCell: nn.RNN}
_CELL_FORWARDS = tuple(cell_type.forward for cell_type in _LAYERS)
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _is_stock_cell(cell: _Cell) -> bool:
    """Return True if a cell has a stock `forward` and no hooks: bypassing it cannot be observed."""
    held = parameters_of(cell)
    return (
        min(cell.input_size, cell.hidden_size) > 0  # because PyTorch's layers need it, and its cells do not
        and type(cell).forward in _CELL_FORWARDS
        and "forward" not in vars(cell)
        and vars(cell).get("nonlinearity", "tanh") in ("tanh", "relu")
        and not has_hooks(cell)
        and not is_parametrized(cell)
        and all(type(held.get(name)) in (nn.Parameter, Tensor) for name in _cell_weight_names(cell))
    )


def _cell_weight_names(cell: _Cell) -> tuple[str, ...]:
    return _WEIGHTS if cell.bias else _WEIGHTS[:2]


def _weights_of(cell: _Cell) -> list[Tensor]:
    held = parameters_of(cell)
    return [held[name] for name in _cell_weight_names(cell)]


def _mode_of(cell: _Cell) -> str:
    """Return the `nn.RNNBase.mode` of the layer that computes the same."""
    if isinstance(cell, nn.RNNCell):
        return "RNN_TANH" if cell.nonlinearity == "tanh" else "RNN_RELU"
    return "LSTM" if isinstance(cell, nn.LSTMCell) else "GRU"


def _needs_layer(values: Tensor) -> bool:
    """Return True if transforms other than reverse mode are active, because PyTorch has no `vmap` of nn.LSTMCell."""
    return not takes_gradients_only() and not autocasts(values.device)


def _layer_is_faster(values: Tensor, lengths: Lengths) -> bool:
    """Return True if an engine of layers is faster than calling the cell at each step, and rounds alike.

    In half precision a layer and its cell round at different places. On CUDA a layer would move the caller's weights to
    one buffer for cuDNN.
    """
    is_alike = values.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    return values.is_cpu and is_alike and lengths.longest > _FEW_STEPS


def _as_layer(cell: _Cell) -> nn.RNNBase:
    """Build the layer that runs the cell over sequences, with the cell's own weights."""
    layer_type = next(layer_type for cell_type, layer_type in _LAYERS.items() if isinstance(cell, cell_type))
    nonlinearity = getattr(cell, "nonlinearity", None)
    layer = copy.copy(_blank_layer(layer_type, cell.input_size, cell.hidden_size, bool(cell.bias), nonlinearity))
    # Not set as attributes, because in `torch.func.functional_call` a weight may not be an `nn.Parameter`.
    set_parameters(layer, {f"{name}_l0": getattr(cell, name) for name in _cell_weight_names(cell)})
    return layer


@lru_cache(maxsize=64)
def _blank_layer(
    layer_type: Any, input_size: int, hidden_size: int, bias: bool, nonlinearity: str | None
) -> nn.RNNBase:
    """Build a layer whose weights have no memory; cached, because building takes as long as two or three steps."""
    options: dict[str, Any] = {} if nonlinearity is None else {"nonlinearity": nonlinearity}
    # Without initializing weights, because `vmap` refuses their random numbers.
    blank_type: Any = type(layer_type.__name__, (layer_type,), {"reset_parameters": lambda layer: None})
    layer: nn.RNNBase = blank_type(input_size, hidden_size, bias=bias, device="meta", **options)
    return layer


_LSTM_CELLS: list[type[nn.Module]] = [nn.LSTMCell, *quantized_layers("LSTMCell")]
_OTHER_CELLS: list[type[nn.Module]] = [nn.GRUCell, nn.RNNCell, *quantized_layers("GRUCell", "RNNCell")]

for _cell_type in _LSTM_CELLS:
    register_cell(_cell_type, LSTMState)
for _cell_type in _OTHER_CELLS:
    register_cell(_cell_type, RNNState)
