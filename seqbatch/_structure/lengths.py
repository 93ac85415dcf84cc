"""Integer arithmetic of lengths: offsets, orders and positions, and the cache of plans built from them.

Everything here is computed on the host, once per `Lengths`, and copied to a device once, without synchronizing.
"""

from array import array
from collections.abc import Callable, Iterable
from functools import partial
from itertools import accumulate, chain, pairwise
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from seqbatch._checks.tracing import refuse_in_a_graph
from seqbatch._kernels import row_copies
from seqbatch._structure.cached import Kept, outside_inference_mode
from seqbatch._torch import is_intercepted, lifted


class Movable(Protocol):
    """What can be copied to a device."""

    def to(self, device: torch.device) -> Self: ...


Made = TypeVar("Made", bound=Movable)
# The number of plans that a batch keeps. One model needs few; only padding to ever new lengths would add more.
KEPT_PLANS = 32
# On the host, because `torch.set_default_device` must not move them.
_arange, _full, _empty = (partial(make, device="cpu") for make in (torch.arange, torch.full, torch.empty))

# The number of steps that are added in one loop. Longer sequences are added chunk by chunk, so that rounding errors
# grow with the chunk and the number of chunks, not with the length. With 32, a million equal terms in single precision
# stay within the tolerance of `torch.testing.assert_close`; with 128 they do not.
CHUNK = 32


