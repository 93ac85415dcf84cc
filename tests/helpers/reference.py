"""The oracle: run each sequence alone by the layer or function of PyTorch, in a loop; knows nothing of seqbatch."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

# A state here is a list of tensors `(num_layers, num_directions, batch, size)`, those of all layers one after another.
Hidden = list[Tensor]
# As many steps as any layer of the tests takes.
MANY = 99


def run_alone(
    layer: nn.Module, sequences: Sequence[Tensor], state: Hidden | None = None
) -> tuple[list[Tensor], Hidden]:
    """Return each sequence's output, and the state after it, from a run of the layer on this sequence only."""
    outputs, finals = [], []
    for i, sequence in enumerate(sequences):
        hidden = None if state is None else [part[:, :, i].flatten(0, 1) for part in state]
        output, final, left = _run(layer, sequence, hidden)
        assert not left, "the state holds more than the layers take"
        outputs.append(output)
        finals.append(final)
    if not finals:
        return outputs, []
    return outputs, [torch.stack(parts, 2) for parts in zip(*finals, strict=True)]


def scan_alone(
    step: Callable[..., tuple[Any, Any]],
    sequences: Sequence[Tensor],
    states: Sequence[Any],
    constants: Sequence[Any] | None = None,
    *,
    reverse: bool = False,
) -> tuple[list[list[Any]], list[Any]]:
    """Return the outputs of a step function for each step of each sequence, and the states after them.

    Each sequence has a loop of its own, from its own state and its own constants, of one row each.
    """
    outputs, finals = [], []
    for i, (sequence, state) in enumerate(zip(sequences, states, strict=True)):
        rows = [sequence[t : t + 1] for t in range(len(sequence))]
        found = []
        for row in reversed(rows) if reverse else rows:
            output, state = step(row, state) if constants is None else step(row, state, constants[i])
            found.append(output)
        outputs.append(found[::-1] if reverse else found)
        finals.append(state)
    return outputs, finals


def run_alone_with_memory(layer: Any, query: Tensor, memory: Tensor) -> Tensor:
    """Return the output for one sequence that attends to its memory, from a run of the layer on this pair only."""
    name = type(layer).__name__
    if isinstance(layer, nn.MultiheadAttention):
        output: Tensor = layer(query, memory, memory)[0]
    elif name == "Causal":
        mask = nn.Transformer.generate_square_subsequent_mask(len(query), dtype=query.dtype)
        output = layer.layer(query, memory, mask)
    elif name in ("AdditiveAttention", "DotProductAttention"):
        weights = attention_weights(layer, query, memory)
        steps = [(each[:, None] * memory).sum(0) for each in weights]
        output = torch.stack(steps) if steps else query.new_zeros(0, memory.shape[1])
    else:
        output = layer(query, memory)
    return output


def attention_weights(layer: Any, query: Tensor, memory: Tensor) -> list[Tensor]:
    """Return the weights of memory for each query step, of additive or dot-product attention, one score at a time."""
    found = []
    for step in query:
        scores = []
        for key in memory:
            if type(layer).__name__ == "AdditiveAttention":
                hidden = torch.tanh(layer.query_projection(step) + layer.memory_projection(key))
                scores.append(layer.score(hidden)[0])
            else:
                scores.append(torch.dot(layer.query_projection(step), key) / len(key) ** 0.5)
        found.append(torch.stack(scores).softmax(0) if scores else query.new_zeros(0))
    return found


def _run(layer: nn.Module, sequence: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden, Hidden]:
    """Run one sequence; also give the part of the state that this layer does not take."""
    if isinstance(layer, (nn.ModuleList, nn.Sequential)):
        finals: Hidden = []
        for child in layer:
            sequence, final, left = _run(child, sequence, hidden)
            finals += final
            hidden = left if hidden is not None else None
        return sequence, finals, hidden or []
    if isinstance(layer, nn.RNNBase):
        return _run_recurrent(layer, sequence, hidden)
    if isinstance(layer, nn.RNNCellBase):
        return _run_cell(layer, sequence, hidden)
    if isinstance(layer, nn.MultiheadAttention):
        return layer(sequence, sequence, sequence)[0], [], hidden or []
    if isinstance(layer, nn.InstanceNorm1d):
        return layer(sequence.T).T, [], hidden or []
    if isinstance(layer, _OVER_STEPS_AND_FEATURES):
        return _run_over_steps_and_features(layer, sequence), [], hidden or []
    if isinstance(layer, _OVER_STEPS):
        return _run_over_steps(layer, sequence), [], hidden or []
    if type(layer).__name__ in _BY_HAND:
        return _BY_HAND[type(layer).__name__](layer, sequence, hidden)
    return layer(sequence.clone()), [], hidden or []  # a copy, because the layer may work in place


