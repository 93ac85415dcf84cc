"""ContainerState: the states of the layers in a container."""

from collections.abc import Callable, Iterable
from typing import Any, Self

import attrs
from torch import Tensor

from seqbatch import _checks
from seqbatch._checks import complaint
from seqbatch._gathering import require_gatherable
from seqbatch._state import State
from seqbatch._tracing import in_a_graph
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError


def _to_tuple(states: Iterable[Any]) -> tuple[Any, ...]:
    if not isinstance(states, Iterable) or isinstance(states, (State, Tensor)):
        raise complaint(SeqbatchTypeError, "states", "be a tuple of states and Nones", _checks.type_name(states))
    return tuple(states)


@attrs.frozen(eq=False, init=False)
class ContainerState(State):
    """The state of a container such as `nn.Sequential`.

    Args:
        states: one for each layer in the container, in order; None for a layer without a state. The summary of the
            sequences is that of one layer: `state.states[1].last()`. The state of a layer that is not PyTorch's may
            be anything; the methods here call its methods of the same name.

    Raises:
        SeqbatchTypeError: these are not states.
        SeqbatchValueError: the states differ in batch size.

    >>> _, state = encode_with_state(nn.Sequential(nn.Linear(5, 4), nn.GRU(4, 3)), [torch.zeros(7, 5)])
    >>> state.states
    (None, RNNState(1 sequence, 1 layer, 1 direction, size 3, torch.float32, cpu))
    """

    _instead = "Call encode_with_state(layer, sequences, state); state.states[i] is the state of layer i."
    _contents = "Its Tensors are those of state.states."
    states: tuple[Any, ...]

    def __init__(self, states: Iterable[Any]) -> None:
        self._set(_to_tuple(states))
        if not in_a_graph() and len(self._sizes) > 1:  # because the comparison would specialize a graph
            raise complaint(SeqbatchValueError, "states", "have the same batch size", sorted(self._sizes))

    @classmethod
    def _of(cls, states: tuple[Any, ...]) -> Self:
        """Build a state from valid parts, without checks."""
        state = cls.__new__(cls)
        state._set(states)
        return state

    def _set(self, states: tuple[Any, ...]) -> None:
        # As attrs does it, but in a form that `torch.compile` can trace.
        object.__setattr__(self, "states", states)

    @property
    def batch_size(self) -> int:
        """The number of sequences; 0 if no state in it has a `batch_size`."""
        return next(iter(self._sizes), 0)

    @property
    def _sizes(self) -> set[int]:
        """The batch sizes of the states in it that have one."""
        sizes: set[int] = set()
        for state in self.states:
            if isinstance(state, ContainerState):
                sizes |= state._sizes
            elif hasattr(state, "batch_size"):
                sizes.add(int(state.batch_size))
        return sizes

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
                raise complaint(SeqbatchTypeError, f"{subject}[{i}]", must, _checks.type_name(state))
        for i, state in enumerate(self.states):
            if isinstance(state, ContainerState):
                state._require_in(f"{subject}[{i}].states", method)

    def _map(self, function: Callable[[Any], Any]) -> Self:
        return type(self)(tuple(None if state is None else function(state) for state in self.states))

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[Any, ...]]]:
        require_gatherable(self)
        return type(self), (self.states,)