class Lengths:
    """The lengths of a batch, and all that is computed from them, on first use, and then kept.

    It is shared by every batch of the same structure, by all layers and directions.
    """

    # Pickles of batches name it by these, and not by the file of this version. `seqbatch` has it by this name.
    __module__, __qualname__ = "seqbatch", "_Lengths"

    def __init__(self, counts: tuple[int, ...]) -> None:
        self._hold(outside_inference_mode(lambda: ints(counts)))
        vars(self)["_counts"] = counts

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> "Lengths":
        """Create lengths from a tensor without reading the values, which are unknown while tracing.

        Args:
            tensor: `(batch,)`, int64, on the host.
        """
        lengths = cls.__new__(cls)
        lengths._hold(tensor)
        return lengths

    def _hold(self, tensor: Tensor) -> None:
        # `(batch,)`, int64, on the host. It is created at once, because a graph takes this tensor as its input.
        self.tensor = tensor
        self._plans: dict[tuple[object, ...], Any] = {}
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}
        # While tracing, the sizes of the tensors that were joined, if any were.
        self.sizes: tuple[int, ...] | None = None

    @classmethod
    def from_batch_sizes(cls, batch_sizes: list[int], order: list[int]) -> "Lengths":
        """Compute the lengths from PyTorch's packed form, and keep its order, so that packing again restores it.

        Args:
            batch_sizes: the number of sequences that have a step at each position, non-increasing.
            order: `(batch,)`, the caller's index of each packed sequence.
        """
        counts = [0] * len(order)
        for step, (running, after) in enumerate(pairwise([*batch_sizes, 0]), 1):
            for i in order[after:running]:
                counts[i] = step
        lengths = cls(tuple(counts))
        vars(lengths).update(_sorted=None, sequence_order=order, step_sizes=batch_sizes)
        return lengths

    @classmethod
    def from_packed(cls, tensor: Tensor, packing: tuple[Tensor, Tensor, Tensor], total: int) -> "Lengths":
        """Create lengths with the order of PyTorch's packed form, so that packing again restores it.

        Args:
            tensor: `(batch,)`, int64, on the host.
            packing: sorted_indices, unsorted_indices and batch_sizes of the packed form; int64, on the host.
            total: the steps of all sequences together.
        """
        lengths = cls.from_tensor(tensor)
        vars(lengths).update(_sorted=packing, _shortest=1, _longest=packing[2].shape[0], total=total)
        return lengths

    @classmethod
    def measured(cls, tensor: Tensor, shortest: int, longest: int, total: int) -> "Lengths":
        """Create lengths whose extremes and sum are known already, so that the values are not read one by one.

        Args:
            tensor: `(batch,)`, int64, on the host; at least one.
            shortest: the least length.
            longest: the greatest length.
            total: their sum.
        """
        lengths = cls.from_tensor(tensor)
        vars(lengths).update(_shortest=shortest, _longest=longest, total=total)
        return lengths

    def __len__(self) -> int:
        refuse_in_a_graph("lengths")
        return self.tensor.shape[0]

    def __reduce__(self) -> tuple[type["Lengths"], tuple[tuple[int, ...]]]:
        return Lengths, (self.counts,)

    def __deepcopy__(self, memo: object) -> "Lengths":
        return self  # because it is immutable, and sharing it keeps the plans

    @Kept
    def _counts(self) -> tuple[int, ...]:
        return tuple(self.tensor.tolist())

    @Kept
    def _shortest(self) -> int:
        return min(self._counts, default=0)

    @Kept
    def _longest(self) -> int:
        return max(self._counts, default=0)

    @Kept
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

    @Kept
    def offsets(self) -> Tensor:
        """`(batch + 1,)`, int64, on the host: where each sequence starts, and where the last ends."""
        return ints(accumulate(self.counts, initial=0))

    @Kept
    def segment_ids(self) -> Tensor:
        """`(total_steps,)`, int64, on the host: the sequence that each step belongs to."""
        return torch.repeat_interleave(self.tensor, output_size=self.total)

    @Kept
    def positions(self) -> Tensor:
        """`(total_steps,)`, int64, on the host: the index of each step in its sequence."""
        return _arange(self.total) - self.offsets.index_select(0, self.segment_ids)

    @Kept
    def _sorted(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """`order`, `rank` and `batch_sizes`, if the kernels compute them."""
        return row_copies.sort_lengths(self.tensor, self._longest) if row_copies.can_read(self.tensor) else None

    @Kept
    def sequence_order(self) -> list[int]:
        """The sequences from longest to shortest, equals in the caller's order."""
        if self._sorted:
            return self._sorted[0].tolist()
        return sorted(range(len(self)), key=self.counts.__getitem__, reverse=True)

    @Kept
    def order(self) -> Tensor:
        """`(batch,)`, int64, on the host: `sequence_order` as a tensor."""
        return self._sorted[0] if self._sorted else ints(self.sequence_order)

    @Kept
    def rank(self) -> Tensor:
        """`(batch,)`, int64, on the host: the position of each sequence in `order`."""
        if self._sorted:
            return self._sorted[1]
        places = [0] * len(self)
        for place, i in enumerate(self.sequence_order):
            places[i] = place
        return ints(places)

    @Kept
    def step_sizes(self) -> list[int]:
        """The values of `batch_sizes`, as ints."""
        if self._sorted:
            return self._sorted[2].tolist()
        sizes: list[int] = []
        for running, count in zip(range(len(self), 0, -1), sorted(self.counts), strict=True):
            sizes += [running] * (count - len(sizes))
        return sizes

    @Kept
    def batch_sizes(self) -> Tensor:
        """`(longest,)`, int64, on the host: the number of sequences that have a step at each position."""
        return self._sorted[2] if self._sorted else ints(self.step_sizes)

    @Kept
    def longest_first(self) -> Tensor:
        """`(3, batch)`, int64, on the host: start, steps and index of each sequence, in `sequence_order`."""
        order, starts, counts = self.sequence_order, self.offsets.tolist(), self.counts
        return ints((starts[i] for i in order), (counts[i] for i in order), order).view(3, len(order))

    @Kept
    def not_empty(self) -> Tensor:
        """`(number,)`, int64, on the host: the indices of the sequences that are not empty."""
        return ints(i for i, count in enumerate(self.counts) if count)

    def on(self, device: torch.device) -> "Lengths | _OnDevice":
        """Return what has the tensors above on a device, by the same names."""
        return self if device.type == "cpu" else _OnDevice(self, device)

    @property
    def jagged(self) -> Tensor:
        """The offsets for nested tensors on the host."""
        adopted = self._on_device.get(("jagged", torch.device("cpu")))
        return self.offsets if adopted is None else adopted

    def adopt_offsets(self, offsets: Tensor) -> None:
        """Use this very tensor for nested tensors on its device, because torch compares shapes by its identity."""
        self._on_device["jagged", offsets.device] = offsets

    def _copied(self, name: str, device: torch.device) -> Tensor:
        """Return a tensor of this name on a device, copied on first use."""
        refuse_in_a_graph(name)
        copied = self._on_device.get((name, device))
        if copied is None:
            copied = outside_inference_mode(lambda: to_device(getattr(self, name), device))
            if not is_intercepted():  # because tensors made in a transform are invalid after it
                self._on_device[name, device] = copied
        return copied

    def plan(self, make: Callable[..., Made], *options: object, device: torch.device) -> Made:
        """Return the plan `make(self, *options)` on a device, computed on first use."""
        refuse_in_a_graph("a plan of where steps are")
        key = (make, options, device)
        plan: Made | None = self._plans.get(key)
        if plan is None:
            plan = outside_inference_mode(lambda: make(self, *options).to(device))
            if is_intercepted():
                return plan
            self._plans[key] = plan
            for oldest in list(self._plans)[:-KEPT_PLANS]:
                self._plans.pop(oldest, None)  # another thread may have done so
        return plan

    @property
    def running(self) -> "Lengths":
        """The lengths without zeros; the flat values are the same."""
        # Not kept if it is this very object, because a reference cycle is freed by the garbage collector only.
        return self._without_zeros if 0 in self.counts else self

    @Kept
    def _without_zeros(self) -> "Lengths":
        return Lengths(tuple(count for count in self.counts if count))

    @Kept
    def chunks(self) -> tuple["Lengths", "Lengths"]:
        """Each sequence cut into chunks of at most `CHUNK` steps: the lengths of all chunks, and each one's number."""
        numbers = (self.tensor + (CHUNK - 1)) // CHUNK
        sizes = _full((int(numbers.sum()),), CHUNK)
        full = numbers > 0
        sizes[numbers.cumsum(0)[full] - 1] = (self.tensor - CHUNK * (numbers - 1))[full]
        return Lengths(tuple(sizes.tolist())), Lengths(tuple(numbers.tolist()))


def _copied(name: str) -> Any:
    return property(lambda view: view._lengths._copied(name, view._device))


class _OnDevice:
    """The tensors of `Lengths` on a device. `Lengths` holds the copies, because a reference cycle is freed late."""

    def __init__(self, lengths: Lengths, device: torch.device) -> None:
        self._lengths, self._device = lengths, device

    tensor: Tensor = _copied("tensor")
    offsets: Tensor = _copied("offsets")
    segment_ids: Tensor = _copied("segment_ids")
    positions: Tensor = _copied("positions")
    order: Tensor = _copied("order")
    rank: Tensor = _copied("rank")
    not_empty: Tensor = _copied("not_empty")

    @property
    def jagged(self) -> Tensor:
        """The offsets for nested tensors."""
        adopted = self._lengths._on_device.get(("jagged", self._device))
        return self.offsets if adopted is None else adopted


def ints(*parts: Iterable[int]) -> Tensor:
    """Build an int64 tensor on the host from all numbers of the parts; several times faster than `torch.tensor`."""
    numbers = array("q", parts[0] if len(parts) == 1 else chain.from_iterable(parts))
    if not numbers:
        return _empty(0, dtype=torch.int64)
    return lifted(torch.frombuffer(numbers, dtype=torch.int64))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to a device without synchronizing."""
    return tensor.to(device, non_blocking=True)
