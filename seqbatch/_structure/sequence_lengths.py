"""Lengths: integer arithmetic of the lengths of a batch, and the cache of plans built from them.

Everything here is computed on the host, once per `Lengths`, and copied to a device once, without synchronizing.
"""

from array import array
from collections.abc import Callable, Iterable
from functools import partial
from itertools import accumulate, chain, pairwise
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from seqbatch._checks.grammar import counted
from seqbatch._checks.tracing import refuse_in_a_graph
from seqbatch._kernels import row_copies
from seqbatch._structure.cached import CachedProperty, outside_inference_mode
from seqbatch._torch import in_a_graph, is_intercepted, lifted


class Movable(Protocol):
    """What can be copied to a device."""

    def to(self, device: torch.device) -> Self: ...


AnyPlan = TypeVar("AnyPlan", bound=Movable)
# The number of plans that `Lengths` keeps. One model needs few; only padding to ever new lengths would add more.
MAX_CACHED_PLANS = 32
# On the host, because `torch.set_default_device` must not move them.
_arange, _full, _empty = (partial(make, device="cpu") for make in (torch.arange, torch.full, torch.empty))

# The number of steps that are added in one loop. Longer sequences are added chunk by chunk, because rounding errors
# then grow with the chunk and the number of chunks, not with the length. With 32, a million equal terms in single
# precision stay within the tolerance of `torch.testing.assert_close`; with 128 they do not.
SUMMATION_CHUNK = 32


