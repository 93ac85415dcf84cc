"""Checks of what an encoder returns."""

from typing import Any

from seqbatch._batch import SequenceBatch
from seqbatch._checks.grammar import complaint, counted, type_name
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError

_WITH_STATE = "encoder(layer, batch, state)"


def require_pair(result: object, batch: SequenceBatch) -> tuple[SequenceBatch, Any]:
    """Return an encoder's result if it is a batch of the same batch size and a state, else raise."""
    if not (isinstance(result, tuple) and len(result) == 2):
        raise complaint(SeqbatchTypeError, _WITH_STATE, "return a pair (batch, state)", type_name(result))
    return require_outputs(result[0], batch, f"{_WITH_STATE}[0]"), result[1]


def require_outputs(result: object, batch: SequenceBatch, subject: str, argument: str = "batch") -> SequenceBatch:
    """Return an encoder's result if it is a batch of the same batch size, else raise; `argument` names the batch."""
    if not isinstance(result, SequenceBatch):
        remedy = f"Return {argument}.with_values(values), or SequenceBatch(values, lengths) for other lengths."
        raise complaint(SeqbatchTypeError, subject, "be a SequenceBatch", type_name(result), remedy)
    if result.batch_size != batch.batch_size:
        must = f"have {counted(batch.batch_size, 'sequence')}, as many as `{argument}`"
        raise complaint(SeqbatchValueError, subject, must, result.batch_size)
    return result
