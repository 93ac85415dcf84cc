"""RNNState, LSTMState and ContainerState: what recurrent layers carry from step to step, sequence by sequence."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Self

import attrs
from torch import Tensor, nn

from seqbatch import _checks
from seqbatch._checks import complaint
from seqbatch._state import State
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

_OF_A_STATE = ("batch_size", "select", "reset", "detach", "to")


class _TensorState(State):
    """A state made of tensors `(num_layers, num_directions, batch, size)`, the first of which is the hidden state."""

    __slots__ = ()
    hidden: Tensor

    @property
    def batch_size(self) -> int:
        """The number of sequences."""
        return self.hidden.shape[2]

    def last(self) -> Tensor:
        """What the top layer holds at the end of each sequence, all directions: the summary of the sequence.

        Returns:
            `(batch, num_directions * size)`: the forward direction after its last step, joined to the backward one
            after the first step, which is its last.
        """
        return self.hidden[-1].transpose(0, 1).flatten(1)

    @property
    @abstractmethod
    def _tensors(self) -> tuple[Tensor, ...]:
        """All of them."""

    def _map(self, function: Callable[[Any], Any]) -> Self:
        return type(self)(*map(function, self._tensors))

    def __reduce__(self) -> tuple[type[Self], tuple[Tensor, ...]]:
        return type(self), self._tensors

    def __repr__(self) -> str:
        layers, directions, batch, _ = self.hidden.shape
        sizes = "+".join(str(tensor.shape[3]) for tensor in self._tensors)
        numbers = ((batch, "sequence"), (layers, "layer"), (directions, "direction"))
        what = ", ".join(_checks.counted(number, name) for number, name in numbers) + f", size {sizes}"
        return f"{type(self).__name__}({what}, {self.hidden.dtype}, {self.hidden.device})"


def _check_part(state: _TensorState, attribute: Any, tensor: Tensor) -> None:
    _checks.require_tensor(attribute.name, tensor)
    if not tensor.is_floating_point():
        raise complaint(SeqbatchTypeError, attribute.name, "be floating", tensor.dtype)
    if tensor.dim() != 4:
        remedy = "Call from_torch for PyTorch's layout."
        must = "have shape (num_layers, num_directions, batch, size)"
        raise complaint(SeqbatchValueError, attribute.name, must, tuple(tensor.shape), remedy)


@attrs.frozen(eq=False, repr=False)
class RNNState(_TensorState):
    """The state of `nn.GRU` and `nn.RNN`, in the caller's order.

    Args:
        hidden: `(num_layers, num_directions, batch, size)`, floating.

    Raises:
        SeqbatchTypeError: it is no Tensor, or not floating.
        SeqbatchValueError: it has another number of dimensions.

    >>> RNNState(torch.zeros(2, 1, 3, 8)).last().shape
    torch.Size([3, 8])
    """

    hidden: Tensor = attrs.field(validator=_check_part)

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return (self.hidden,)

    def to_torch(self) -> Tensor:
        """Give PyTorch's layout, a view: `(num_layers * num_directions, batch, size)`."""
        return self.hidden.flatten(0, 1)

    @classmethod
    def from_torch(cls, hx: Tensor, layer: nn.Module) -> Self:
        """Take over a state in PyTorch's layout, as a view.

        Args:
            hx: `(num_layers * num_directions, batch, size)`, floating.
            layer: the `nn.GRU` or `nn.RNN` that it belongs to, which tells layers from directions.

        Raises:
            SeqbatchTypeError: `hx` is no Tensor.
            SeqbatchValueError: `hx` has another number of dimensions, or of layers and directions.

        >>> RNNState.from_torch(torch.zeros(4, 3, 8), nn.GRU(5, 8, num_layers=2, bidirectional=True))
        RNNState(3 sequences, 2 layers, 2 directions, size 8, torch.float32, cpu)
        """
        return cls(_split_directions("hx", hx, layer))


