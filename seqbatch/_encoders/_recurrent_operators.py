"""Recurrent layers while tracing: an operator for each type, `seqbatch::lstm`, `seqbatch::gru` and `seqbatch::rnn`."""

import threading
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from seqbatch import _kernels
from seqbatch._batch import SequenceBatch, is_nothing
from seqbatch._checks.grammar import complaint
from seqbatch._checks.tracing import outside_graphs
from seqbatch._encoders._graph_breaks import WHY_OUTSIDE_GRAPHS, cause_of
from seqbatch._encoders._recurrent_checks import StateForm, StateType, form_of
from seqbatch._encoders._recurrent_runs import run_by_engine
from seqbatch._engines import Hidden, LayerForm, is_stock_recurrent, native
from seqbatch._ops.custom_operator import Gradients, Operator, Tensors
from seqbatch._state import LSTMState, RNNState
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import autocasts
from seqbatch.errors import SeqbatchValueError


def run_by_operators(layer: Any, batch: SequenceBatch, hidden: Hidden | None, form: StateForm) -> tuple[Tensor, Hidden]:
    """Run a layer as `run_by_engine`, but by operators, so that a graph calls an engine without tracing it.

    One operator runs all layers of a stack, with two exceptions. The kernels run one layer at a time, and dropout
    between layers is traced as PyTorch's own.
    """
    if is_nothing(batch) or not is_stock_recurrent(layer):
        outside: tuple[Tensor, Hidden] = _run_outside(layer, batch, hidden, form)
        return outside
    values, weights, rows = batch.values, layer.all_weights, form.num_layers * form.num_directions
    hidden = hidden or tuple(values.new_zeros(rows, batch.batch_size, size) for size in form.sizes)
    if autocasts(batch.device) and torch.float64 not in (values.dtype, weights[0][0].dtype):
        dtype = torch.get_autocast_dtype(batch.device.type)
        values, hidden = values.to(dtype), tuple(part.to(dtype) for part in hidden)
        weights = [[part.to(dtype) for part in direction] for direction in weights]
    operator, *options = _OPERATORS[layer.mode]
    layer_by_layer = _may_use_kernels(values) or (layer.dropout and layer.training)
    together = form.num_directions if layer_by_layer else rows
    finals = []
    for first in range(0, rows, together):
        if first and layer.training and layer.dropout:
            values = nn.functional.dropout(values, layer.dropout)
        now = slice(first, first + together)
        others = [*(part[now] for part in hidden), *chain.from_iterable(weights[now])]
        # Not while exporting, because an exported program is for inference. One flag for each tensor, because PyTorch
        # merges calls with equal arguments, even if one of them is detached.
        is_trained = torch.is_grad_enabled() and not torch.compiler.is_exporting()
        differentiable = [is_trained and part.requires_grad for part in (values, *others)]
        shape = together // form.num_directions, layer.bidirectional
        values, *final = operator(values, batch.structure.tensor, others, *shape, differentiable, *options)
        finals.append(final)
    return values, tuple(torch.cat(parts) for parts in zip(*finals, strict=True))


def _may_use_kernels(values: Tensor) -> bool:
    """Return True if kernels exist for this device and dtype; a graph may run where they are missing."""
    return values.device.type == "cpu" and values.dtype in native.DTYPES


_run_outside: Any = outside_graphs(run_by_engine, WHY_OUTSIDE_GRAPHS, cause_of)


class _WeightlessLayer(nn.Module):
    """A layer whose weights have no memory: it is called with the weights that the operator gets."""

    def __init__(self, layer: nn.RNNBase, state_type: StateType) -> None:
        super().__init__()
        self.layer, self.form = layer, form_of(layer, state_type, remedy="")

    def forward(self, values: Tensor, lengths: Lengths, hidden: Hidden) -> tuple[Tensor, Hidden]:
        return run_by_engine(self.layer, SequenceBatch(values, lengths), hidden, self.form)


# Holds the weightless layers of each thread, because a call replaces their weights.
_of_thread = threading.local()


