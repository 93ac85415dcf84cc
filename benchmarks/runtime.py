"""ONNX Runtime, which one would deploy on a CPU in place of PyTorch: recurrent layers as its nodes LSTM, GRU, RNN."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

# The gates of ONNX, in the order in which PyTorch has them.
_GATES = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN_TANH": [0]}


def onnx_runtime(layer: nn.RNNBase) -> Callable[[nn.RNNBase, list[Tensor]], list[Tensor]] | None:
    """Return the function that runs the layer's copy in ONNX Runtime, made once; None if it is not installed.

    Each node is given the lengths, so that both directions are exact. Threads are as many as those of PyTorch, and do
    not spin while they wait, because that would slow down all that is measured after them.
    """
    try:
        onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    except ImportError:
        return None
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(_model(onnx, layer).SerializeToString(), options, ["CPUExecutionProvider"])

    def run(_: nn.RNNBase, sequences: list[Tensor]) -> list[Tensor]:
        lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int32)
        given = {"x": pad_sequence(sequences).numpy(), "lengths": lengths.numpy()}
        output = torch.from_numpy(session.run(["y"], given)[0])
        return [output[: len(sequence), i] for i, sequence in enumerate(sequences)]

    return run


def _model(onnx: Any, layer: nn.RNNBase) -> Any:
    """Build a model of one node a layer, from `x`, `(time, batch, features)`, and `lengths` to `y`."""
    make, from_array = onnx.helper, onnx.numpy_helper.from_array
    directions, nodes, weights, rows = 2 if layer.bidirectional else 1, [], [], "x"
    shape = from_array(torch.tensor([0, 0, directions * layer.hidden_size]).numpy(), "shape")
    for i in range(layer.num_layers):
        for name, tensor in zip("WRB", _weights(layer, i, directions), strict=True):
            weights.append(from_array(tensor.numpy(), f"{name}{i}"))
        attributes = {"linear_before_reset": 1} if layer.mode == "GRU" else {}
        node = make.make_node(
            layer.mode.partition("_")[0],
            [rows, f"W{i}", f"R{i}", f"B{i}", "lengths"],
            [f"out{i}"],
            hidden_size=layer.hidden_size,
            direction="bidirectional" if layer.bidirectional else "forward",
            **attributes,
        )
        turned = make.make_node("Transpose", [f"out{i}"], [f"turned{i}"], perm=[0, 2, 1, 3])
        rows = "y" if i == layer.num_layers - 1 else f"rows{i}"
        nodes += [node, turned, make.make_node("Reshape", [f"turned{i}", "shape"], [rows])]
    kinds = onnx.TensorProto
    given = [
        make.make_tensor_value_info("x", kinds.FLOAT, ["time", "batch", layer.input_size]),
        make.make_tensor_value_info("lengths", kinds.INT32, ["batch"]),
    ]
    taken = make.make_tensor_value_info("y", kinds.FLOAT, ["time", "batch", directions * layer.hidden_size])
    graph = make.make_graph(nodes, "layer", given, [taken], [shape, *weights])
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)


def _weights(layer: nn.RNNBase, index: int, directions: int) -> list[Tensor]:
    """Return the weights W, R and B of one node: `(directions, ...)`, gates in the order of ONNX."""
    suffixes = [f"_l{index}", f"_l{index}_reverse"][:directions]

    def stacked(name: str) -> Tensor:
        parts = [getattr(layer, f"{name}{suffix}").detach().cpu() for suffix in suffixes]
        gates = _GATES[layer.mode]
        return torch.stack([torch.cat([part.chunk(len(gates))[gate] for gate in gates]) for part in parts])

    return [stacked("weight_ih"), stacked("weight_hh"), torch.cat([stacked("bias_ih"), stacked("bias_hh")], 1)]
