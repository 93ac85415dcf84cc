"""Functions of batches as operators of PyTorch, which graphs of torch.compile and torch.export call and do not open.

A graph serves all lengths and knows none of them. So it cannot hold a plan, an engine or a loop over steps. An operator
is one call in the graph, and does what is done without a graph.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from seqbatch._checks.arguments import lengths_of
from seqbatch._checks.grammar import complaint
from seqbatch._structure.sequence_lengths import Lengths
from seqbatch._torch import is_transformed
from seqbatch.errors import SeqbatchError, SeqbatchValueError

Tensors = tuple[Tensor, ...]
Gradients = Sequence[Tensor | None]
# From flat values, lengths, a list of other tensors if the operator takes one, and options, to results.
Function = Callable[..., Tensors]
# So that layers, directions and the backward pass share plans.
_cached_lengths = lru_cache(maxsize=8)(Lengths)


class Operator:
    """The operator `seqbatch::name`, and `seqbatch::name_backward`, which computes its gradients.

    The backward operator runs the function again and differentiates it, unless `backward` computes the gradients from
    what the function saved.

    Args:
        name: the name.
        arguments: the schema of what follows values and lengths, as "Tensor[] others, int size".
        results: the number of results.
        function: from `(values, lengths, ...)` to the results and the saved tensors. It consists of functions that
            have gradients, and need not save anything while gradients are recorded.
        fake: the same without reading values or lengths, which are a Tensor here: only sizes and dtypes count.
        saved: the number of saved tensors.
        backward: from `(gradients, saved, wanted, values, lengths, ...)` to the gradients of values and others, or
            None if it cannot compute them. `wanted` says which of them are read.
        steps_of: from `(values, ...)`, without the lengths, to the number that the lengths must add up to: the rows
            of the values, unless these have a row for each sequence.

    Source: `torch.library.custom_op`.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        results: int,
        function: Function,
        fake: Function,
        saved: int = 0,
        backward: Callable[..., Gradients | None] = lambda *given: None,
        steps_of: Callable[..., int] = lambda values, *rest: len(values),
    ) -> None:
        self.results, self.saved = results, saved
        self.function, self.fake, self.own_backward, self.steps_of = function, fake, backward, steps_of
        self.has_others = arguments.startswith("Tensor[]")
        inputs = f"Tensor values, Tensor lengths, {arguments}"
        outputs = ", ".join(["Tensor"] * (results + saved))
        make = torch.library.custom_op
        self.forward = make(f"seqbatch::{name}", self._run, mutates_args=(), schema=f"({inputs}) -> ({outputs})")
        self.backward = make(
            f"seqbatch::{name}_backward",
            self._run_backward,
            mutates_args=(),
            schema=f"(Tensor?[] gradients, Tensor[] saved, bool[] wanted, {inputs}) -> Tensor[]",
        )
        self.forward.register_fake(self._fake)
        self.backward.register_fake(self._fake_backward)
        self.forward.register_autograd(self._differentiate, setup_context=self._setup_context)

    def __call__(self, values: Tensor, lengths: Tensor, *rest: Any) -> Tensors:
        """Call the operator and return its results; lengths are `(batch,)`, int64, on the host."""
        _refuse_transforms()
        return _as_tuple(self.forward(values, lengths, *rest))[: self.results]

    def _sources(self, values: Tensor, rest: Sequence[Any]) -> list[Tensor]:
        """Return the tensors that may have gradients."""
        return [values, *(rest[0] if self.has_others else ())]

    def _checked(self, lengths: Tensor, values: Tensor, rest: Sequence[Any]) -> Lengths:
        """Return lengths whose values are read here for the first time, else raise."""
        counts, steps = lengths_of("lengths", lengths), self.steps_of(values, *rest)
        if sum(counts) != steps:
            raise complaint(SeqbatchValueError, "lengths", f"add up to {steps}, the steps of `values`", sum(counts))
        return _cached_lengths(counts)

    def _call(self, sources: Sequence[Tensor], lengths: Lengths, rest: Sequence[Any]) -> Tensors:
        """Call the function on other tensors than those in `rest`."""
        given = [[*sources[1:]], *rest[1:]] if self.has_others else rest
        # The graph has cast already what autocast casts.
        with torch.autocast(sources[0].device.type, enabled=False):
            return self.function(sources[0], lengths, *given)

    def _run(self, values: Tensor, lengths: Tensor, *rest: Any) -> Tensor | Tensors:
        _refuse_transforms()
        sources = self._sources(values, rest)
        with torch.no_grad():
            found = self._call(sources, self._checked(lengths, values, rest), rest)
        return _as_declared(_with_declared_strides(_without_shared_memory(found, sources)))

    def _run_backward(
        self, gradients: Gradients, saved: list[Tensor], wanted: list[bool], *inputs: Any
    ) -> list[Tensor]:
        values, lengths, *rest = inputs
        sources, checked = self._sources(values, rest), self._checked(lengths, values, rest)
        found = self.own_backward(gradients, saved, wanted, values, checked, *rest)
        if found is None:
            with torch.inference_mode(False):  # which also enables autograd, disabled in an operator
                own = [part.detach().requires_grad_(asked) for part, asked in zip(sources, wanted, strict=True)]
                found = self._gradients(self._call(own, checked, rest), gradients, own, wanted)
        triples = zip(sources, found, wanted, strict=True)
        parts = [_unwanted_gradient(source) if part is None or not asked else part for source, part, asked in triples]
        others = [*sources, *(part for part in gradients if part is not None)]
        return [*_with_declared_strides(_without_shared_memory(parts, others))]

    def _gradients(
        self,
        found: Tensors,
        gradients: Gradients,
        sources: list[Tensor],
        wanted: Sequence[bool],
        *,
        again: bool = False,
    ) -> Gradients:
        """Differentiate results; with `again` the gradients can be differentiated in turn."""
        pairs = zip(found[: self.results], gradients, strict=True)
        given = [(result, part) for result, part in pairs if part is not None and result.requires_grad]
        asked = [source for source, one in zip(sources, wanted, strict=True) if one]
        if not given or not asked:
            return [torch.zeros_like(source) if one else None for source, one in zip(sources, wanted, strict=True)]
        ends, weights = zip(*given, strict=True)
        parts = iter(torch.autograd.grad(ends, asked, weights, create_graph=again, materialize_grads=True))
        return [next(parts) if one else None for one in wanted]

    def _fake(self, values: Tensor, lengths: Tensor, *rest: Any) -> Tensor | Tensors:
        return _as_declared(_with_declared_strides(self.fake(values, lengths, *rest)))

    def _fake_backward(
        self, gradients: Gradients, saved: list[Tensor], wanted: list[bool], *inputs: Any
    ) -> list[Tensor]:
        values, _, *rest = inputs
        pairs = zip(self._sources(values, rest), wanted, strict=True)
        parts = (torch.empty_like(source) if asked else _unwanted_gradient(source) for source, asked in pairs)
        return [*_with_declared_strides(parts)]

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor | Tensors) -> None:
        values, lengths, *rest = inputs
        saved = _as_tuple(output)[self.results :]
        ctx.mark_non_differentiable(*saved)
        ctx.options = rest[1:] if self.has_others else rest
        ctx.save_for_backward(*saved, lengths, *self._sources(values, rest))
        ctx.set_materialize_grads(False)

    def _differentiate(self, ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors  # read once, because checkpoints return them once
        saved, lengths, sources = tensors[: self.saved], tensors[self.saved], [*tensors[self.saved + 1 :]]
        rest = [sources[1:], *ctx.options] if self.has_others else ctx.options
        wanted = [ctx.needs_input_grad[0], *(ctx.needs_input_grad[2] if self.has_others else ())]
        of_results, found = gradients[: self.results], None
        if torch.is_grad_enabled():  # gradients of gradients, which the backward operator does not have
            # Views, because one of them may be computed from another: no path through the graph around counts here.
            sources = [source.view_as(source) for source in sources]
            results = self._call(sources, self._checked(lengths, sources[0], rest), rest)
            found = self._gradients(results, of_results, sources, wanted, again=True)
        else:
            found = self.backward(of_results, saved, wanted, sources[0], lengths, *rest)
        first, *others = (part if asked else None for part, asked in zip(found, wanted, strict=True))
        return first, None, *([others] if self.has_others else []), *(None for _ in ctx.options)


def _refuse_transforms() -> None:
    """Raise where PyTorch transforms what is around: its forward mode would lose the tangents without a word."""
    if is_transformed():
        remedy = "Call encode, or the reduction, outside of torch.compile and of what is exported."
        found = "a transform of torch.func, or forward mode"
        raise complaint(SeqbatchError, "operator of seqbatch", "be differentiated backward only", found, remedy)


def _as_declared(tensors: Tensors) -> Tensor | Tensors:
    """Return one Tensor as itself, as the schema of an operator with one output requires."""
    return tensors[0] if len(tensors) == 1 else tensors


def _as_tuple(output: Tensor | Tensors) -> Tensors:
    """Return what an operator returns as a tuple."""
    return (output,) if isinstance(output, Tensor) else output


def _unwanted_gradient(source: Tensor) -> Tensor:
    """Return a tensor without elements, which stands for a gradient that is not wanted."""
    return source.new_empty(0)


def _without_shared_memory(results: Sequence[Tensor], given: Sequence[Tensor]) -> Tensors:
    """Copy those results that share memory with the inputs or with each other, which an operator must not return."""
    memories = {part.untyped_storage().data_ptr() for part in given}
    free = []
    for part in results:
        memory = part.untyped_storage().data_ptr()
        free.append(part.clone() if memory in memories else part)
        memories.add(memory)
    return tuple(free)


def _with_declared_strides(results: Iterable[Tensor]) -> Tensors:
    """Make results contiguous, because the graph reads them with the strides of the fake ones."""
    return tuple(part.contiguous() for part in results)
