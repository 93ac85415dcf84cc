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
from seqbatch._modes import is_transformed
from seqbatch._records import (
    Gradients,
    Record,
    Tensors,
    apart,
    find_record,
    gradients_of,
    in_order,
    no_receipt,
    nothing_like,
    receipt_for,
)
from seqbatch.errors import SeqbatchError, SeqbatchValueError

# From flat values, lengths, a list of other tensors if it takes any, and options, to results.
Function = Callable[..., Tensors]


class Operator:
    """The operator `seqbatch::name`, and `seqbatch::name_backward` for its gradients.

    Both are given, behind all else, of which tensors gradients are wanted: values, and then the others.

    Args:
        name: the name.
        arguments: the schema of what stands behind values and lengths, as "Tensor[] others, int size, ".
        results: the number of results.
        function: from `(values, lengths, ...)` to the results, by functions that have gradients.
        like: the same with lengths as a tensor; what the results hold does not matter.

    Source: `torch.library.custom_op`.
    """

    def __init__(self, name: str, arguments: str, results: int, function: Function, like: Function) -> None:
        self.function, self.like = function, like
        self.has_others = arguments.startswith("Tensor[]")
        inputs = f"Tensor values, Tensor lengths, {arguments}bool[] wanted"
        outputs = ", ".join(["Tensor"] * results)
        make = torch.library.custom_op
        self.forward = make(
            f"seqbatch::{name}", self._run, mutates_args=(), schema=f"({inputs}) -> ({outputs}, Tensor receipt)"
        )
        self.backward = make(
            f"seqbatch::{name}_backward",
            self._run_backward,
            mutates_args=(),
            schema=f"(Tensor?[] gradients, Tensor receipt, {inputs}) -> Tensor[]",
        )
        self.forward.register_fake(self._fake)
        self.backward.register_fake(self._fake_backward)
        self.forward.register_autograd(self._differentiate, setup_context=self._keep)

    def __call__(self, values: Tensor, lengths: Tensor, *rest: Any) -> Tensors:
        """Call the operator; lengths are a tensor `(batch,)`, int64, on the host."""
        _refuse_transforms()
        wanted = [_wants_gradient(part) for part in self._sources(values, rest)]
        *found, _ = self.forward(values, lengths, *rest, wanted)
        return tuple(found)

    def _sources(self, values: Tensor, rest: Sequence[Any]) -> list[Tensor]:
        """Give the tensors that may have gradients."""
        return [values, *(rest[0] if self.has_others else ())]

    def _caller(self, lengths: Tensor, rest: Sequence[Any], steps: int) -> Callable[[Sequence[Tensor]], Tensors]:
        """Give the function with all that it takes but these tensors."""
        structure, options = _structure_of(lengths, steps), rest[1:] if self.has_others else rest

        def call(sources: Sequence[Tensor]) -> Tensors:
            others = [[*sources[1:]]] if self.has_others else []
            # The graph around has cast already what autocast casts.
            with torch.autocast(sources[0].device.type, enabled=False):
                return self.function(sources[0], structure, *others, *options)

        return call

    def _run(self, values: Tensor, lengths: Tensor, *more: Any) -> Tensors:
        *rest, wanted = more
        _refuse_transforms()
        sources, call = self._sources(values, rest), self._caller(lengths, rest, values.shape[0])
        if not any(wanted):
            with torch.no_grad():
                found = call(sources)
            return *in_order(apart(found, sources)), no_receipt()
        record = Record.of(call, sources, wanted)
        # Copies, for the record needs what the graph may write over.
        return *in_order(part.detach().clone() for part in record.results), receipt_for(record)

    def _run_backward(
        self, gradients: Gradients, receipt: Tensor, values: Tensor, lengths: Tensor, *more: Any
    ) -> list[Tensor]:
        *rest, wanted = more
        record = find_record(receipt)
        if record is None or record.wanted != [*wanted]:
            call = self._caller(lengths, rest, values.shape[0])
            record = Record.of(call, self._sources(values, rest), wanted)
        return [*in_order(record.gradients(gradients))]

    def _fake(self, values: Tensor, lengths: Tensor, *rest: Any) -> Tensors:
        return *in_order(self.like(values, lengths, *rest[:-1])), no_receipt(keeps=any(rest[-1]))

    def _fake_backward(
        self, gradients: Gradients, receipt: Tensor, values: Tensor, lengths: Tensor, *rest: Any
    ) -> list[Tensor]:
        pairs = zip(self._sources(values, rest), rest[-1], strict=True)
        return [*in_order(torch.empty_like(source) if asked else nothing_like(source) for source, asked in pairs)]

    def _keep(self, ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        values, lengths, *rest, _ = inputs
        ctx.options = rest[1:] if self.has_others else rest
        ctx.save_for_backward(output[-1], lengths, *self._sources(values, rest))
        ctx.set_materialize_grads(False)

    def _differentiate(self, ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        receipt, lengths, *sources = ctx.saved_tensors
        rest = [sources[1:], *ctx.options] if self.has_others else ctx.options
        wanted = [ctx.needs_input_grad[0], *(ctx.needs_input_grad[2] if self.has_others else ())]
        found: Gradients
        if torch.is_grad_enabled():  # gradients of gradients, which the operator for gradients has not
            results = self._caller(lengths, rest, sources[0].shape[0])(sources)
            found = gradients_of(results, gradients[:-1], sources, wanted, again=True)
        else:
            found = self.backward(gradients[:-1], receipt, sources[0], lengths, *rest, wanted)
        first, *others = (part if asked else None for part, asked in zip(found, wanted, strict=True))
        return first, None, *([others] if self.has_others else []), *(None for _ in ctx.options), None


def _refuse_transforms() -> None:
    """Raise where PyTorch transforms what is around: its forward mode would lose the tangents without a word."""
    if is_transformed():
        remedy = "Call encode, or the reduction, outside of torch.compile and of what is exported."
        found = "a transform of torch.func, or forward mode"
        raise complaint(SeqbatchError, "operator of seqbatch", "be differentiated backward only", found, remedy)


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