def _run_recurrent(layer: nn.RNNBase, sequence: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden, Hidden]:
    directions = 2 if layer.bidirectional else 1
    sizes = [layer.proj_size or layer.hidden_size]
    if isinstance(layer, nn.LSTM):
        sizes.append(layer.hidden_size)
    mine = None if hidden is None else hidden[: len(sizes)]
    left = [] if hidden is None else hidden[len(sizes) :]
    if len(sequence):
        given: Any = () if mine is None else (mine[0],) if len(mine) == 1 else (tuple(mine),)
        output, end = layer(sequence, *given)
        final = list(end) if isinstance(end, tuple) else [end]
    else:  # PyTorch refuses an empty sequence; its state stays as it is
        output = sequence.new_zeros(0, directions * sizes[0])
        final = mine or [sequence.new_zeros(layer.num_layers * directions, size) for size in sizes]
    return output, [part.unflatten(0, (layer.num_layers, directions)) for part in final], left


def _run_cell(cell: nn.RNNCellBase, sequence: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden, Hidden]:
    number = 2 if isinstance(cell, nn.LSTMCell) else 1
    left = [] if hidden is None else hidden[number:]
    parts = [sequence.new_zeros(cell.hidden_size)] * number
    given: Any = ()
    if hidden is not None:
        parts = [part[0] for part in hidden[:number]]
        given = (parts[0],) if number == 1 else (tuple(parts),)
    outputs = []
    for step in sequence:
        result = cell(step, *given)
        given = (result,)
        parts = list(result) if number == 2 else [result]
        outputs.append(parts[0])
    output = torch.stack(outputs) if outputs else sequence.new_zeros(0, cell.hidden_size)
    return output, [part[None, None] for part in parts], left


def _run_over_steps(layer: Any, sequence: Tensor) -> Tensor:
    """Run a layer that takes `(batch, channels, steps)`; the output of an empty sequence must be empty."""
    if not len(sequence):
        return sequence.new_zeros(0, getattr(layer, "out_channels", sequence.shape[1]))
    output: Tensor = layer(sequence.T[None].clone())[0].T
    return output


def _run_over_steps_and_features(layer: Any, sequence: Tensor) -> Tensor:
    """Run a layer that takes `(batch, channels, steps, features)`; features of one channel may lack that axis."""
    images = sequence.unsqueeze(1) if sequence.dim() == 2 else sequence
    if not len(sequence):  # of which features, is seen in the output for any steps
        return _run_over_steps_and_features(layer, images.new_zeros(MANY, *images.shape[1:]))[:0]
    output: Tensor = layer(images.transpose(0, 1)[None].clone())[0]
    return output.transpose(0, 1)


def _run_residual(layer: Any, sequence: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden, Hidden]:
    output, final, left = _run(layer.layer, sequence, hidden)
    return sequence + output, final, left


def _run_two_way(layer: Any, sequence: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden, Hidden]:
    forward, final, left = _run(layer.forward_layer, sequence, hidden)
    backward, other, left = _run(layer.backward_layer, sequence.flip(0), None if hidden is None else left)
    return torch.cat([forward, backward.flip(0)], -1), final + other, left


def _run_layer_norm_lstm(layer: Any, sequence: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden, Hidden]:
    state = None if hidden is None else tuple(part[0] for part in hidden[:2])
    output, end = layer(sequence, state)
    return output, [part[None, None] for part in end], [] if hidden is None else hidden[2:]


def _pool(function: Callable[[Any, Tensor], Tensor]) -> Callable[..., tuple[Tensor, Hidden, Hidden]]:
    """Return the run of a pool: one step by a function, or none."""

    def run(layer: Any, sequence: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden, Hidden]:
        return function(layer, sequence)[None] if len(sequence) else sequence, [], hidden or []

    return run


_OVER_STEPS = (
    nn.AvgPool1d,
    nn.CircularPad1d,
    nn.ConstantPad1d,
    nn.Conv1d,
    nn.LPPool1d,
    nn.MaxPool1d,
    nn.ReflectionPad1d,
    nn.ReplicationPad1d,
)
_OVER_STEPS_AND_FEATURES = (
    nn.AvgPool2d,
    nn.BatchNorm2d,
    nn.CircularPad2d,
    nn.ConstantPad2d,
    nn.Conv2d,
    nn.LPPool2d,
    nn.MaxPool2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)
# Layers that are not PyTorch's, by the names of their classes.
_BY_HAND: dict[str, Callable[..., tuple[Tensor, Hidden, Hidden]]] = {
    "AttentionPool": _pool(lambda layer, x: ((x @ layer.query).softmax(0)[:, None] * x).sum(0)),
    "FirstStep": _pool(lambda layer, x: x[0]),
    "LastStep": _pool(lambda layer, x: x[-1]),
    "LayerNormLSTM": _run_layer_norm_lstm,
    "MaxPool": _pool(lambda layer, x: x.amax(0)),
    "MeanPool": _pool(lambda layer, x: x.mean(0)),
    "MinPool": _pool(lambda layer, x: x.amin(0)),
    "Residual": _run_residual,
    "SumPool": _pool(lambda layer, x: x.sum(0)),
    "TwoWay": _run_two_way,
}


