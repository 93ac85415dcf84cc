"""Records of calls: the graph of autograd between what a function was given and gave, kept as long as its receipt.

PyTorch records nothing in an operator, and a graph that calls one keeps tensors for the backward pass, nothing else.
So the record hangs on the memory of a tensor, the receipt: it is found by it, and goes when nobody keeps it any more.
Where it is not found, as by a copy of the receipt, the call is made and recorded anew.
"""

from collections.abc import Callable, Iterable, Sequence
from weakref import WeakValueDictionary

import attrs
import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Gradients = Sequence[Tensor | None]


@attrs.frozen(eq=False)
class Record:
    """What a function was given and gave, and which of what it was given gradients are wanted of."""

    sources: list[Tensor]
    wanted: list[bool]
    results: Tensors

    @classmethod
    def of(
        cls, function: Callable[[list[Tensor]], Tensors], sources: Sequence[Tensor], wanted: Sequence[bool]
    ) -> "Record":
        """Call a function and record it.

        It is given copies: a graph may write over what was given to the operator as soon as it needs it no more.
        """
        with torch.inference_mode(False):  # which also ends that nothing is recorded in an operator
            own = [part.detach().clone().requires_grad_(asked) for part, asked in zip(sources, wanted, strict=True)]
            return cls(own, [*wanted], function(own))

    def gradients(self, gradients: Gradients) -> list[Tensor]:
        """Give the gradients of the sources; of those that are not wanted `nothing_like` them."""
        with torch.inference_mode(False):
            found = gradients_of(self.results, gradients, self.sources, self.wanted)
        results = [nothing_like(one) if part is None else part for one, part in zip(self.sources, found, strict=True)]
        return [*apart(results, [part for part in gradients if part is not None])]


class _Memory(bytearray):
    """The memory of a receipt: a tensor made of it keeps it, and it keeps the record."""

    __slots__ = ("__weakref__", "record")
    record: Record


_memories: WeakValueDictionary[int, _Memory] = WeakValueDictionary()


def receipt_for(record: Record) -> Tensor:
    """Give a tensor `(1,)`, uint8, on the host, which keeps a record."""
    memory = _Memory(1)
    memory.record = record
    receipt = torch.frombuffer(memory, dtype=torch.uint8)
    _memories[receipt.data_ptr()] = memory
    return receipt


def no_receipt(*, keeps: bool = False) -> Tensor:
    """Give a tensor that stands for no record; if it `keeps`, of the shape of one that does."""
    return torch.zeros(int(keeps), dtype=torch.uint8, device="cpu")


def find_record(receipt: Tensor) -> Record | None:
    """Find the record that a tensor is the receipt for."""
    memory = _memories.get(receipt.data_ptr())
    return None if memory is None else memory.record


def gradients_of(
    results: Tensors, gradients: Gradients, sources: list[Tensor], wanted: Sequence[bool], *, again: bool = False
) -> Gradients:
    """Give the gradients of the wanted sources, for those of the results; with `again` as functions of everything."""
    given = [pair for pair in zip(results, gradients, strict=True) if pair[1] is not None and pair[0].requires_grad]
    asked = [source for source, one in zip(sources, wanted, strict=True) if one]
    if not given or not asked:
        return [torch.zeros_like(source) if one else None for source, one in zip(sources, wanted, strict=True)]
    ends, weights = zip(*given, strict=True)
    found = iter(
        torch.autograd.grad(ends, asked, weights, retain_graph=True, create_graph=again, materialize_grads=True)
    )
    return [next(found) if one else None for one in wanted]


def nothing_like(source: Tensor) -> Tensor:
    """Give a tensor of no elements in place of one."""
    return source.new_empty(0)


def apart(results: Sequence[Tensor], given: Sequence[Tensor]) -> Tensors:
    """Copy those results that share memory with what was given or with each other, which an operator must not give."""
    memories = {part.untyped_storage().data_ptr() for part in given}
    free = []
    for part in results:
        memory = part.untyped_storage().data_ptr()
        free.append(part.clone() if memory in memories else part)
        memories.add(memory)
    return tuple(free)


def in_order(results: Iterable[Tensor]) -> Tensors:
    """Give results with their elements in order, as a graph reads them that has seen only what is like them."""
    return tuple(part.contiguous() for part in results)
