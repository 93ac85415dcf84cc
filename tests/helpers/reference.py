"""The oracle: run each sequence alone through the plain PyTorch layer, in a loop; knows nothing of seqbatch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# A state here is a list of tensors `(num_layers, num_directions, batch, size)`, those of all layers one after another.
Hidden = list[Tensor]


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