class Reduction(NamedTuple):
    """A method of a batch, and the function of PyTorch that it is for one sequence alone.

    Args:
        method: the name of the method.
        alone: from `(steps, *features)`, at least one step, to `features`, or to `(steps, *features)`.
        options: the keyword arguments of the method.
        is_stepwise: whether the result is a batch.
        takes: the dtypes of the values; "ordered" is all that PyTorch can compare.
        dtype: the dtype of the result: that of the values, int64 if they are integers or bools, their real part, ...
        is_differentiable: whether gradients flow.
        of_empty: the result for an empty sequence.
        least_steps: how many steps a sequence must have for a result that is not NaN.
    """

    method: str
    alone: Callable[[Tensor], Tensor]
    options: Mapping[str, Any] = MappingProxyType({})
    is_stepwise: bool = False
    takes: Literal["all", "inexact", "floating", "ordered"] = "all"
    dtype: Literal["same", "sum", "real", "int64", "bool"] = "same"
    is_differentiable: bool = True
    of_empty: int = 0
    least_steps: int = 1

    def of(self, batch: Any) -> Any:
        """Call the method of a batch."""
        return getattr(batch, self.method)(**self.options)

    def can_take(self, dtype: torch.dtype) -> bool:
        """Return True if the method takes values of a dtype."""
        if self.takes == "ordered":
            return not dtype.is_complex and dtype is not torch.uint64
        is_inexact = dtype.is_complex and self.takes == "inexact"
        return self.takes == "all" or dtype.is_floating_point or is_inexact

    def dtype_for(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of the result for values of a dtype."""
        is_inexact = dtype.is_floating_point or dtype.is_complex
        if self.dtype in ("int64", "bool"):
            return getattr(torch, self.dtype)  # type: ignore[no-any-return]
        if self.dtype == "real":
            return dtype.to_real()
        return torch.int64 if self.dtype == "sum" and not is_inexact else dtype

    def of_sequence(self, sequence: Tensor) -> Tensor:
        """Return the result of one sequence alone, which may be empty."""
        if len(sequence) or self.is_stepwise:
            return self.alone(sequence)
        # A sum, through which gradients flow, so that a loss of nothing but empty sequences has some.
        total = sequence.sum(0) + self.of_empty
        return (total.real if self.dtype == "real" else total).to(self.dtype_for(sequence.dtype))


def _spread(function: Callable[..., Tensor], correction: int) -> Callable[[Tensor], Tensor]:
    """Return a variance or standard deviation without the warning of PyTorch that it is NaN."""

    def run(x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*degrees of freedom is <= 0")
            return function(x, 0, correction=correction)

    return run


def _spreads(method: str, function: Callable[..., Tensor]) -> dict[str, Reduction]:
    options: Any = {"takes": "inexact", "dtype": "real"}
    return {
        method: Reduction(method, _spread(function, 1), least_steps=2, **options),
        f"{method} of all": Reduction(method, _spread(function, 0), {"correction": 0}, **options),
    }


_TRUTH: Any = {"dtype": "bool", "is_differentiable": False}
_POSITION: Any = {"takes": "ordered", "dtype": "int64", "is_differentiable": False}
_STEPWISE: Any = {"is_stepwise": True}
# All methods of batches that tests of reductions, of graphs, of ONNX and of devices try, each in the ways it has.
REDUCTIONS: dict[str, Reduction] = {
    "all": Reduction("all", lambda x: x.bool().all(0), of_empty=1, **_TRUTH),
    "any": Reduction("any", lambda x: x.bool().any(0), **_TRUTH),
    "argmax": Reduction("argmax", lambda x: x.argmax(0), **_POSITION),
    "argmin": Reduction("argmin", lambda x: x.argmin(0), **_POSITION),
    "cumsum": Reduction("cumsum", lambda x: x.cumsum(0), dtype="sum", **_STEPWISE),
    "cumsum from the end": Reduction(
        "cumsum", lambda x: x.flip(0).cumsum(0).flip(0), {"reverse": True}, dtype="sum", **_STEPWISE
    ),
    "first": Reduction("first", lambda x: x[0]),
    "last": Reduction("last", lambda x: x[-1]),
    "log_softmax": Reduction("log_softmax", lambda x: x.log_softmax(0), takes="floating", **_STEPWISE),
    "logsumexp": Reduction("logsumexp", lambda x: x.logsumexp(0), takes="floating"),
    "max": Reduction("max", lambda x: x.amax(0), takes="ordered"),
    "mean": Reduction("mean", lambda x: x.mean(0), takes="inexact"),
    "min": Reduction("min", lambda x: x.amin(0), takes="ordered"),
    "reverse": Reduction("reverse", lambda x: x.flip(0), **_STEPWISE),
    "softmax": Reduction("softmax", lambda x: x.softmax(0), takes="floating", **_STEPWISE),
    **_spreads("std", torch.std),
    "sum": Reduction("sum", lambda x: x.sum(0), dtype="sum"),
    **_spreads("var", torch.var),
}
