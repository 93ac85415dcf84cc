"""Functions of batches as operators of PyTorch: what graphs of torch.compile and torch.export call and do not open.

A graph serves all lengths and knows none of them, and so no plan, no engine and no loop over steps. An operator is one
call in it, and does outside what it does without a graph.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from seqbatch._checks import complaint, lengths_of
from seqbatch._lengths import Lengths
from seqbatch._records import (
    Gradients,
    Record,
    Tensors,
    apart,
    find_record,
    gradients_of,
    no_receipt,
    nothing_like,
    receipt_for,
)
from seqbatch.errors import SeqbatchValueError

# From flat values, lengths, a list of other tensors, and options, to results.
Function = Callable[..., Tensors]


def make_operator(name: str, options: str, results: int, function: Function, like: Function) -> Function:
    """Make the operator `seqbatch::name`, and `seqbatch::name_backward` for its gradients.

    Args:
        name: the name.
        options: the schema of the options, each with a comma behind it, such as "int size, ".
        results: the number of results.
        function: from `(values, lengths, others, *options)` to the results, by functions that have gradients.
        like: the same with lengths as a tensor, and what results there hold does not matter.

    Returns:
        a function like these that calls the operator; lengths are a tensor `(batch,)`, int64, on the host.

    Source: `torch.library.custom_op`.
    """
    inputs = f"Tensor values, Tensor lengths, Tensor[] others, {options}bool[] wanted"

    @torch.library.custom_op(
        f"seqbatch::{name}", mutates_args=(), schema=f"({inputs}) -> ({', '.join(['Tensor'] * (results + 1))})"
    )
    def operator(values: Tensor, lengths: Tensor, others: list[Tensor], *rest: Any) -> Tensors:
        *options, wanted = rest
        call = _Call(function, values, lengths, options)
        if not any(wanted):
            with torch.no_grad():
                found = call([values, *others])
            return *apart(found, [values, *others]), no_receipt()
        record = Record.of(call, [values, *others], wanted)
        # Copies again, for the record needs what the graph may write over.
        return *(part.detach().clone() for part in record.results), receipt_for(record)

    @torch.library.custom_op(
        f"seqbatch::{name}_backward",
        mutates_args=(),
        schema=f"(Tensor?[] gradients, Tensor receipt, {inputs}) -> Tensor[]",
    )
    def operator_backward(
        gradients: Gradients, receipt: Tensor, values: Tensor, lengths: Tensor, others: list[Tensor], *rest: Any
    ) -> list[Tensor]:
        *options, wanted = rest
        record = find_record(receipt)
        if record is None or record.wanted != [*wanted]:
            record = Record.of(_Call(function, values, lengths, options), [values, *others], wanted)
        return record.gradients(gradients)

    @operator.register_fake
    def _(values: Tensor, lengths: Tensor, others: list[Tensor], *rest: Any) -> Tensors:
        *options, wanted = rest
        return *like(values, lengths, others, *options), no_receipt(keeps=any(wanted))

    @operator_backward.register_fake
    def _(
        gradients: Gradients, receipt: Tensor, values: Tensor, lengths: Tensor, others: list[Tensor], *rest: Any
    ) -> Any:
        sources = zip([values, *others], rest[-1], strict=True)
        return [torch.empty_like(source) if asked else nothing_like(source) for source, asked in sources]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        values, lengths, others, *ctx.options, _ = inputs
        ctx.save_for_backward(output[-1], values, lengths, *others)
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        receipt, values, lengths, *others = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2]]
        if torch.is_grad_enabled():  # gradients of gradients, which the operator for gradients has not
            results = _Call(function, values, lengths, ctx.options)([values, *others])
            found = gradients_of(results, gradients[:-1], [values, *others], wanted, again=True)
        else:
            found = operator_backward(gradients[:-1], receipt, values, lengths, others, *ctx.options, wanted)
        first, *rest = (part if asked else None for part, asked in zip(found, wanted, strict=True))
        return first, None, rest, *(None for _ in ctx.options), None

    operator.register_autograd(backward, setup_context=setup_context)

    def call(values: Tensor, lengths: Tensor, others: list[Tensor], *options: Any) -> Tensors:
        wanted = [_wants_gradient(part) for part in (values, *others)]
        *found, _ = operator(values, lengths, others, *options, wanted)
        return tuple(found)

    return call


class _Call:
    """A function with all that it is to be called with but the tensors that may have gradients."""

    def __init__(self, function: Function, values: Tensor, lengths: Tensor, options: Sequence[Any]) -> None:
        self.function, self.options = function, options
        self.lengths = _structure_of(lengths, values.shape[0])

    def __call__(self, tensors: Sequence[Tensor]) -> Tensors:
        # The graph around has cast already what autocast casts.
        with torch.autocast(tensors[0].device.type, enabled=False):
            return self.function(tensors[0], self.lengths, tensors[1:], *self.options)


def _wants_gradient(tensor: Tensor) -> bool:
    """Tell whether a backward pass may follow; what is exported has none."""
    return tensor.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_exporting()


def _structure_of(lengths: Tensor, steps: int) -> Lengths:
    """Give the structure of the lengths in a graph, which looks at them for the first time here, else raise."""
    counts = lengths_of("lengths", lengths)
    if sum(counts) != steps:
        raise complaint(SeqbatchValueError, "lengths", f"add up to {steps}, the steps of `values`", sum(counts))
    return _kept_structure(counts)


@lru_cache(maxsize=8)  # so that layers, directions and the backward pass share plans
def _kept_structure(counts: tuple[int, ...]) -> Lengths:
    return Lengths(counts)
