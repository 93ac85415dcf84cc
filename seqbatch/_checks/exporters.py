"""Refusal of the exporters of PyTorch that would keep the lengths of an example: tracing, scripting, torch.onnx."""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch.jit import is_tracing  # type: ignore[attr-defined]  # documented, and left out of its `__all__`

from seqbatch._checks.grammar import complaint
from seqbatch._torch import constant_in_graphs, in_an_export, set_scripted
from seqbatch.errors import SeqbatchError

Function = TypeVar("Function", bound=Callable[..., Any])


def refuse_exporters() -> None:
    """Raise if this thread runs the model for `torch.jit.trace` or `torch.onnx.export`."""
    if is_tracing():
        raise _not_by("torch.onnx.export" if torch.onnx.is_in_onnx_export() else "torch.jit.trace")
    if in_an_export() and _exports_to_onnx():
        raise _not_by("torch.onnx.export")


@constant_in_graphs  # because Dynamo takes `is_in_onnx_export` itself for False
def _exports_to_onnx() -> bool:
    """Return True during `torch.onnx.export`; seqbatch.onnx calls it with a finished graph, which runs no model."""
    return torch.onnx.is_in_onnx_export()


def unscriptable(function: Function) -> Function:
    """Make `torch.jit.script` of what calls a function raise an error that names the remedy."""
    set_scripted(function, _refuse_scripting)
    return function


def _refuse_scripting() -> NoReturn:
    raise _not_by("torch.jit.script")


def _not_by(exporter: str) -> SeqbatchError:
    """Make the error for an exporter that does not serve all lengths."""
    if exporter == "torch.onnx.export":
        remedy = "Call seqbatch.onnx.export, which takes a SequenceBatch as its example."
    else:
        remedy = "Call torch.export.export, or seqbatch.onnx.export for ONNX."
    return complaint(SeqbatchError, "model", "be exported in a way that serves all lengths", exporter, remedy)
