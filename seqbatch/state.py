"""RNNState and LSTMState: what recurrent layers carry from step to step, sequence by sequence."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import attrs
from torch import Tensor, nn

from seqbatch import _checks
from seqbatch._checks import complaint
from seqbatch._gathering import require_gatherable
from seqbatch._state import State
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError


class _TensorState(State):
    """A state of tensors `(num_layers, num_directions, batch, size)`, the first of which is the hidden state."""

    __slots__ = ()
    _instead = "Call encode_with_state(layer, sequences, state); for a layer of PyTorch itself call state.to_torch()."
    _contents = "Its Tensors are what state.to_torch() returns."
    _names: ClassVar[tuple[str, ...]]
    hidden: Tensor

    @classmethod
    def _of(cls, tensors: Iterable[Tensor]) -> Self:
        """Build a state from valid tensors, without checks."""
        state = cls.__new__(cls)
        # As attrs does it, but in a form that `torch.compile` can trace.
        for name, tensor in zip(cls._names, tensors, strict=True):
            object.__setattr__(state, name, tensor)
        return state

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

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self._names)

    def _map(self, function: Callable[[Any], Any]) -> Self:
        return type(self)(*map(function, self._tensors))

    def __reduce__(self) -> tuple[type[Self], tuple[Tensor, ...]]:
        require_gatherable(self)
        return type(self), self._tensors

    def __repr__(self) -> str:
        layers, directions, batch, _ = self.hidden.shape
        sizes = "+".join(str(tensor.shape[3]) for tensor in self._tensors)
        numbers = ((batch, "sequence"), (layers, "layer"), (directions, "direction"))
        what = ", ".join(_checks.counted(number, name) for number, name in numbers) + f", size {sizes}"
        return f"{type(self).__name__}({what}, {self.hidden.dtype}, {self.hidden.device})"


def _require_part(subject: str, value: object) -> Tensor:
    """Return the value if it is a floating Tensor of four dimensions, else raise."""
    tensor = _checks.require_tensor(subject, value)
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

    Raises:
        SeqbatchTypeError: it is not a Tensor, or not floating.
        SeqbatchValueError: it has another number of dimensions.

    >>> RNNState(torch.zeros(2, 1, 3, 8)).last().shape
    torch.Size([3, 8])
    """

    _names = ("hidden",)
    hidden: Tensor

    def __init__(self, hidden: Tensor) -> None:
        object.__setattr__(self, "hidden", _require_part("hidden", hidden))

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

    Raises:
        SeqbatchTypeError: one is not a Tensor, or not floating.
        SeqbatchValueError: one has another number of dimensions, or they differ in more than the size.

    >>> LSTMState(torch.zeros(2, 1, 3, 8), torch.zeros(2, 1, 3, 8)).last().shape
    torch.Size([3, 8])
    """

    _names = ("hidden", "cell")
    hidden: Tensor
    cell: Tensor

    def __init__(self, hidden: Tensor, cell: Tensor) -> None:
        object.__setattr__(self, "hidden", _require_part("hidden", hidden))
        object.__setattr__(self, "cell", _require_part("cell", cell))
        is_alike = cell.dtype is hidden.dtype and cell.device == hidden.device
        if not is_alike or cell.shape[:3] != hidden.shape[:3]:
            raise _unlike(cell, hidden)

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
        LSTMState(3 sequences, 1 layer, 2 directions, size 8+8, torch.float32, cpu)
        """
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            raise complaint(SeqbatchTypeError, "hx", "be a pair (hidden, cell) of Tensors", _checks.type_name(hx))
        return cls(*(_split_directions(f"hx[{i}]", part, layer, ("LSTM",)) for i, part in enumerate(hx)))


def _unlike(cell: Tensor, hidden: Tensor) -> SeqbatchValueError:
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
    _checks.require_tensor(subject, hx)
    if getattr(layer, "mode", None) not in modes:
        found = _checks.type_name(layer)
        raise complaint(SeqbatchTypeError, "layer", f"be a layer of PyTorch of mode {' or '.join(modes)}", found)
    layers, directions = layer.num_layers, 2 if layer.bidirectional else 1
    size = layer.hidden_size if subject == "hx[1]" else getattr(layer, "proj_size", 0) or layer.hidden_size
    if hx.dim() != 3 or hx.shape[0] != layers * directions or hx.shape[2] != size:
        made_of = f"{_checks.counted(layers, 'layer')} x {_checks.counted(directions, 'direction')}"
        must = f"have shape ({layers * directions}, batch, {size}), {made_of}"
        remedy = f"For a state without a batch pass {subject}[:, None]." if hx.dim() == 2 else ""
        raise complaint(SeqbatchValueError, subject, must, tuple(hx.shape), remedy)
    return hx.view(layers, directions, *hx.shape[1:])
