"""export: write a model that takes a SequenceBatch to ONNX, from padded sequences and their lengths."""

import re
from itertools import chain
from os import PathLike
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from seqbatch._batch import SequenceBatch
from seqbatch._checks.grammar import complaint, type_name
from seqbatch._torch import keys_of_results, leaves_by_path, require_graphs
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError, UnsupportedLayerError
from seqbatch.onnx._length_check import checked_lengths, checked_lengths_node
from seqbatch.onnx._recurrent_nodes import gru_node, lstm_node, rnn_node
from seqbatch.onnx._reduction_nodes import expand_node, reduce_node
from seqbatch.onnx._substitutes import embedding_node, group_norm_node, repeat_interleave_node

# The dtypes in which ONNX Runtime runs the nodes for recurrent layers; ONNX itself has float64 too.
_DTYPES = (torch.float16, torch.float32)


class _FromPadded(nn.Module):
    """A model from padded sequences and their lengths to a dict of tensors."""

    def __init__(self, model: nn.Module, batch_first: bool) -> None:
        super().__init__()
        self.model, self.batch_first = model, batch_first

    def forward(self, padded: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        lengths = checked_lengths(lengths, padded, self.batch_first)
        found = _named_results(self.model(SequenceBatch.from_padded(padded, lengths, batch_first=self.batch_first)))
        return {
            name: leaf.to_padded(batch_first=self.batch_first) if isinstance(leaf, SequenceBatch) else leaf.clone()
            for name, leaf in found.items()
        }


def _named_results(results: Any) -> dict[str, SequenceBatch | Tensor]:
    """Return the batches and tensors in the result of a model by name, else raise."""
    found: dict[str, SequenceBatch | Tensor] = {}
    for path, leaf in leaves_by_path(results, SequenceBatch):
        if leaf is None:
            continue
        if not isinstance(leaf, (SequenceBatch, Tensor)):
            raise complaint(SeqbatchTypeError, "model", "return SequenceBatches, states and Tensors", type_name(leaf))
        name = "_".join(["output", *re.findall(r"\w+", path, re.ASCII)])
        if name in found:
            raise complaint(SeqbatchValueError, "model", "return results whose names differ", f"{name} twice")
        found[name] = leaf
    if not found:
        raise complaint(SeqbatchTypeError, "model", "return SequenceBatches, states and Tensors", "nothing")
    return found


def export(
    model: nn.Module, example: SequenceBatch, path: str | PathLike[str] | None = None, *, batch_first: bool
) -> "torch.onnx.ONNXProgram":
    """Export a model that takes a SequenceBatch to ONNX, where its recurrent layers are nodes LSTM, GRU and RNN.

    The program takes `padded`, `(batch, time, *features)` or `(time, batch, *features)`, and `lengths`, `(batch,)`
    int64, of any batch size and number of steps, 0 included. Padding reaches no result. If a length is negative or
    greater than the time axis, or if the number of lengths is wrong, the run stops.

    It returns the results of the model in order: a SequenceBatch padded with zeros, a state as its tensors in the
    layout of RNNState and LSTMState, and Tensors as they are. One result is named `output`; several are named
    `output_0`, `output_1` and so on. In a dict the key replaces the number. The names of a state's tensors end with
    `_hidden` and `_cell`. A None is left out, and the names of the others stay.

    Args:
        model: in evaluation mode; its `forward` takes a SequenceBatch. The page on deployment lists what can be
            exported.
        example: a batch of at least 2 sequences, with at least 2 steps in one, of the model's features and dtype.
        path: where to write the file; None to write none.
        batch_first: which of the first two axes of the padded sequences is the batch.

    Returns:
        the program, whose `save` writes it to other files.

    Raises:
        SeqbatchTypeError: the model is not an `nn.Module`, the example is not a SequenceBatch, or the model returns
            nothing, or something that is not a SequenceBatch, state or Tensor.
        SeqbatchValueError: the model, or a module in it, is in training mode, the example is too small, or two results
            have the same name.
        UnsupportedLayerError: a recurrent layer has `proj_size`, or computes in another dtype than float32 and float16.
        SeqbatchError: torch is older than 2.13, or the model reads the values of the lengths somewhere, or holds a
            recurrent layer with hooks.
        torch.onnx.OnnxExporterError: the model calls a function of PyTorch that ONNX lacks; PyTorch names it.

    Source: `torch.onnx.export`, and the nodes of ONNX's operator set 18.

    >>> import seqbatch.onnx
    >>> example = SequenceBatch(torch.randn(5, 4), [3, 2])
    >>> class Summary(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.gru = nn.GRU(4, 3)
    ...     def forward(self, batch):
    ...         return encode(self.gru, batch).mean()
    >>> program = seqbatch.onnx.export(Summary().eval(), example, batch_first=True)
    >>> [value.name for value in (*program.model.graph.inputs, *program.model.graph.outputs)]
    ['padded', 'lengths', 'output']
    """
    require_graphs("seqbatch.onnx")
    _require_model(model)
    if not isinstance(example, SequenceBatch):
        raise complaint(SeqbatchTypeError, "example", "be a SequenceBatch", type_name(example))
    if example.batch_size < 2 or example.max_length < 2:
        must = "have at least 2 sequences and 2 steps, because PyTorch specializes sizes of 0 and 1"
        raise complaint(SeqbatchValueError, "example", must, repr(example))
    number, time = Dim("batch", min=0), Dim("time", min=0)
    given = example.to_padded(batch_first=batch_first), torch.tensor(example.lengths)
    shapes = {0: number, 1: time} if batch_first else {0: time, 1: number}
    program = torch.export.export(_FromPadded(model, batch_first), given, dynamic_shapes=(shapes, {0: number}))
    _require_nodes(program)
    operators: Any = torch.ops.seqbatch
    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["padded", "lengths"],
        output_names=keys_of_results(program),
        custom_translation_table={
            torch.ops.aten.embedding.default: embedding_node,
            torch.ops.aten.group_norm.default: group_norm_node,
            torch.ops.aten.repeat_interleave.Tensor: repeat_interleave_node,
            operators.checked_lengths.default: checked_lengths_node,
            operators.lstm.default: lstm_node,
            operators.gru.default: gru_node,
            operators.rnn.default: rnn_node,
            operators.reduce.default: reduce_node,
            operators.expand.default: expand_node,
        },
    )
    assert exported is not None
    if path is not None:
        exported.save(path)
    return exported


