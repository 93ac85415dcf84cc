"""Checks shared by these layers: of overridden `forward`, arguments and dtypes."""

from torch import Tensor, nn

from seqbatch._batch import SequenceBatch
from seqbatch._checks.arguments import at_least, require_steps
from seqbatch._checks.grammar import complaint, describe, shown
from seqbatch._encode.registry import unsupported
from seqbatch._encoders._layer_checks import keeps_forward
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError


def refuse_own_forward(layer: nn.Module, layer_type: type[nn.Module]) -> None:
    """Raise if a subclass has its own `forward`, because that takes one sequence and may do anything with it."""
    if not keeps_forward(layer, layer_type):
        raise unsupported(layer, reason="it has a forward of its own")


def as_batch(sequence: object) -> SequenceBatch:
    """Convert the argument of a layer, one sequence `(steps, *features)`, to a batch of one, or raise."""
    values = require_steps("sequence", sequence)
    return SequenceBatch(values, [len(values)])


def size(subject: str, value: object) -> int:
    """Return the value if it is an integer of at least 0, else raise."""
    return at_least(subject, value, 0)


def probability(subject: str, value: float) -> float:
    """Return the value if it is a number from 0 to 1, else raise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise complaint(SeqbatchTypeError, subject, "be a number", shown(value))
    if not 0 <= value <= 1:
        raise complaint(SeqbatchValueError, subject, "be from 0 to 1", value)
    return value


def require_floating(subject: str, values: Tensor, layer: nn.Module, remedy: str = "") -> None:
    """Raise unless the dtype is floating or complex."""
    if not (values.is_floating_point() or values.is_complex()):
        must = f"have a floating or complex dtype, for {describe(layer)}"
        raise complaint(SeqbatchTypeError, subject, must, values.dtype, remedy)