@attrs.frozen(eq=False, repr=False)
class LSTMState(_TensorState):
    """The state of `nn.LSTM`, in the caller's order.

    Args:
        hidden: `(num_layers, num_directions, batch, proj_size or hidden_size)`, floating.
        cell: `(num_layers, num_directions, batch, hidden_size)`, floating.

    Raises:
        SeqbatchTypeError: one is no Tensor, or not floating.
        SeqbatchValueError: one has another number of dimensions, or they differ in more than the size.

    >>> LSTMState(torch.zeros(2, 1, 3, 8), torch.zeros(2, 1, 3, 8)).last().shape
    torch.Size([3, 8])
    """

    hidden: Tensor = attrs.field(validator=_check_part)
    cell: Tensor = attrs.field(validator=_check_part)

    def __attrs_post_init__(self) -> None:
        for what, found, wanted in (
            ("layers, directions and batch", tuple(self.cell.shape[:3]), tuple(self.hidden.shape[:3])),
            ("dtype", self.cell.dtype, self.hidden.dtype),
            ("device", self.cell.device, self.hidden.device),
        ):
            if found != wanted:
                raise complaint(SeqbatchValueError, "cell", f"have {what} {wanted}, as `hidden`", found)

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return (self.hidden, self.cell)

    def to_torch(self) -> tuple[Tensor, Tensor]:
        """Give PyTorch's layout, views: hidden and cell, each `(num_layers * num_directions, batch, size)`."""
        return self.hidden.flatten(0, 1), self.cell.flatten(0, 1)

    @classmethod
    def from_torch(cls, hx: tuple[Tensor, Tensor], layer: nn.Module) -> Self:
        """Take over a state in PyTorch's layout, as views.

        Args:
            hx: hidden and cell, each `(num_layers * num_directions, batch, size)`, floating.
            layer: the `nn.LSTM` that it belongs to, which tells layers from directions.

        Raises:
            SeqbatchTypeError: `hx` is no pair of Tensors.
            SeqbatchValueError: one has another number of dimensions, or of layers and directions.

        >>> LSTMState.from_torch((torch.zeros(2, 3, 8), torch.zeros(2, 3, 8)), nn.LSTM(5, 8, bidirectional=True))
        LSTMState(3 sequences, 1 layer, 2 directions, size 8+8, torch.float32, cpu)
        """
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            raise complaint(SeqbatchTypeError, "hx", "be a pair (hidden, cell) of Tensors", _checks.type_name(hx))
        return cls(_split_directions("hx[0]", hx[0], layer), _split_directions("hx[1]", hx[1], layer))


def _to_tuple(states: Iterable[Any]) -> tuple[Any, ...]:
    if not isinstance(states, Iterable) or isinstance(states, (State, Tensor)):
        raise complaint(SeqbatchTypeError, "states", "be a tuple of states and Nones", _checks.type_name(states))
    return tuple(states)


@attrs.frozen(eq=False)
class ContainerState(State):
    """The state of a container such as `nn.Sequential`.

    Args:
        states: one for each layer in the container, in order; None for a layer that keeps no state. What sums up the
            sequences is that of one layer: `state.states[1].last()`. The state of a layer that is not PyTorch's must
            have `batch_size`, `select`, `reset`, `detach` and `to`, as RNNState.

    Raises:
        SeqbatchTypeError: these are no states.
        SeqbatchValueError: the states are of different numbers of sequences.
    """

    states: tuple[Any, ...] = attrs.field(converter=_to_tuple)

    def __attrs_post_init__(self) -> None:
        for i, state in enumerate(self.states):
            missing = [name for name in _OF_A_STATE if state is not None and not hasattr(state, name)]
            if missing:
                must = f"have {', '.join(_OF_A_STATE)}, as every state in a container"
                found = f"{_checks.type_name(state)} without {', '.join(missing)}"
                raise complaint(SeqbatchTypeError, f"states[{i}]", must, found)
        sizes = sorted({state.batch_size for state in self.states if state is not None})
        if len(sizes) > 1:
            raise complaint(SeqbatchValueError, "states", "be of one number of sequences", sizes)

    @property
    def batch_size(self) -> int:
        """The number of sequences; 0 if no layer keeps a state."""
        return next((int(state.batch_size) for state in self.states if state is not None), 0)

    def _map(self, function: Callable[[Any], Any]) -> Self:
        return type(self)(tuple(None if state is None else function(state) for state in self.states))

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[Any, ...]]]:
        return type(self), (self.states,)


def _split_directions(subject: str, hx: Tensor, layer: nn.Module) -> Tensor:
    _checks.require_tensor(subject, hx)
    layers, bidirectional = getattr(layer, "num_layers", None), getattr(layer, "bidirectional", None)
    if not isinstance(layers, int) or not isinstance(bidirectional, bool):
        raise complaint(SeqbatchTypeError, "layer", "be a recurrent layer of PyTorch", _checks.type_name(layer))
    directions = 2 if bidirectional else 1
    if hx.dim() != 3 or hx.shape[0] != layers * directions:
        made_of = f"{_checks.counted(layers, 'layer')} x {_checks.counted(directions, 'direction')}"
        must = f"have shape ({layers * directions}, batch, size), {made_of}"
        raise complaint(SeqbatchValueError, subject, must, tuple(hx.shape))
    return hx.view(layers, directions, *hx.shape[1:])
