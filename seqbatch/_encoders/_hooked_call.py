"""Call a layer as itself, with its hooks, although an encoder computes the result."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.tracing import outside_graphs
from seqbatch._encoders._graph_breaks import WHY_OUTSIDE_GRAPHS, cause_of
from seqbatch._torch import HOOKS, NOT_COMPILED, has_hooks, in_a_graph

Result = TypeVar("Result")
Rest = TypeVar("Rest")


def call_as_itself(
    layer: nn.Module, forward: Callable[..., tuple[Result, Rest]], *values: Tensor
) -> tuple[Result, Rest]:
    """Call a layer with another `forward`, so that its hooks and the global hooks run on the flat values.

    The caller's layer is not modified: a shallow copy is called, which shares parameters and layers, and whose hooks
    get the layer itself.

    Args:
        layer: the layer.
        forward: from the flat values to the result that hooks get and may replace, and to what they do not get, such
            as lengths or a state.
        values: the flat values, which hooks may replace too; those of memory after those of the queries.

    Returns:
        the result after the hooks, and what they did not get.
    """
    if not has_hooks(layer) and (in_a_graph() or type(layer).__call__ is nn.Module.__call__):
        return forward(*values)
    result: tuple[Result, Rest] = _call_copy_outside_graphs(layer, forward, *values)
    return result


def run_with_hooks(
    layer: nn.Module, batch: SequenceBatch, run: Callable[[SequenceBatch], tuple[SequenceBatch, Rest]]
) -> tuple[SequenceBatch, Rest]:
    """Run a layer as `call_as_itself`, by a function from a batch to a batch and to what hooks do not get."""

    def forward(values: Tensor) -> tuple[Tensor, tuple[SequenceBatch, Rest]]:
        outputs, rest = run(batch.with_values(values))
        return outputs.values, (outputs, rest)

    values, (outputs, rest) = call_as_itself(layer, forward, batch.values)
    return outputs.with_values(values), rest


def _call_copy(layer: nn.Module, forward: Callable[..., tuple[Any, Any]], *values: Tensor) -> tuple[Any, Any]:
    rest: Any = None

    def forward_of_copy(*values: Tensor) -> Any:
        nonlocal rest
        result, rest = forward(*values)
        return result

    # Not `copy.copy`, because it fails on a parametrized layer and copies the weights of a quantized one. Not the
    # `__new__` of the class, because that of a layer sharded by `fully_shard` creates another layer. Without the result
    # of `layer.compile`, because that would not call this forward.
    copied = object.__new__(type(layer))
    vars(copied).update(vars(layer), forward=forward_of_copy, **NOT_COMPILED)
    for kind in HOOKS:
        hooks = getattr(layer, kind)
        vars(copied)[kind] = OrderedDict((key, partial(_call_hook, hook, layer, copied)) for key, hook in hooks.items())
    result = copied(*values)
    # The copy and its hooks refer to each other. So the garbage collector frees them, but must not hold the result.
    del vars(copied)["forward"]
    return result, rest


_call_copy_outside_graphs: Any = outside_graphs(_call_copy, WHY_OUTSIDE_GRAPHS, cause_of)


def _call_hook(hook: Callable[..., Any], layer: nn.Module, copied: nn.Module, called: nn.Module, *rest: Any) -> Any:
    """Call a hook with the layer in place of its copy; `copied` is bound so that it lives as long as its hooks."""
    return hook(layer, *rest)
