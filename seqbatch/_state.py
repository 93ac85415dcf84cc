"""State: the base class of states, and how the state of some sequences is selected or reset."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from seqbatch import _indices, graphs
from seqbatch._checks import complaint
from seqbatch._exporters import refuse_exporters
from seqbatch._indices import AnyScalar, Index, as_index
from seqbatch._not_a_tensor import NotATensor
from seqbatch._tracing import in_a_graph
from seqbatch.errors import SeqbatchTypeError


class State(NotATensor, ABC):
    """The methods of every state. A state is immutable: each call returns a new one, through which gradients flow.

    An index is an integer, a slice, a list of integers or bools, or an integer or bool Tensor or NumPy array, and
    selects sequences of the batch. A Tensor on a device is copied to the host, which synchronizes.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """The number of sequences."""

    @abstractmethod
    def _map(self, function: Callable[[Any], Any]) -> Self:
        """Apply a function to each part: a Tensor with the batch as its third axis, or a state."""

    def _require(self, method: str) -> None:  # only the parts of a container may lack one
        """Raise unless every part has a method."""

    def __getitem__(self, index: Index[AnyScalar]) -> Self:
        """The state of one sequence, or of several, its batch dimension kept; as `select`."""
        return self.select(index)

    # Annotated with None, which is not an iterator, so that type checkers report an iteration; NoReturn would pass.
    def __iter__(self) -> None:
        """Raise, because `hidden, cell = state` would otherwise unpack along the batch."""
        remedy = "Its parts are attributes, and state[i] is the state of sequence i."
        raise complaint(SeqbatchTypeError, "state", "not be iterated or unpacked", type(self).__name__, remedy)

    def select(self, indices: Index[AnyScalar]) -> Self:
        """Return the states of some sequences, in the order given.

        Args:
            indices: which sequences, by an integer or by any other index.

        Returns:
            a state of copies, through which gradients flow.

        Raises:
            SeqbatchIndexError: an index is out of range, or a mask has another length.
            SeqbatchTypeError: this is not an index, or a state in a container has no `select`.

        >>> RNNState(torch.tensor([[[[1.0], [2.0], [3.0]]]])).select([2, 0]).hidden.flatten()
        tensor([3., 1.])
        """
        self._require("select")
        chosen = _chosen(indices, self)
        return self._map(lambda part: _select(part, chosen))

    def reset(self, indices: Index[AnyScalar]) -> Self:
        """Set the states of some sequences to zeros, and keep those of the others.

        Args:
            indices: which sequences, by an integer or by any other index.

        Returns:
            a state of copies, through which gradients flow, except to the zeros.

        Raises:
            SeqbatchIndexError: an index is out of range, or a mask has another length.
            SeqbatchTypeError: this is not an index, or a state in a container has no `reset`.

        >>> RNNState(torch.tensor([[[[1.0], [2.0], [3.0]]]])).reset([True, False, True]).hidden.flatten()
        tensor([0., 2., 0.])
        """
        self._require("reset")
        chosen = _chosen(indices, self)
        return self._map(lambda part: _reset(part, chosen))

    def detach(self) -> Self:
        """Share the values without their gradient graph, as truncated back-propagation needs between chunks.

        Returns:
            a state of views, through which no gradients flow.

        Raises:
            SeqbatchTypeError: a state in a container has no `detach`.

        >>> RNNState(torch.zeros(1, 1, 3, 8, requires_grad=True)).detach().hidden.requires_grad
        False
        """
        self._require("detach")
        return self._map(lambda part: part.detach())

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Convert dtype or device, with the arguments of `torch.Tensor.to`.

        Returns:
            a state of copies, or of these very tensors where they are as asked; gradients flow.

        Raises:
            SeqbatchTypeError: a state in a container has no `to`.

        >>> RNNState(torch.zeros(1, 1, 3, 8)).to(torch.float64)
        RNNState(3 sequences, 1 layer, 1 direction, size 8, torch.float64, cpu)
        """
        self._require("to")
        return self._map(lambda part: part.to(*args, **kwargs))

    def float(self) -> Self:
        """Convert to float32, as `torch.Tensor.float`.

        Returns:
            a state of copies, or of these very tensors where they are float32; gradients flow.

        Raises:
            SeqbatchTypeError: a state in a container has no `to`.

        >>> RNNState(torch.zeros(1, 1, 3, 8).double()).float()
        RNNState(3 sequences, 1 layer, 1 direction, size 8, torch.float32, cpu)
        """
        return self.to(torch.float32)

    def double(self) -> Self:
        """Convert to float64, as `torch.Tensor.double`.

        Returns:
            a state of copies, or of these very tensors where they are float64; gradients flow.

        Raises:
            SeqbatchTypeError: a state in a container has no `to`.

        >>> RNNState(torch.zeros(1, 1, 3, 8)).double()
        RNNState(3 sequences, 1 layer, 1 direction, size 8, torch.float64, cpu)
        """
        return self.to(torch.float64)

    def half(self) -> Self:
        """Convert to float16, as `torch.Tensor.half`.

        Returns:
            a state of copies, or of these very tensors where they are float16; gradients flow.

        Raises:
            SeqbatchTypeError: a state in a container has no `to`.

        >>> RNNState(torch.zeros(1, 1, 3, 8)).half()
        RNNState(3 sequences, 1 layer, 1 direction, size 8, torch.float16, cpu)
        """
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        """Convert to bfloat16, as `torch.Tensor.bfloat16`.

        Returns:
            a state of copies, or of these very tensors where they are bfloat16; gradients flow.

        Raises:
            SeqbatchTypeError: a state in a container has no `to`.

        >>> RNNState(torch.zeros(1, 1, 3, 8)).bfloat16()
        RNNState(3 sequences, 1 layer, 1 direction, size 8, torch.bfloat16, cpu)
        """
        return self.to(torch.bfloat16)


def _chosen(index: Any, state: State) -> list[int] | Tensor:
    """Return the positions of an index, counted from the front, or raise; a Tensor stays as it is while tracing."""
    refuse_exporters()
    index = as_index("index", index)
    if isinstance(index, Tensor) and in_a_graph():
        return index
    if _indices.is_one_index(index):
        return [_indices.position("index", index, state.batch_size)]
    return _indices.positions("index", index, state.batch_size)


def _select(part: Any, chosen: list[int] | Tensor) -> Any:
    if not isinstance(part, Tensor):
        return part.select(chosen)
    index = _index(chosen, part)
    return part[:, :, index] if index.dtype is torch.bool else part.index_select(2, index)


def _reset(part: Any, chosen: list[int] | Tensor) -> Any:
    if not isinstance(part, Tensor):
        return part.reset(chosen)
    index = _index(chosen, part)
    # Not by positions, because their number is unknown while tracing.
    return part.masked_fill(index[:, None], 0) if index.dtype is torch.bool else part.index_fill(2, index, 0)


def _index(chosen: list[int] | Tensor, tensor: Tensor) -> Tensor:
    if isinstance(chosen, Tensor):
        return graphs.chosen(chosen, tensor.shape[2]).to(tensor.device)
    return torch.tensor(chosen, dtype=torch.int64, device="cpu").to(tensor.device, non_blocking=True)
