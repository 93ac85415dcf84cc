"""The recurrent operators as the nodes LSTM, GRU and RNN of ONNX, one for each layer with all its directions."""

from typing import Any

from seqbatch.onnx._layout_nodes import StepNodes, flat_node, int_node, ints_node, op, padded_node, step_nodes


def lstm_node(values: Any, lengths: Any, others: Any, num_layers: int, bidirectional: bool, differentiable: Any) -> Any:
    """Translate `seqbatch::lstm`; ONNX orders the gates i, o, f, c."""
    return _run_stack(_LayerNode("LSTM", [0, 3, 1, 2], 2, bidirectional), values, lengths, others, num_layers)


def gru_node(values: Any, lengths: Any, others: Any, num_layers: int, bidirectional: bool, differentiable: Any) -> Any:
    """Translate `seqbatch::gru`; ONNX orders the gates z, r, h, and has PyTorch's form by `linear_before_reset`."""
    layer = _LayerNode("GRU", [1, 0, 2], 1, bidirectional, linear_before_reset=1)
    return _run_stack(layer, values, lengths, others, num_layers)


def rnn_node(
    values: Any, lengths: Any, others: Any, num_layers: int, bidirectional: bool, differentiable: Any, nonlinearity: str
) -> Any:
    """Translate `seqbatch::rnn`."""
    activations = [nonlinearity.capitalize()] * (2 if bidirectional else 1)
    layer = _LayerNode("RNN", [0], 1, bidirectional, activations=activations)
    return _run_stack(layer, values, lengths, others, num_layers)


class _LayerNode:
    """What all layers of a stack share: the node, the order of its gates, the parts of its state, its attributes."""

    def __init__(self, node: str, gates: list[int], parts: int, bidirectional: bool, **attributes: Any) -> None:
        self.node, self.gates, self.parts = node, gates, parts
        self.directions = 2 if bidirectional else 1
        self.attributes = {"direction": "bidirectional" if bidirectional else "forward", **attributes}

    def run(self, rows: Any, weights: list[Any], lengths: Any, start: list[Any]) -> tuple[Any, list[Any]]:
        """Run one layer on `(time, batch, features)`; return its output in this layout, and its final state."""
        each = len(weights) // self.directions
        ways = [weights[way * each : (way + 1) * each] for way in range(self.directions)]
        kinds = [self._stack([way[kind] for way in ways]) for kind in range(each)]
        bias = op.Concat(kinds[2], kinds[3], axis=1) if each > 2 else None
        size = int(ways[0][1].shape[1])
        node = getattr(op, self.node)
        output, *end = node(rows, *kinds[:2], bias, lengths, *start, hidden_size=size, **self.attributes)
        joined = op.Reshape(op.Transpose(output, perm=[0, 2, 1, 3]), ints_node(0, 0, self.directions * size))
        return joined, end

    def _stack(self, weights: list[Any]) -> Any:
        return op.Concat(*(op.Unsqueeze(self._in_order(weight), ints_node(0)) for weight in weights), axis=0)

    def _in_order(self, weight: Any) -> Any:
        """Reorder the gates of a weight for ONNX."""
        if len(self.gates) == 1:
            return weight
        size = int(weight.shape[0]) // len(self.gates)
        parts = (op.Slice(weight, ints_node(i * size), ints_node((i + 1) * size), ints_node(0)) for i in self.gates)
        return op.Concat(*parts, axis=0)


def _run_stack(layer: _LayerNode, values: Any, lengths: Any, others: Any, num_layers: int) -> Any:
    """Run the layers in order, and return the results of the operator."""
    number = op.Shape(lengths)
    # ONNX Runtime crashes on an LSTM of batch size 0: one empty sequence is added, and its result is dropped.
    at_least_one = ints_node(0), op.Max(number, ints_node(1))
    steps = step_nodes(op.Slice(op.Pad(lengths, ints_node(0, 1)), *at_least_one, ints_node(0)))
    more = (op.Pad(part, ints_node(0, 0, 0, 0, 1, 0)) for part in others[: layer.parts])
    hidden = [op.Slice(part, *at_least_one, ints_node(1)) for part in more]
    weights = others[layer.parts :]
    # A node does not take empty sequences: each gets one step of zeros, and its result is dropped.
    counts = op.Cast(op.Max(steps.lengths, ints_node(1)), to=6)
    rows = op.Transpose(padded_node(values, steps, int_node(0)), perm=[1, 0, 2])
    each, finals = len(weights) // num_layers, []
    for i in range(num_layers):
        bounds = ints_node(i * layer.directions), ints_node((i + 1) * layer.directions), ints_node(0)
        start = [op.Slice(part, *bounds) for part in hidden]
        rows, end = layer.run(rows, weights[i * each : (i + 1) * each], counts, start)
        finals.append([_start_if_empty(steps, *pair) for pair in zip(end, start, strict=True)])
    ends = [
        op.Slice(op.Concat(*parts, axis=0), ints_node(0), number, ints_node(1)) for parts in zip(*finals, strict=True)
    ]
    # Empty, because the tensors that the operator saves for a backward pass are never read here.
    unused = [op.Slice(values, ints_node(0), ints_node(0), ints_node(0))] * 2
    return flat_node(op.Transpose(rows, perm=[1, 0, 2]), steps), *ends, *unused


def _start_if_empty(steps: StepNodes, end: Any, start: Any) -> Any:
    return op.Where(op.Unsqueeze(op.Equal(steps.lengths, int_node(0)), ints_node(0, 2)), start, end)
