"""Which engine runs a layer: the first in a fixed order that can run the call."""

from typing import Any

import torch
from torch import Tensor

from seqbatch._engines import by_length, native, one_by_one, packed, stepwise
from seqbatch._engines._interface import Engine, EngineCall
from seqbatch._engines._stock import is_stock_recurrent, takes_packed
from seqbatch._torch import STOCK_TENSORS, has_backward_hooks, is_intercepted, is_parametrized

# In this order, because an engine is asked only if none before it can run the call:
# - `native` runs stock layers on the CPU, in single and double precision, by the kernels: the fastest;
# - `stepwise` runs stock layers where a transform, a dispatch mode or a subclass of Tensor must see each operation,
#   because these support neither kernels nor packed sequences;
# - `packed` calls any layer whose `forward` is PyTorch's own, on every device, unless its hooks need Tensors;
# - `by_length` calls a layer on the sequences of each length as one Tensor, so that its `forward` may be its own;
# - `one_by_one` calls a layer on each sequence, so it can run every layer.
ENGINES: tuple[Engine, ...] = (native, stepwise, packed, by_length, one_by_one)


def describe_call(layer: Any, values: Tensor, rounds_by_range: bool) -> EngineCall:
    """Collect what decides which engine runs a layer on flat values.

    `rounds_by_range` says whether the layer is quantized and rounds its input by the range of the whole input.
    """
    is_stock = is_stock_recurrent(layer)
    runs_backward_hooks = not is_stock and torch.is_grad_enabled() and has_backward_hooks(layer)
    must_be_seen = is_intercepted() or type(values) not in STOCK_TENSORS
    return EngineCall(  # in order, because names would take longer
        layer,
        values,
        is_stock,
        is_stock or takes_packed(layer),
        runs_backward_hooks,
        is_parametrized(layer),
        rounds_by_range,
        must_be_seen,
        torch.is_autocast_enabled("cpu"),
    )


def choose(call: EngineCall) -> Engine:
    """Return the first engine that can run a call."""
    engines = iter(ENGINES)  # not by a generator, because one takes longer than asking an engine
    while not (engine := next(engines)).can_run(call):
        pass
    return engine
