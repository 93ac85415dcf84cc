"""export: write a model that takes a SequenceBatch to ONNX, from padded sequences and their lengths."""

from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree

from seqbatch._checks import complaint, type_name
from seqbatch.batch import SequenceBatch
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError, UnsupportedLayerError
from seqbatch.onnx._recurrent import gru, lstm, rnn
from seqbatch.onnx._reduce import reduce


class _FromPadded(nn.Module):
    """A model from padded sequences and their lengths to tensors, by their names."""

    def __init__(self, model: nn.Module, batch_first: bool) -> None:
        super().__init__()
        self.model, self.batch_first = model, batch_first

    def forward(self, padded: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        lengths = checked_lengths(lengths, padded, self.batch_first)
        results = self.model(SequenceBatch.from_padded(padded, lengths, batch_first=self.batch_first))
        found: dict[str, Tensor] = {}
        must = "give SequenceBatches, states and Tensors"
        for path, leaf in _pytree.tree_leaves_with_path(results, is_leaf=lambda one: isinstance(one, SequenceBatch)):
            name = "_".join(["output", *re.findall(r"\w+", _pytree.keystr(path), re.ASCII)])
            if name in found:
                raise complaint(SeqbatchValueError, "model", "give its results other names", f"{name} twice")
            if isinstance(leaf, SequenceBatch):
                found[name] = leaf.to_padded(batch_first=self.batch_first)
            elif isinstance(leaf, Tensor):
                # A view, for the names of what stands twice would be one.
                found[name] = leaf.view_as(leaf)
            elif leaf is not None:
                raise complaint(SeqbatchTypeError, "model", must, type_name(leaf))
        if not found:
            raise complaint(SeqbatchTypeError, "model", must, "nothing")
        return found


def export(
    model: nn.Module, example: SequenceBatch, path: str | PathLike[str] | None = None, *, batch_first: bool
) -> "torch.onnx.ONNXProgram":
    """Export a model that takes a SequenceBatch to ONNX, where its recurrent layers are nodes LSTM, GRU and RNN.

    What is exported takes `padded`, `(batch, time, *features)` or `(time, batch, *features)`, and `lengths`, `(batch,)`
    int64; of any number of sequences and steps, 0 included. What stands in padding reaches no result. It gives what the
    model gives, one after another: a SequenceBatch padded with zeros, of a state its tensors in the layout of RNNState
    and LSTMState, and Tensors as they are.

    Args:
        model: in evaluation mode; its `forward` takes a SequenceBatch. It holds what graphs hold: see the page on
            deployment.
        example: a batch of at least 2 sequences of 2 steps and more, of the features and dtype that the model takes.
        path: where to write the file; None to write none.
        batch_first: which of the first two axes of what is padded is the batch.

    Returns:
        the program, whose `save` writes it to other files.

    Raises:
        SeqbatchTypeError: the model is no `nn.Module`, or the example no SequenceBatch.
        SeqbatchValueError: the model is in training mode, or the example too small.
        UnsupportedLayerError: a recurrent layer has `proj_size`, of which ONNX has none.
        SeqbatchError: the model runs by the numbers of lengths somewhere, or holds a layer with hooks.

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
    >>> [value.name for value in program.model.graph.inputs]
    ['padded', 'lengths']
    """
    if not isinstance(model, nn.Module):
        raise complaint(SeqbatchTypeError, "model", "be an nn.Module", type_name(model))
    if model.training:
        raise complaint(SeqbatchValueError, "model", "be in evaluation mode", "training mode", "Call its eval.")
    if not isinstance(example, SequenceBatch):
        raise complaint(SeqbatchTypeError, "example", "be a SequenceBatch", type_name(example))
    if example.batch_size < 2 or example.max_length < 2:
        must = "have 2 sequences and 2 steps at least, for PyTorch takes 0 and 1 for sizes that stay"
        raise complaint(SeqbatchValueError, "example", must, repr(example))
    number, time = Dim("batch", min=0), Dim("time", min=0)
    given = example.to_padded(batch_first=batch_first), torch.tensor(example.lengths)
    shapes = {0: number, 1: time} if batch_first else {0: time, 1: number}
    program = torch.export.export(_FromPadded(model, batch_first), given, dynamic_shapes=(shapes, {0: number}))
    _require_no_projection(program)
    operators: Any = torch.ops.seqbatch
    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["padded", "lengths"],
        custom_translation_table={
            operators.lstm.default: lstm,
            operators.gru.default: gru,
            operators.rnn.default: rnn,
            operators.reduce.default: reduce,
        },
    )
    assert exported is not None
    if path is not None:
        exported.save(path)
    return exported


def _require_no_projection(program: ExportedProgram) -> None:
    operators: Any = torch.ops.seqbatch
    for node in program.graph.nodes:
        if node.target is operators.lstm.default:
            _, _, others, num_layers, bidirectional, *_ = node.args
            if (len(others) - 2) // (num_layers * (2 if bidirectional else 1)) in (3, 5):
                found = "an nn.LSTM with proj_size, of which ONNX has none"
                raise complaint(UnsupportedLayerError, "model", "have layers that ONNX has", found)