class _OperatorCall(NamedTuple):
    """The arguments of an operator, without values and lengths.

    Args:
        mode: as `nn.RNNBase.mode`.
        start: the initial states, each `(num_layers * directions, batch, size)`.
        weights: those of the first layer and direction first.
        num_layers: 1 if the kernels run.
        directions: 1 or 2.
        keeps: True if the kernels save tensors for a backward pass.
    """

    mode: str
    start: list[Tensor]
    weights: list[Tensor]
    num_layers: int
    directions: int
    keeps: bool

    @property
    def size(self) -> int:
        """The size of the output of one direction."""
        return self.start[0].shape[2]

    @property
    def each(self) -> int:
        """The number of weights of one direction of one layer."""
        return len(self.weights) // (self.num_layers * self.directions)

    def form(self, lengths: Lengths) -> LayerForm:
        """Return the form of the layer, for the sequences that are not empty."""
        return LayerForm(self.mode, lengths.without_empty, self.directions, self.each)

    def shapes_of_saved(self, steps: int) -> list[tuple[int, ...]]:
        """Return the shapes of the tensors saved for the backward pass: outputs and gates."""
        kept, gates = steps if self.keeps else 0, native.SAVED[self.mode] * self.start[-1].shape[2]
        return [(kept, self.directions * self.size), (self.directions, kept, gates)]


