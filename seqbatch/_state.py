"""The states that recurrent layers carry from step to step, sequence by sequence, and those of containers."""

import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import attrs
import torch
from torch import Tensor, nn

from seqbatch import _ops
from seqbatch._checks.arguments import require_tensor
from seqbatch._checks.exporters import refuse_exporters
from seqbatch._checks.gathering import require_gatherable
from seqbatch._checks.grammar import complaint, counted, traits, type_name
from seqbatch._checks.indices import AnyScalar, Index, as_index
from seqbatch._checks.not_a_tensor import NotATensor
from seqbatch._ops import traced
from seqbatch._torch import register_pytree, skipped_in_graphs
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError


class State(NotATensor, ABC):
    """The methods of every state. A state is immutable: each call returns a new one, through which gradients flow.

    An index is an integer, a slice, a list of integers or bools, or an integer or bool Tensor or NumPy array, and
    selects sequences of the batch. A Tensor on a device is copied to the host, which synchronizes.
    """

    __slots__ = ()
    _names: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """The number of sequences."""

    @abstractmethod
    def _map(self, function: Callable[[Any], Any]) -> Self:
        """Apply a function to each part: a Tensor with the batch as its third axis, or a state."""

    @classmethod
    def _of(cls, parts: Iterable[Any]) -> Self:
        """Build a state from valid parts, without checks."""
        state = cls.__new__(cls)
        # As attrs does it, but in a form that `torch.compile` can trace.
        for name, part in zip(cls._names, parts, strict=True):
            object.__setattr__(state, name, part)
        return state

    @property
    def _parts(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._names)

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        require_gatherable(self)
        return type(self), self._parts

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
        chosen = _positions_of(indices, self)
        return self._map(lambda part: _select_part(part, chosen))

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
        chosen = _positions_of(indices, self)
        return self._map(lambda part: _reset_part(part, chosen))

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


def _positions_of(index: Any, state: State) -> list[int] | Tensor:
    """Return the positions of an index, counted from the front, or raise; a Tensor stays as it is while tracing."""
    refuse_exporters()
    return _ops.chosen(as_index("index", index), lambda: state.batch_size)


def _select_part(part: Any, chosen: list[int] | Tensor) -> Any:
    if not isinstance(part, Tensor):
        return part.select(chosen)
    index = _index_tensor(chosen, part)
    return part[:, :, index] if index.dtype is torch.bool else part.index_select(2, index)


def _reset_part(part: Any, chosen: list[int] | Tensor) -> Any:
    if not isinstance(part, Tensor):
        return part.reset(chosen)
    index = _index_tensor(chosen, part)
    # Not by positions, because their number is unknown while tracing.
    return part.masked_fill(index[:, None], 0) if index.dtype is torch.bool else part.index_fill(2, index, 0)


def _index_tensor(chosen: list[int] | Tensor, tensor: Tensor) -> Tensor:
    if isinstance(chosen, Tensor):
        return traced.positions_of(chosen, tensor.shape[2]).to(tensor.device)
    return torch.tensor(chosen, dtype=torch.int64, device="cpu").to(tensor.device, non_blocking=True)


class _TensorState(State):
    """A state of tensors `(num_layers, num_directions, batch, size)`, the first of which is the hidden state."""

    __slots__ = ()
    _instead = "Call encode_with_state(layer, sequences, state); for a layer of PyTorch itself call state.to_torch()."
    _contents = "Its Tensors are what state.to_torch() returns."
    hidden: Tensor

    @property
    def batch_size(self) -> int:
        """The number of sequences."""
        return self.hidden.shape[2]

    def last(self) -> Tensor:
        """Return the top layer's hidden state at the end of each sequence, for all directions: its summary.

        Returns:
            `(batch, num_directions * size)`: the forward direction after its last step, joined to the backward one
            after the first step, which is its last; a view where memory allows, through which gradients flow.

        >>> RNNState(torch.tensor([[[[1.0], [2.0]], [[3.0], [4.0]]]])).last()
        tensor([[1., 3.],
                [2., 4.]])
        """
        return self.hidden[-1].transpose(0, 1).flatten(1)

    def _map(self, function: Callable[[Any], Any]) -> Self:
        return type(self)(*map(function, self._parts))

    def __repr__(self) -> str:
        layers, directions, batch, size = self.hidden.shape
        numbers = ((batch, "sequence"), (layers, "layer"), (directions, "direction"))
        parts = [*(counted(number, name) for number, name in numbers), f"size {size}"]
        for name, tensor in zip(self._names, self._parts, strict=True):
            if tensor.shape[3] != size:  # as with `proj_size`
                parts.append(f"{name} size {tensor.shape[3]}")
        return f"{type(self).__name__}({', '.join(parts)}, {traits(*self._parts)})"


