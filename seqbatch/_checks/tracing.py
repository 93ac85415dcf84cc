"""Refusals while `torch.compile` or `torch.export` traces, and checks that a graph makes at run time."""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from seqbatch._checks.grammar import complaint
from seqbatch._torch import check_tensor, in_a_graph, in_an_export, is_compiler_imported, keep_out_of_graphs
from seqbatch.errors import SeqbatchError

Encoder = TypeVar("Encoder", bound=Callable[..., Any])


def not_in_a_graph(what: str, remedy: str = "") -> SeqbatchError:
    """Build the error for what would specialize a graph on its lengths; `remedy` says how to avoid that."""
    disabled = "or in a function that torch.compiler.disable keeps out of the graph"
    # An exported graph holds the whole call, so disabling a part of it is not a remedy.
    outside = "Call it outside." if in_an_export() else f"Call it outside, {disabled}."
    must = "serve all lengths, so that nothing in it may depend on their numbers"
    remedy = f"{remedy} Or call{outside[4:]}" if remedy else outside
    return complaint(SeqbatchError, "graph of torch.compile or torch.export", must, what, remedy)


def refuse_in_a_graph(what: str) -> None:
    """Raise while `torch.compile` or `torch.export` traces, because `what` is unknown then."""
    if in_a_graph():
        raise not_in_a_graph(f"a call that needs {what}")


def refuse_layer_in_a_graph(layer: nn.Module, cause: Callable[[nn.Module], tuple[str, str]]) -> None:
    """Raise while `torch.compile` or `torch.export` traces; `cause` returns what is refused, and the remedy."""
    if in_a_graph():
        raise not_in_a_graph(*cause(layer))


def require_in_graph(holds: Tensor, message: str) -> None:
    """Add a check to the graph, which raises at run time unless `holds` is True; it does not synchronize."""
    check_tensor(holds, message)


def _by_type(layer: nn.Module) -> tuple[str, str]:
    return f"a layer of type {type(layer).__name__}", ""


def outside_graphs(
    encoder: Encoder,
    because: str = "this layer runs by their numbers",
    cause: Callable[[nn.Module], tuple[str, str]] = _by_type,
) -> Encoder:
    """Keep an encoder that reads the values of the lengths, or calls hooks, out of every graph.

    `torch.compile` has a graph break there, and `torch.export` raises. This is `torch.compiler.disable` without
    importing PyTorch's compiler together with seqbatch.

    Args:
        encoder: a function of a layer and any other arguments.
        because: the reason that `torch.compile` shows for the graph break.
        cause: returns why a layer cannot be traced, and the remedy, for the error of `torch.export`.
    """
    disabled: Callable[[], Any] = cache(lambda: torch.compiler.disable(encoder))

    def run(layer: nn.Module, *arguments: Any) -> Any:
        refuse_layer_in_a_graph(layer, cause)  # in `torch.export`, where there is nothing outside of the graph
        return (disabled() if is_compiler_imported() else encoder)(layer, *arguments)

    # Because `torch.compile` would otherwise trace the error above.
    keep_out_of_graphs(run, f"seqbatch: a graph must serve all lengths, and {because}")
    return cast("Encoder", run)