class _RecurrentOperator:
    """The operator of a type of recurrent layer, and the functions that it consists of."""

    def __init__(self, layer_type: type[Any], state_type: StateType, more: str = "") -> None:
        self.layer_type, self.state_type = layer_type, state_type
        self.states, self.gates = (2 if state_type is LSTMState else 1), {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[layer_type]
        arguments = f"Tensor[] others, int num_layers, bool bidirectional, bool[] differentiable{more}"
        name = layer_type.__name__.lower()
        self.operator = Operator(name, arguments, 1 + self.states, self.run, self.fake, 2, self.backward)

    def run(self, values: Tensor, lengths: Lengths, *arguments: Any) -> Tensors:
        """Return outputs, final states, and the tensors that `backward` reads, zeros if the kernels do not run."""
        call = self._parse(values, *arguments)
        self._require_states(call, values, lengths)
        if not torch.is_grad_enabled() and self._kernels_can_run(call, values, lengths):
            tensors = [values, *call.weights, *_of_running(call.start, lengths)]
            output, *ends, gates = _kernels.forward(call.form(lengths), tensors, keep=call.keeps)
            # A copy, because callers may modify the output in place before the backward pass.
            kept = (output if call.keeps else output[:0]).clone()
            return output, *_of_all(ends, call.start, lengths), kept, gates
        layer = self._layer_for(call)
        named = dict(zip((name for name, _ in layer.named_parameters()), call.weights, strict=True))
        output, final = functional_call(layer, named, (values, lengths, tuple(call.start)))
        return output, *final, *map(values.new_zeros, call.shapes_of_saved(len(values)))

    def fake(self, values: Tensor, lengths: Tensor, *arguments: Any) -> Tensors:
        """Return empty tensors of the sizes and dtypes that `run` returns."""
        call, steps = self._parse(values, *arguments), values.shape[0]
        output = values.new_empty(steps, call.directions * call.size)
        return output, *map(torch.empty_like, call.start), *map(values.new_empty, call.shapes_of_saved(steps))

    def backward(self, gradients: Gradients, saved: list[Tensor], wanted: list[bool], *inputs: Any) -> Gradients | None:
        """Return the gradients of values, initial states and weights, or None if the kernels did not run."""
        values, lengths, *arguments = inputs
        call = self._parse(values, *arguments)
        shapes = call.shapes_of_saved(len(values))
        # Hooks of autograd may have changed what was saved.
        given = zip([*saved, *gradients], [*shapes, shapes[0], *(part.shape for part in call.start)], strict=True)
        if not (call.keeps and self._kernels_can_run(call, values, lengths, *given)):
            return None
        number, (of_output, *of_ends) = len(call.weights), gradients
        output, gates = saved
        tensors = [values, *call.weights, *_of_running(call.start, lengths)]
        of_results = [of_output, *_of_running(of_ends, lengths)]
        wanted = [wanted[0], *wanted[1 + self.states :], *wanted[1 : 1 + self.states]]
        of_values, *found = _kernels.backward(call.form(lengths), output, gates, tensors, of_results, wanted)
        # The state of an empty sequence passes through.
        pairs = zip(call.start, of_ends, strict=True)
        passed = [torch.zeros_like(start) if part is None else part for start, part in pairs]
        return of_values, *_of_all(found[number:], passed, lengths), *found[:number]

    def _parse(
        self,
        values: Tensor,
        others: list[Tensor],
        num_layers: int,
        bidirectional: bool,
        differentiable: list[bool],
        nonlinearity: str = "",
    ) -> _OperatorCall:
        mode = f"RNN_{nonlinearity.upper()}" if nonlinearity else self.layer_type.__name__
        start, weights, directions = others[: self.states], others[self.states :], 2 if bidirectional else 1
        keeps = any(differentiable) and num_layers == 1 and _may_use_kernels(values)
        return _OperatorCall(mode, start, weights, num_layers, directions, keeps)

    def _kernels_can_run(
        self, call: _OperatorCall, values: Tensor, lengths: Lengths, *more: tuple[Tensor | None, Sequence[int]]
    ) -> bool:
        """Return True if the kernels can run this: they must not read beyond the memory of a tensor.

        `more` are other tensors that they read, with their shapes.
        """
        if call.num_layers != 1:
            return False
        size, projection = self._sizes(call)
        of_weights = native.shapes_of_weights(call.mode, call.each, values.shape[1], size, projection) * call.directions
        of_start = self._shapes_of_states(call, lengths)
        tensors = [*call.weights, *call.start, *(part for part, _ in more if part is not None)]
        shapes = [*of_weights, *of_start, *(shape for part, shape in more if part is not None)]
        return (
            native.serves(values)
            and projection < size  # as PyTorch asks
            and lengths.total > 0
            and native.are_read_as(tensors, shapes, values.dtype)
        )

    def _sizes(self, call: _OperatorCall) -> tuple[int, int]:
        """Return the hidden size and the size of the projection, 0 without one, as the weights have them."""
        recurrent = call.weights[1]
        return recurrent.shape[0] // self.gates, recurrent.shape[1] if self.states == 2 and call.each % 2 else 0

    def _shapes_of_states(self, call: _OperatorCall, lengths: Lengths) -> list[tuple[int, ...]]:
        size, projection = self._sizes(call)
        rows = call.num_layers * call.directions
        return [(rows, len(lengths), one) for one in (projection or size, size)[: self.states]]

    def _require_states(self, call: _OperatorCall, values: Tensor, lengths: Lengths) -> None:
        """Raise unless the states have the shapes of the weights, because engines do not check what is in a graph."""
        for i, (part, shape) in enumerate(zip(call.start, self._shapes_of_states(call, lengths), strict=True)):
            found, wanted = (part.shape, part.dtype, part.device), (shape, values.dtype, values.device)
            if found != wanted:
                must = f"have shape {shape}, dtype {values.dtype} and be on {values.device}"
                got = f"{tuple(part.shape)}, {part.dtype} and {part.device}"
                raise complaint(SeqbatchValueError, f"others[{i}]", must, got)

    def _layer_for(self, call: _OperatorCall) -> _WeightlessLayer:
        options: dict[str, Any] = {"bias": call.each > 3, "bidirectional": call.directions == 2}
        if self.layer_type is nn.RNN:
            options["nonlinearity"] = call.mode.removeprefix("RNN_").lower()
        if call.each in (3, 5):
            options["proj_size"] = call.weights[1].shape[1]
        sizes = (call.weights[0].shape[1], len(call.weights[0]) // self.gates, call.num_layers)
        key = (self.layer_type, *sizes, *options.items())
        known: dict[tuple[object, ...], _WeightlessLayer] = vars(_of_thread).setdefault("layers", {})
        if key not in known:
            known[key] = _WeightlessLayer(self.layer_type(*sizes, **options, device="meta"), self.state_type)
        return known[key]


def _of_running(parts: Sequence[Any], lengths: Lengths) -> list[Any]:
    """Select the sequences that have a step in tensors `(rows, batch, size)`; None stays None."""
    if lengths.without_empty is lengths:
        return [*parts]
    return [None if part is None else part.index_select(1, lengths.not_empty) for part in parts]


def _of_all(parts: Sequence[Any], others: Sequence[Tensor], lengths: Lengths) -> list[Any]:
    """Undo `_of_running`, with the parts of `others` for empty sequences."""
    if lengths.without_empty is lengths:
        return [*parts]
    return [other.index_copy(1, lengths.not_empty, part) for part, other in zip(parts, others, strict=True)]


_LSTM = _RecurrentOperator(nn.LSTM, LSTMState)
_GRU = _RecurrentOperator(nn.GRU, RNNState)
_RNN = _RecurrentOperator(nn.RNN, RNNState, ", str nonlinearity")
# By the mode of a layer, with the option that its sizes do not imply.
_OPERATORS: dict[str, tuple[Any, ...]] = {
    "LSTM": (_LSTM.operator,),
    "GRU": (_GRU.operator,),
    "RNN_TANH": (_RNN.operator, "tanh"),
    "RNN_RELU": (_RNN.operator, "relu"),
}
