"""Batch norm by what it has kept, in graphs, also where the number of steps is not known before they run."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_models import PATTERNS, SMALL, compiled, graphs
from graph_models import allow_recurrent_layers as allow_recurrent_layers
from onnx_models import IGNORED, Session
from reference import run_alone
from torch import Tensor, nn
from torch.export import Dim
from torch.testing import assert_close

from seqbatch import SequenceBatch, encode

FLOAT, DOUBLE, HALF, BRAIN = torch.float32, torch.float64, torch.float16, torch.bfloat16
# The layer, the features, the dtype of the layer, and that of the sequences.
CASES = [
    (nn.BatchNorm1d(4), (4,), FLOAT, FLOAT),
    (nn.BatchNorm1d(4, affine=False, eps=0.5), (4,), FLOAT, FLOAT),
    (nn.BatchNorm1d(4, momentum=None), (4, 2), DOUBLE, DOUBLE),
    (nn.BatchNorm1d(4), (4,), FLOAT, HALF),
    (nn.BatchNorm1d(4), (4, 2), BRAIN, BRAIN),
    (nn.BatchNorm2d(4), (4, 9), FLOAT, FLOAT),
    (
        nn.SyncBatchNorm(4),
        (4, 2, 9),
        FLOAT,
        FLOAT,
    ),  # 9, because PyTorch takes sizes for the same that are equal at first
]
every_case = pytest.mark.parametrize(("layer", "features", "held", "dtype"), CASES, ids=str)
SIZES = PATTERNS | SMALL
BATCH, TIME = Dim("batch", min=0), Dim("time", min=0)


def trained(layer: Any, dtype: torch.dtype) -> nn.Module:
    """Return a layer in evaluation mode, with weights and statistics unlike the initial ones."""
    torch.manual_seed(0)
    for tensor in (*layer.parameters(), layer.running_mean, layer.running_var):
        tensor.data.uniform_(0.3, 2.0)
    evaluated: nn.Module = layer.to(dtype).eval()
    return evaluated


def batch_of(lengths: list[int], features: tuple[int, ...], dtype: torch.dtype) -> SequenceBatch:
    torch.manual_seed(1)
    return SequenceBatch(torch.randn(sum(lengths), *features).to(dtype), lengths)


class Normed(nn.Module):
    """A norm, from padded sequences and lengths to padded sequences, or from a batch to a batch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, given: Any, lengths: Tensor | None = None) -> Any:
        if lengths is None:
            return encode(self.layer, given)
        return encode(self.layer, SequenceBatch.from_padded(given, lengths, batch_first=True)).to_padded(
            batch_first=True
        )


def check(model: Normed, call: Any, batch: SequenceBatch) -> None:
    """Compare what is called on padded sequences, with NaN in their padding, with each sequence alone."""
    padded = batch.to_padded(batch_first=True, padding_value=float("nan"), total_length=batch.max_length + 2)
    found = call(padded, torch.tensor(batch.lengths, dtype=torch.int64))
    assert_close(found, model(batch).to_padded(batch_first=True))
    for row, sequence in zip(found, batch, strict=True):
        assert_close(row[: len(sequence)], run_alone(model.layer, [sequence])[0][0])


@every_case
def test_compiled(layer: Any, features: tuple[int, ...], held: torch.dtype, dtype: torch.dtype) -> None:
    model = Normed(trained(layer, held))
    graph: Any = compiled(model)
    for name in PATTERNS:
        batch = batch_of(PATTERNS[name], features, dtype)
        check(model, graph, batch)
    assert graphs() == 1
    # PyTorch makes other graphs for small sizes, which differ in sizes only. An exported program runs each of them.
    for lengths in SMALL.values() if layer is CASES[0][0] else ():
        if lengths:
            check(model, graph, batch_of(lengths, features, dtype))


def test_gradients() -> None:
    model = Normed(trained(nn.BatchNorm1d(4), DOUBLE))
    graph: Any = compiled(model)
    for lengths in PATTERNS.values():
        batch = batch_of(lengths, (4,), DOUBLE)
        padded = batch.to_padded(batch_first=True).requires_grad_()
        sources = [padded, *model.parameters()]
        counts = torch.tensor(lengths)
        found = torch.autograd.grad(graph(padded, counts).sin().sum(), sources)
        assert_close(found, torch.autograd.grad(model(padded, counts).sin().sum(), sources))


@every_case
def test_exported(layer: Any, features: tuple[int, ...], held: torch.dtype, dtype: torch.dtype) -> None:
    model = Normed(trained(layer, held))
    given = torch.zeros(3, 5, *features, dtype=dtype), torch.tensor([3, 5, 0])
    program = torch.export.export(model, given, dynamic_shapes=({0: BATCH, 1: TIME}, {0: BATCH}))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for lengths in SIZES.values():
        with torch.no_grad():
            check(model, loaded, batch_of(lengths, features, dtype))


@pytest.mark.parametrize(("layer", "features", "held", "dtype"), [CASES[i] for i in (0, 1, 2, 3, 5)], ids=str)
@IGNORED
def test_in_onnxruntime(
    layer: Any, features: tuple[int, ...], held: torch.dtype, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = Normed(trained(layer, held))
    run = Session(model, batch_of([3, 5, 0], features, dtype), tmp_path / "model.onnx")
    for lengths in SIZES.values():
        batch = batch_of(lengths, features, dtype)
        with torch.no_grad():
            assert_close(run(batch)[0], model(batch).to_padded(batch_first=True))


def test_hooks_run_in_a_graph_too() -> None:
    layer = trained(nn.BatchNorm1d(4), FLOAT)
    add: Any = torch.add
    layer.register_forward_hook(lambda module, given, result: add(result, 1))
    batch = batch_of([3, 2], (4,), FLOAT)
    assert_close(compiled(lambda batch: encode(layer, batch))(batch).values, layer(batch.values))