def _require_state_tensor(subject: str, value: object) -> Tensor:
    """Return the value if it is a floating Tensor of four dimensions, else raise."""
    tensor = require_tensor(subject, value)
    if not tensor.is_floating_point():
        raise complaint(SeqbatchTypeError, subject, "be floating", tensor.dtype)
    if tensor.dim() != 4:
        remedy = "Call from_torch for PyTorch's layout."
        must = "have shape (num_layers, num_directions, batch, size)"
        raise complaint(SeqbatchValueError, subject, must, tuple(tensor.shape), remedy)
    return tensor


@attrs.frozen(eq=False, repr=False, init=False)
class RNNState(_TensorState):
    """The state of `nn.GRU` and `nn.RNN`, in the caller's order.

    Args:
        hidden: `(num_layers, num_directions, batch, size)`, floating.

    Attributes:
        hidden: as given.

    Raises:
        SeqbatchTypeError: it is not a Tensor, or not floating.
        SeqbatchValueError: it has another number of dimensions.

    >>> RNNState(torch.zeros(2, 1, 3, 8)).last().shape
    torch.Size([3, 8])
    """

    __module__ = "seqbatch"
    _names = ("hidden",)
    hidden: Tensor

    def __init__(self, hidden: Tensor) -> None:
        object.__setattr__(self, "hidden", _require_state_tensor("hidden", hidden))

    def to_torch(self) -> Tensor:
        """Convert to PyTorch's layout.

        Returns:
            `(num_layers * num_directions, batch, size)`, a view where memory allows; gradients flow.

        >>> RNNState(torch.zeros(2, 2, 3, 8)).to_torch().shape
        torch.Size([4, 3, 8])
        """
        return self.hidden.flatten(0, 1)

    @classmethod
    def from_torch(cls, hx: Tensor, layer: nn.Module) -> Self:
        """Convert a state from PyTorch's layout.

        Args:
            hx: `(num_layers * num_directions, batch, size)`, floating.
            layer: the `nn.GRU` or `nn.RNN` that it belongs to, which defines the numbers of layers and directions.

        Returns:
            a state that is a view of it, through which gradients flow.

        Raises:
            SeqbatchTypeError: `hx` is not a floating Tensor, or `layer` is of another type.
            SeqbatchValueError: `hx` has another shape than the layer's.

        >>> RNNState.from_torch(torch.zeros(4, 3, 8), nn.GRU(5, 8, num_layers=2, bidirectional=True))
        RNNState(3 sequences, 2 layers, 2 directions, size 8, torch.float32, cpu)
        """
        return cls(_split_directions("hx", hx, layer, ("GRU", "RNN_TANH", "RNN_RELU")))


