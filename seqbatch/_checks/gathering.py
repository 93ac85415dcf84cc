"""Refusal of accelerate's gathering of objects where it would lose a batch or a state without an error.

`accelerate.utils.gather_object` joins the objects of all processes by iterating each: of a dict it keeps the keys, of a
tuple the fields one after another. `Accelerator.gather_for_metrics` calls it for whatever holds more than Tensors, and
at the end of an epoch cuts the list to the number of samples, as if each item were one.

The only method of ours that is called then is `__reduce__`, when the object is pickled. So that looks for the two
functions among its callers. Nothing else in this package reads the stack; here the alternative is an evaluation on a
part of the data.
"""

import inspect
import sys
from types import FrameType

from seqbatch._checks.grammar import complaint, type_name
from seqbatch.errors import SeqbatchTypeError

_GATHER_OBJECT = "accelerate.utils.operations", "_gpu_gather_object"
_GATHER_FOR_METRICS = "accelerate.accelerator", "gather_for_metrics"
# The argument that each gathers.
_GATHERED = {_GATHER_OBJECT: "object", _GATHER_FOR_METRICS: "input_data"}


def require_gatherable(own: object) -> None:
    """Raise if accelerate pickles a batch or a state to gather something that it takes apart.

    While accelerate is not imported, this costs one look-up.
    """
    if _GATHER_OBJECT[0] not in sys.modules:
        return
    call, gathered = _outermost_call()
    if call == _GATHER_OBJECT and gathered is not own and not isinstance(gathered, list):
        must = "be a SequenceBatch or a list, because accelerate joins what the processes have by iterating it"
        raise complaint(SeqbatchTypeError, "object", must, type_name(gathered), "Gather [object], a list.")
    if call == _GATHER_FOR_METRICS and gathered is not own:
        must = "be a SequenceBatch itself, because accelerate takes apart what holds one, and counts items as samples"
        remedy = "Gather each field by itself, or call accelerate.utils.gather_object([input_data])."
        raise complaint(SeqbatchTypeError, "input_data", must, type_name(gathered), remedy)


def _outermost_call() -> tuple[tuple[str, str] | None, object]:
    """Return which of the two functions was called first on the stack, and what it gathers."""
    call, gathered = None, None
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if function in _GATHERED:
            call, gathered = function, frame.f_locals.get(_GATHERED[function])
        frame = frame.f_back
    return call, gathered