def _require_model(model: object) -> None:
    """Raise unless this is a module in evaluation mode."""
    if not isinstance(model, nn.Module):
        raise complaint(SeqbatchTypeError, "model", "be an nn.Module", type_name(model))
    for name, module in model.named_modules():
        if module.training:
            found = f"training mode of `{name}` in it" if name else "training mode"
            raise complaint(SeqbatchValueError, "model", "be in evaluation mode", found, "Call its eval.")
        if type(module).__module__.startswith("torch.ao.nn.quantized"):
            remedy = "Export the model before it is quantized, and quantize the file, as by onnxruntime.quantization."
            raise _missing_in_onnx(f"nn.{type(module).__name__} that is quantized", remedy)


def _require_nodes(program: ExportedProgram) -> None:
    """Raise unless ONNX has nodes for the recurrent layers of a program."""
    operators: Any = torch.ops.seqbatch
    kinds = {operators.lstm.default: "nn.LSTM", operators.gru.default: "nn.GRU", operators.rnn.default: "nn.RNN"}
    # In all graphs of the program, because code without gradients or under autocast has its own.
    graphs = (one.graph for one in program.graph_module.modules() if isinstance(one, fx.GraphModule))
    for node in chain.from_iterable(graph.nodes for graph in graphs):
        if (kind := kinds.get(node.target)) is None:
            continue
        values, _, others, num_layers, bidirectional, *_ = node.args
        dtype = values.meta["val"].dtype
        is_projected = (len(others) - 2) // (num_layers * (2 if bidirectional else 1)) in (3, 5)
        if kind == "nn.LSTM" and is_projected:
            raise _missing_in_onnx(f"{kind} with proj_size, of which it has none")
        if dtype not in _DTYPES:
            remedy = "Call float() on the model, and .to(torch.float32) on the example"
            remedy += "." if dtype is torch.float64 else ", and export outside of torch.autocast."
            raise _missing_in_onnx(f"{kind} in {dtype}, which ONNX Runtime does not run", remedy)


def _missing_in_onnx(found: str, remedy: str = "") -> Exception:
    """Build the error for a layer that is not in ONNX."""
    return complaint(UnsupportedLayerError, "model", "have layers that ONNX has", f"an {found}", remedy)
