"""Run a recurrent layer or cell on the sequences that have a step; the others keep their initial state."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from seqbatch import _engines
from seqbatch._batch import SequenceBatch, is_nothing
from seqbatch._encoders._layer_checks import rounds_by_range, run_on_nothing
from seqbatch._encoders._recurrent_checks import StateForm
from seqbatch._engines import Hidden
from seqbatch._structure.sequence_lengths import Lengths, to_device

# Runs a layer from flat values, lengths without zeros, and their initial state.
RunValues = Callable[[Tensor, Lengths, Hidden | None], tuple[Tensor, Hidden]]


def run_by_engine(layer: Any, batch: SequenceBatch, hidden: Hidden | None, form: StateForm) -> tuple[Tensor, Hidden]:
    """Run a layer as `run_without_empty`, by the engine chosen for it."""
    return run_without_empty(layer, batch, hidden, form, partial(_choose_and_run, layer))


def _choose_and_run(layer: Any, values: Tensor, lengths: Lengths, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
    engine = _engines.choose(_engines.describe_call(layer, values, rounds_by_range(layer)))
    return engine.run(layer, values, lengths, hidden)


def run_without_empty(
    layer: nn.Module, batch: SequenceBatch, hidden: Hidden | None, form: StateForm, run_values: RunValues
) -> tuple[Tensor, Hidden]:
    """Run a layer on the sequences that have a step, and leave the others their initial state.

    Args:
        layer: the layer.
        batch: the batch, checked.
        hidden: the initial state in PyTorch's layout, checked; None for zeros.
        form: the form of its state.
        run_values: the function that runs the layer.

    Returns:
        the outputs `(total_steps, size)`, and the final state in PyTorch's layout.
    """
    lengths = batch.structure
    running = lengths.without_empty
    if running is lengths and lengths.total:
        return run_values(batch.values, lengths, hidden)
    # The layer's dtype and device for a batch made of an empty list, because that has none of its own.
    like = next(layer.parameters(), batch.values) if is_nothing(batch) else batch.values
    rows = form.num_layers * form.num_directions
    start = hidden or tuple(like.new_zeros(rows, batch.batch_size, size) for size in form.sizes)
    if not lengths.total:
        nothing = like.new_zeros(0, form.sizes[0] * form.num_directions)
        # Copies, because modifying the new state must not change the caller's.
        ends = start if hidden is None else tuple(part.clone() for part in hidden)
        return run_on_nothing(layer, nothing, batch), tuple(run_on_nothing(layer, part, batch) for part in ends)
    not_empty = to_device(lengths.not_empty, batch.device)
    chosen = None if hidden is None else tuple(part.index_select(1, not_empty) for part in hidden)
    values, final = run_values(batch.values, running, chosen)
    ended = zip(start, final, strict=True)
    return values, tuple(old.to(new.dtype).index_copy(1, not_empty, new) for old, new in ended)
