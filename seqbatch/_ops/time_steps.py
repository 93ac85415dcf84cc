"""The loop over time steps: a function runs at each step on the sequences that have that step."""

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import TypeVar

import torch
from torch import Tensor

from seqbatch._structure.sequence_lengths import Lengths

Output = TypeVar("Output")
Parts = tuple[Tensor, ...]

# Steps that are split at a time, because splitting each alone is slower, and views of all steps take memory.
_SPLIT_SIZE = 256


def run_time_steps(
    step: Callable[[Tensor, Parts], tuple[Output, Parts]],
    rows: Tensor,
    lengths: Lengths,
    state: Parts,
    axes: Sequence[int] | None = None,
) -> tuple[list[Output], Parts]:
    """Run a function step by step. The sequences run from longest to shortest, so those that have a step are a prefix.

    If all sequences are empty, the function runs once on no sequence, so that the features of its outputs are known.

    Args:
        step: from the rows of one step and the state of these sequences to their output and their next state.
        rows: `(total_steps, *features)`, in packed order.
        lengths: the lengths.
        state: the initial state, in the caller's order. Empty if the first step makes it; then no sequence is empty.
        axes: the axis of the sequences in each part of the state; the first by default.

    Returns:
        the output of each step, and the final state in the caller's order. That of an empty sequence is its initial
        state.
    """
    along = repeat(0) if axes is None else axes
    pairs = zip(state, along, strict=False)  # because `along` may have no end
    current = tuple(part.index_select(axis, lengths.on(part.device).order) for part, axis in pairs)
    outputs: list[Output] = []
    ended: list[list[Tensor]] = []
    running = len(lengths)
    for inputs in _split_steps(rows, lengths.batch_size_list or [0]):
        count = inputs.shape[0]
        if count < running:
            # By one call and not two, because its backward pass joins the gradients, and adds no zeros.
            halves = [part.split([count, running - count], axis) for part, axis in zip(current, along, strict=False)]
            current = tuple(half[0] for half in halves)
            ended.append([half[1] for half in halves])
            running = count
        output, current = step(inputs, current)
        outputs.append(output)
    ends = zip(along, current, *reversed(ended), strict=False)
    return outputs, tuple(_in_order(parts, axis, lengths) for axis, *parts in ends)


def _in_order(parts: list[Tensor], axis: int, lengths: Lengths) -> Tensor:
    """Join the final states of sequences, longest first, in the caller's order and the dtype of the longest."""
    alike = [part.to(parts[0].dtype) for part in parts]  # because `torch.autocast` may change it at the first step
    return torch.cat(alike, axis).index_select(axis, lengths.on(alike[0].device).rank)


def _split_steps(rows: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    """Yield the rows of each step, as views."""
    chunks = [sizes[i : i + _SPLIT_SIZE] for i in range(0, len(sizes), _SPLIT_SIZE)]
    for part, chunk in zip(rows.split([sum(chunk) for chunk in chunks]), chunks, strict=True):
        yield from part.split(chunk)
