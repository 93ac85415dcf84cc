"""Exported models in onnxruntime, and models to export."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graph_models import Function
from torch import Tensor, nn

import seqbatch.onnx
from seqbatch import SequenceBatch, encode

# Warnings about PyTorch's own exporter.
IGNORED = pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is",
    "ignore:.*onnx.*:DeprecationWarning",
)


class Session:
    """An exported model, run by onnxruntime."""

    def __init__(self, model: nn.Module, example: SequenceBatch, path: Path, *, batch_first: bool = True) -> None:
        self.program = seqbatch.onnx.export(model.eval(), example, path, batch_first=batch_first)
        onnx.checker.check_model(path, full_check=True)
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.batch_first = batch_first

    def __call__(self, batch: SequenceBatch) -> list[Tensor]:
        """Run it on a batch, padded by what must reach no result."""
        fill = {torch.int64: 10**9, torch.uint8: 255, torch.bool: True}.get(batch.dtype, float("nan"))
        padded = batch.to_padded(batch_first=self.batch_first, padding_value=fill, total_length=batch.max_length + 2)
        return self.given(padded, list(batch.lengths))

    def given(self, padded: Tensor, lengths: list[int]) -> list[Tensor]:
        given = {"padded": padded.numpy(), "lengths": np.array(lengths, np.int64)}
        return [torch.from_numpy(result) for result in self.session.run(None, given)]

    def names(self) -> list[str]:
        return [value.name for value in self.session.get_outputs()]

    def nodes(self) -> list[str]:
        return [node.op_type for node in self.program.model.graph]


class Told(nn.Module):
    """A model that gives what a function of the batch gives."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, batch: SequenceBatch) -> Any:
        return self.function(batch)


class Layered(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, batch: SequenceBatch) -> SequenceBatch:
        return encode(self.layer, batch)


class Within(Layered):
    """A model that runs its layer within a context, which PyTorch's exporter makes a graph of its own."""

    def __init__(self, layer: nn.Module, context: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__(layer)
        self.context = context

    def forward(self, batch: SequenceBatch) -> SequenceBatch:
        with self.context():
            return super().forward(batch)