class Lengths:
    """The lengths of a batch, and what is computed from them on first use, and then kept: `batch.structure`.

    Every batch derived from another without changing its lengths shares it, and so do all layers and directions. The
    attribute of a batch is named `structure`, because `batch.lengths` is the tuple of integers.

    Authors of encoders may pass it on, `SequenceBatch(values, batch.structure)`, which costs no check of each length.
    They may read `counts`, `total`, `longest` and `shortest`, which are integers; and `tensor`, `offsets`,
    `segment_ids` and `positions`, which are tensors on the host that must not be modified. `on(device)` has the tensors
    on a device. Copies of these are `batch.offsets`, `batch.segment_ids` and `batch.positions`. All but `tensor` raise
    while a graph is traced.

    Args:
        values: the lengths, in steps: integers; or `(batch,)`, int64, on the host, whose values are not read here,
            because they are unknown while tracing.
    """

    # Pickles of batches name it by these, and not by the file of this version. `seqbatch` has it by this name.
    __module__, __qualname__ = "seqbatch", "_Lengths"

    def __init__(self, values: tuple[int, ...] | Tensor) -> None:
        # `(batch,)`, int64, on the host. It is created at once, because a graph takes this tensor as its input.
        self.tensor: Tensor
        if isinstance(values, tuple):
            self.tensor = outside_inference_mode(lambda: int64_tensor(values))
            vars(self)["_counts"] = values
        else:
            self.tensor = values
        self._plans: dict[tuple[object, ...], Any] = {}
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}
        # While tracing, the sizes of the tensors that were joined, if any were.
        self.traced_sizes: tuple[int, ...] | None = None

    @classmethod
    def from_batch_sizes(cls, batch_sizes: list[int], order: list[int]) -> "Lengths":
        """Compute the lengths from PyTorch's packed form, and keep its order, so that packing again restores it.

        Args:
            batch_sizes: the number of sequences that have a step at each position, non-increasing.
            order: `(batch,)`, the caller's index of each packed sequence.
        """
        counts = [0] * len(order)
        for step, (size, next_size) in enumerate(pairwise([*batch_sizes, 0]), 1):
            for i in order[next_size:size]:
                counts[i] = step
        lengths = cls(tuple(counts))
        vars(lengths).update(_kernel_sorting=None, order_list=order, batch_size_list=batch_sizes)
        return lengths

    @classmethod
    def from_packed(cls, tensor: Tensor, packing: tuple[Tensor, Tensor, Tensor], total: int) -> "Lengths":
        """Create lengths with the order of PyTorch's packed form, so that packing again restores it.

        Args:
            tensor: `(batch,)`, int64, on the host.
            packing: sorted_indices, unsorted_indices and batch_sizes of the packed form; int64, on the host.
            total: the steps of all sequences together.
        """
        lengths = cls(tensor)
        vars(lengths).update(_kernel_sorting=packing, _shortest=1, _longest=packing[2].shape[0], total=total)
        return lengths

    @classmethod
    def from_measurements(cls, tensor: Tensor, shortest: int, longest: int, total: int) -> "Lengths":
        """Create lengths whose extremes and sum are known already, so that the values are not read one by one.

        Args:
            tensor: `(batch,)`, int64, on the host; at least one.
            shortest: the least length.
            longest: the greatest length.
            total: their sum.
        """
        lengths = cls(tensor)
        vars(lengths).update(_shortest=shortest, _longest=longest, total=total)
        return lengths

    def __len__(self) -> int:
        refuse_in_a_graph("lengths")
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'unknown while tracing' if in_a_graph() else self.summary()})"

    def summary(self) -> str:
        """Return the number of sequences and their steps, such as "2 sequences of 7 to 10 steps"."""
        longest = counted(self.longest, "step")
        steps = longest if self.shortest == self.longest else f"{self.shortest} to {longest}"
        return counted(len(self), "sequence") + (f" of {steps}" if len(self) else "")

    def __reduce__(self) -> tuple[type["Lengths"], tuple[tuple[int, ...]]]:
        return Lengths, (self.counts,)

    def __deepcopy__(self, memo: object) -> "Lengths":
        return self  # because it is immutable, and sharing it keeps the plans

    @CachedProperty
    def _counts(self) -> tuple[int, ...]:
        return tuple(self.tensor.tolist())

    @CachedProperty
    def _shortest(self) -> int:
        return min(self._counts, default=0)

    @CachedProperty
    def _longest(self) -> int:
        return max(self._counts, default=0)

    @CachedProperty
    def total(self) -> int:
        """The steps of all sequences together."""
        return sum(self._counts)

    @property
    def counts(self) -> tuple[int, ...]:
        """The values of `tensor`, as ints."""
        refuse_in_a_graph("lengths")  # at each call, because a graph that read cached values would be specialized
        return self._counts

    @property
    def longest(self) -> int:
        """The steps of the longest sequence; 0 if there is none."""
        refuse_in_a_graph("max_length")
        return self._longest

    @property
    def shortest(self) -> int:
        """The steps of the shortest sequence; 0 if there is none."""
        refuse_in_a_graph("lengths")
        return self._shortest

    @CachedProperty
    def offsets(self) -> Tensor:
        """`(batch + 1,)`, int64, on the host: where each sequence starts, and where the last ends."""
        return int64_tensor(accumulate(self.counts, initial=0))

    @CachedProperty
    def segment_ids(self) -> Tensor:
        """`(total_steps,)`, int64, on the host: the sequence that each step belongs to."""
        return torch.repeat_interleave(self.tensor, output_size=self.total)

    @CachedProperty
    def positions(self) -> Tensor:
        """`(total_steps,)`, int64, on the host: the index of each step in its sequence."""
        return _arange(self.total) - self.offsets.index_select(0, self.segment_ids)

    @CachedProperty
    def _kernel_sorting(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """`order`, `rank` and `batch_sizes`, if the kernels compute them."""
        return row_copies.sort_lengths(self.tensor, self._longest) if row_copies.can_read(self.tensor) else None

    @CachedProperty
    def order_list(self) -> list[int]:
        """The sequences from longest to shortest, equals in the caller's order."""
        if self._kernel_sorting:
            return self._kernel_sorting[0].tolist()
        return sorted(range(len(self)), key=self.counts.__getitem__, reverse=True)

    @CachedProperty
    def order(self) -> Tensor:
        """`(batch,)`, int64, on the host: `order_list` as a tensor."""
        return self._kernel_sorting[0] if self._kernel_sorting else int64_tensor(self.order_list)

    @CachedProperty
    def rank(self) -> Tensor:
        """`(batch,)`, int64, on the host: the position of each sequence in `order`."""
        if self._kernel_sorting:
            return self._kernel_sorting[1]
        places = [0] * len(self)
        for place, i in enumerate(self.order_list):
            places[i] = place
        return int64_tensor(places)

    @CachedProperty
    def batch_size_list(self) -> list[int]:
        """The values of `batch_sizes`, as ints."""
        if self._kernel_sorting:
            return self._kernel_sorting[2].tolist()
        sizes: list[int] = []
        for size, count in zip(range(len(self), 0, -1), sorted(self.counts), strict=True):
            sizes += [size] * (count - len(sizes))
        return sizes

    @CachedProperty
    def batch_sizes(self) -> Tensor:
        """`(longest,)`, int64, on the host: the number of sequences that have a step at each position."""
        return self._kernel_sorting[2] if self._kernel_sorting else int64_tensor(self.batch_size_list)

    @CachedProperty
    def not_empty(self) -> Tensor:
        """`(number,)`, int64, on the host: the indices of the sequences that are not empty."""
        return int64_tensor(i for i, count in enumerate(self.counts) if count)

    def on(self, device: torch.device) -> "Lengths | _LengthsOnDevice":
        """Return an object with the tensors above on a device, by the same names."""
        return self if device.type == "cpu" else _LengthsOnDevice(self, device)

    def nested_offsets(self, device: torch.device) -> Tensor:
        """Return the offsets for nested tensors on a device: those adopted, if any were."""
        adopted = self._on_device.get(("nested_offsets", device))
        return self.on(device).offsets if adopted is None else adopted

    def adopt_nested_offsets(self, offsets: Tensor) -> None:
        """Use this very tensor for nested tensors on its device, because torch compares shapes by its identity."""
        self._on_device["nested_offsets", offsets.device] = offsets

    def copy_on(self, device: torch.device, name: str) -> Tensor:
        """Return a tensor of this name on a device, copied on first use."""
        refuse_in_a_graph(name)
        copied = self._on_device.get((name, device))
        if copied is None:
            copied = outside_inference_mode(lambda: to_device(getattr(self, name), device))
            if not is_intercepted():  # because tensors made in a transform are invalid after it
                self._on_device[name, device] = copied
        return copied

    def plan(self, make: Callable[..., AnyPlan], *options: object, device: torch.device) -> AnyPlan:
        """Return the plan `make(self, *options)` on a device, computed on first use."""
        refuse_in_a_graph("a plan of where steps are")
        key = (make, options, device)
        plan: AnyPlan | None = self._plans.get(key)
        if plan is None:
            plan = outside_inference_mode(lambda: make(self, *options).to(device))
            if is_intercepted():
                return plan
            self._plans[key] = plan
            for oldest in list(self._plans)[:-MAX_CACHED_PLANS]:
                self._plans.pop(oldest, None)  # another thread may have done so
        return plan

    @property
    def without_empty(self) -> "Lengths":
        """The lengths of the sequences that are not empty; the flat values are the same."""
        # Not kept if it is this very object, because a reference cycle is freed by the garbage collector only.
        return self._without_empty if 0 in self.counts else self

    @CachedProperty
    def _without_empty(self) -> "Lengths":
        return Lengths(tuple(count for count in self.counts if count))

    def prefix(self, number: int) -> "Lengths":
        """Return the lengths of the first sequences, with views of the tensors that are known of all."""
        first = Lengths(self.counts[:number])
        total = int(self.offsets[number])
        sizes = {"offsets": number + 1, "segment_ids": total, "positions": total}
        for name, size in sizes.items():
            if name in vars(self):
                vars(first)[name] = outside_inference_mode(partial(vars(self)[name].narrow, 0, 0, size))
        for (name, device), there in self._on_device.items():
            if name in sizes:
                first._on_device[name, device] = outside_inference_mode(partial(there.narrow, 0, 0, sizes[name]))
        return first

    @CachedProperty
    def summation_chunks(self) -> tuple["Lengths", "Lengths"]:
        """The lengths of chunks of at most `SUMMATION_CHUNK` steps, and the number of chunks of each sequence."""
        numbers = (self.tensor + (SUMMATION_CHUNK - 1)) // SUMMATION_CHUNK
        sizes = _full((int(numbers.sum()),), SUMMATION_CHUNK)
        full = numbers > 0
        sizes[numbers.cumsum(0)[full] - 1] = (self.tensor - SUMMATION_CHUNK * (numbers - 1))[full]
        return Lengths(tuple(sizes.tolist())), Lengths(tuple(numbers.tolist()))


def _copy_property(name: str) -> Any:
    return property(lambda view: view.lengths.copy_on(view.device, name))


class _LengthsOnDevice:
    """The tensors of `Lengths` on a device. `Lengths` holds the copies, because a reference cycle is freed late."""

    def __init__(self, lengths: Lengths, device: torch.device) -> None:
        self.lengths: Lengths = lengths
        self.device: torch.device = device

    tensor: Tensor = _copy_property("tensor")
    offsets: Tensor = _copy_property("offsets")
    segment_ids: Tensor = _copy_property("segment_ids")
    positions: Tensor = _copy_property("positions")
    order: Tensor = _copy_property("order")
    rank: Tensor = _copy_property("rank")
    not_empty: Tensor = _copy_property("not_empty")


def int64_tensor(*parts: Iterable[int]) -> Tensor:
    """Build an int64 tensor on the host from all numbers of the parts; several times faster than `torch.tensor`."""
    numbers = array("q", parts[0] if len(parts) == 1 else chain.from_iterable(parts))
    if not numbers:
        return _empty(0, dtype=torch.int64)
    return lifted(torch.frombuffer(numbers, dtype=torch.int64))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to a device without synchronizing."""
    return tensor.to(device, non_blocking=True)