@attrs.frozen(eq=False, repr=False, init=False)
class LSTMState(_TensorState):
    """The state of `nn.LSTM`, in the caller's order.

    Args:
        hidden: `(num_layers, num_directions, batch, proj_size or hidden_size)`, floating.
        cell: `(num_layers, num_directions, batch, hidden_size)`, floating.

    Attributes:
        hidden: as given.
        cell: as given.

    Raises:
        SeqbatchTypeError: one is not a Tensor, or not floating.
        SeqbatchValueError: one has another number of dimensions, or they differ in more than the size.

    >>> LSTMState(torch.zeros(2, 1, 3, 8), torch.zeros(2, 1, 3, 8)).last().shape
    torch.Size([3, 8])
    """

    __module__ = "seqbatch"
    _names = ("hidden", "cell")
    hidden: Tensor
    cell: Tensor

    def __init__(self, hidden: Tensor, cell: Tensor) -> None:
        object.__setattr__(self, "hidden", _require_state_tensor("hidden", hidden))
        object.__setattr__(self, "cell", _require_state_tensor("cell", cell))
        is_alike = cell.dtype is hidden.dtype and cell.device == hidden.device
        if not is_alike or cell.shape[:3] != hidden.shape[:3]:
            raise _cell_mismatch(cell, hidden)

    def to_torch(self) -> tuple[Tensor, Tensor]:
        """Convert to PyTorch's layout.

        Returns:
            hidden and cell, each `(num_layers * num_directions, batch, size)`, views where memory allows; gradients
            flow.

        >>> hidden, cell = LSTMState(torch.zeros(2, 2, 3, 8), torch.zeros(2, 2, 3, 8)).to_torch()
        >>> hidden.shape, cell.shape
        (torch.Size([4, 3, 8]), torch.Size([4, 3, 8]))
        """
        return self.hidden.flatten(0, 1), self.cell.flatten(0, 1)

    @classmethod
    def from_torch(cls, hx: tuple[Tensor, Tensor], layer: nn.Module) -> Self:
        """Convert a state from PyTorch's layout.

        Args:
            hx: hidden and cell, each `(num_layers * num_directions, batch, size)`, floating.
            layer: the `nn.LSTM` that it belongs to, which defines the numbers of layers and directions.

        Returns:
            a state that is a view of them, through which gradients flow.

        Raises:
            SeqbatchTypeError: `hx` is not a pair of floating Tensors, or `layer` is of another type.
            SeqbatchValueError: one has another shape than the layer's, or they differ in batch, dtype or device.

        >>> LSTMState.from_torch((torch.zeros(2, 3, 8), torch.zeros(2, 3, 8)), nn.LSTM(5, 8, bidirectional=True))
        LSTMState(3 sequences, 1 layer, 2 directions, size 8, torch.float32, cpu)
        """
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            raise complaint(SeqbatchTypeError, "hx", "be a pair (hidden, cell) of Tensors", type_name(hx))
        return cls(*(_split_directions(f"hx[{i}]", part, layer, ("LSTM",)) for i, part in enumerate(hx)))


def _cell_mismatch(cell: Tensor, hidden: Tensor) -> SeqbatchValueError:
    """Build the error for a cell state that differs from the hidden state in more than the size."""
    compared = [
        ("layers, directions and batch", tuple(cell.shape[:3]), tuple(hidden.shape[:3])),
        ("dtype", cell.dtype, hidden.dtype),
        ("device", cell.device, hidden.device),
    ]
    what, found, wanted = next(row for row in compared if row[1] != row[2])
    return complaint(SeqbatchValueError, "cell", f"have {what} {wanted}, as `hidden`", found)


def _split_directions(subject: str, hx: Tensor, layer: Any, modes: tuple[str, ...]) -> Tensor:
    """Split the first axis of PyTorch's layout into layers and directions, or raise."""
    require_tensor(subject, hx)
    if getattr(layer, "mode", None) not in modes:
        found = type_name(layer)
        raise complaint(SeqbatchTypeError, "layer", f"be a layer of PyTorch of mode {' or '.join(modes)}", found)
    layers, directions = layer.num_layers, 2 if layer.bidirectional else 1
    size = layer.hidden_size if subject == "hx[1]" else getattr(layer, "proj_size", 0) or layer.hidden_size
    if hx.dim() != 3 or hx.shape[0] != layers * directions or hx.shape[2] != size:
        made_of = f"{counted(layers, 'layer')} x {counted(directions, 'direction')}"
        must = f"have shape ({layers * directions}, batch, {size}), {made_of}"
        remedy = f"For a state without a batch pass {subject}[:, None]." if hx.dim() == 2 else ""
        raise complaint(SeqbatchValueError, subject, must, tuple(hx.shape), remedy)
    return hx.view(layers, directions, *hx.shape[1:])


def _shown_part(i: int, part: Any) -> str:
    """Return the line or lines of a part in the `repr` of a container's state, with the shape of a Tensor."""
    text = f"Tensor({tuple(part.shape)}, {traits(part)})" if isinstance(part, Tensor) else repr(part)
    return textwrap.indent(f"({i}): {text}", "  ")


