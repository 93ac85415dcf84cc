"""The direct engine: sequences of equal length are a padded tensor without padding; call the layer on it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from seqbatch._engines._interface import Hidden, as_arguments, parts_of
from seqbatch._structure.sequence_lengths import Lengths


def run(
    layer: nn.RNNBase,
    values: Tensor,
    lengths: Lengths,
    hidden: Hidden | None,
    *,
    check: Callable[[Any, Tensor, Tensor, Hidden], None] | None = None,
) -> tuple[Tensor, Hidden]:
    """Run the layer as `Engine` says; for equal lengths.

    Args:
        layer: as for `Engine`.
        values: the same.
        lengths: the same.
        hidden: the same.
        check: called with the layer, what it is given, and what it returns.

    Raises:
        SeqbatchTypeError: the layer, by a `forward` or a hook of its own, does not return a Tensor and a state.
    """
    batch = values.view(len(lengths), lengths.longest, values.shape[1])
    if not layer.batch_first:
        batch = batch.transpose(0, 1)
    output, final = parts_of(layer(batch, *as_arguments(hidden)), layer, Tensor)
    if check is not None:
        check(layer, batch, output, final)
    if not layer.batch_first:
        output = output.transpose(0, 1)
    return output.reshape(lengths.total, output.shape[2]), final
