"""Each law as one call: a layer is checked on a few short sequences, with and without an initial state."""

from collections.abc import Callable
from typing import Any

import laws
from strategies import sequences, state_for
from torch import Tensor, nn

from seqbatch import SeqbatchValueError, testing
from seqbatch.testing import maker

LENGTHS = [3, 0, 3, 1, 4]


def xs() -> list[Tensor]:
    return sequences(LENGTHS, (2,))


def start(layer: nn.Module) -> Any:
    return state_for(layer, len(LENGTHS)) if isinstance(layer, nn.RNNBase) else None


def refused(layer: nn.Module) -> None:
    laws.check_refused(
        layer, sequences(LENGTHS, (5,)), SeqbatchValueError, r"`sequences` must have features \(2,\)", start(layer)
    )


LAWS: dict[str, Callable[[nn.Module], None]] = {
    "alone": lambda layer: laws.check_alone(layer, xs()),
    "alone, from a state": lambda layer: laws.check_alone(layer, xs(), start(layer)),
    "order": lambda layer: laws.check_order(layer, xs(), [4, 2, 0, 1, 3], start(layer)),
    "order, from no state": lambda layer: laws.check_order(layer, xs(), [4, 2, 0, 1, 3]),
    "padding": lambda layer: laws.check_padding(layer, xs(), float("nan"), "left", True),
    "lengths": lambda layer: laws.check_lengths(layer, xs()),
    "stepwise": lambda layer: testing.check_stepwise(layer, xs()),
    "empty": lambda layer: laws.check_empty(layer, xs()),
    "empty, from a state": lambda layer: laws.check_empty(layer, xs(), start(layer)),
    "memory": lambda layer: testing.check_memory(layer, maker((2,))),
    "memory, by the values": lambda layer: laws.check_memory(layer.float(), 2, times=120),
    "called as itself": lambda layer: laws.check_called_as_itself(layer, xs()),
    "called as itself, from a state": lambda layer: laws.check_called_as_itself(layer, xs(), start(layer)),
    "unmodified": lambda layer: laws.check_unmodified(layer, xs(), start(layer)),
    "refused": refused,
    "refused, from no state": lambda layer: laws.check_refused(
        layer, sequences(LENGTHS, (5,)), SeqbatchValueError, r"`sequences` must have features \(2,\)"
    ),
}