@attrs.frozen(eq=False, repr=False, init=False)
class ContainerState(State):
    """The state of a container such as `nn.Sequential`.

    Args:
        states: one for each layer in the container, in order; None for a layer without a state. The summary of the
            sequences is that of one layer: `state.states[1].last()`. The state of a layer that is not PyTorch's may
            be anything; the methods here call its methods of the same name.

    Attributes:
        states: as given, as a tuple.

    Raises:
        SeqbatchTypeError: these are not states.
        SeqbatchValueError: the states differ in batch size.

    >>> _, state = encode_with_state(nn.Sequential(nn.Linear(5, 4), nn.GRU(4, 3)), [torch.zeros(7, 5)])
    >>> state.detach()
    ContainerState(
      (0): None
      (1): RNNState(1 sequence, 1 layer, 1 direction, size 3, torch.float32, cpu)
    )
    """

    __module__ = "seqbatch"
    _instead = "Call encode_with_state(layer, sequences, state); state.states[i] is the state of layer i."
    _contents = "Its Tensors are those of state.states."
    _names = ("states",)
    states: tuple[Any, ...]

    def __init__(self, states: Iterable[Any]) -> None:
        if not isinstance(states, Iterable) or isinstance(states, (State, Tensor)):
            raise complaint(SeqbatchTypeError, "states", "be a tuple of states and Nones", type_name(states))
        object.__setattr__(self, "states", tuple(states))
        _require_one_batch_size(self)

    @property
    def batch_size(self) -> int:
        """The number of sequences; 0 if no state in it has a `batch_size`."""
        return next(iter(batch_sizes_of(self)), 0)

    def _require(self, method: str) -> None:
        self._require_in("states", method)

    def _require_in(self, subject: str, method: str) -> None:
        """Raise unless every state in it has a method; `select` and `reset` of a Tensor do not count.

        It checks its own states first, and then those of containers in it.
        """
        for i, state in enumerate(self.states):
            by_index = method in ("select", "reset")
            there = hasattr(state, method) and not (isinstance(state, Tensor) and by_index)
            if state is not None and not there:
                must = f"have {'batch_size and ' if by_index else ''}{method}, as RNNState"
                raise complaint(SeqbatchTypeError, f"{subject}[{i}]", must, type_name(state))
        for i, state in enumerate(self.states):
            if isinstance(state, ContainerState):
                state._require_in(f"{subject}[{i}].states", method)

    def _parts_with(self, name: str) -> list[str]:
        found = []
        for i, state in enumerate(self.states):
            if isinstance(state, ContainerState):
                found += [part.replace("state.", f"state.states[{i}].", 1) for part in state._parts_with(name)]
            elif hasattr(state, name) and not name.startswith("_"):
                found.append(f"state.states[{i}].{name}")
        return found

    def _map(self, function: Callable[[Any], Any]) -> Self:
        return type(self)(tuple(None if state is None else function(state) for state in self.states))

    def __repr__(self) -> str:
        name = type(self).__name__
        lines = [f"{name}(", *(_shown_part(i, part) for i, part in enumerate(self.states)), ")"]
        return "\n".join(lines) if self.states else f"{name}()"


@skipped_in_graphs  # because the comparison would specialize a graph
def _require_one_batch_size(container_state: ContainerState) -> None:
    if len(sizes := batch_sizes_of(container_state)) > 1:
        raise complaint(SeqbatchValueError, "states", "have the same batch size", sorted(sizes))


def batch_sizes_of(container_state: ContainerState) -> set[int]:
    """Return the batch sizes of the states in a state of a container that have one."""
    sizes: set[int] = set()
    for state in container_state.states:
        if isinstance(state, ContainerState):
            sizes |= batch_sizes_of(state)
        elif hasattr(state, "batch_size"):
            sizes.add(int(state.batch_size))
    return sizes


def _register_pytree(kind: type[State]) -> None:
    def unflatten(*parts: Any) -> State:
        # Only plain Tensors have shapes to check: while PyTorch traces or transforms, other objects stand for them.
        return kind(*parts) if all(type(part) is Tensor for part in parts) else kind._of(parts)

    register_pytree(kind, list(kind._names), lambda state: [*state._parts], unflatten)


for _kind in (RNNState, LSTMState, ContainerState):
    _register_pytree(_kind)
