"""Layouts and reductions of flat values, eager or traced. This file is the one place that asks which.

Each function here calls the one of the same name in `eager`, or in `traced` while `torch.compile` or `torch.export`
traces. A type checker compares their signatures.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from seqbatch._ops import eager, traced
from seqbatch._torch import in_a_graph

P = ParamSpec("P")
R = TypeVar("R")


def _eager_or_traced(eager: Callable[P, R], traced: Callable[P, R]) -> Callable[P, R]:
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return (traced if in_a_graph() else eager)(*args, **kwargs)

    return call


# Lengths, from an argument or from sizes of tensors. The first argument names what errors are about.
lengths_from = _eager_or_traced(eager.lengths_from, traced.lengths_from)
lengths_of_sizes = _eager_or_traced(eager.lengths_of_sizes, traced.lengths_of_sizes)
lengths_from_offsets = _eager_or_traced(eager.lengths_from_offsets, traced.lengths_from_offsets)
joined_lengths = _eager_or_traced(eager.joined_lengths, traced.joined_lengths)
merged_lengths = _eager_or_traced(eager.merged_lengths, traced.merged_lengths)
split_lengths = _eager_or_traced(eager.split_lengths, traced.split_lengths)
# Checks of lengths: by their values, or at run time by the graph.
require_total = _eager_or_traced(eager.require_total, traced.require_total)
require_steps_of_batch = _eager_or_traced(eager.require_steps_of_batch, traced.require_steps_of_batch)
require_batch_size = _eager_or_traced(eager.require_batch_size, traced.require_batch_size)
require_same_lengths = _eager_or_traced(eager.require_same_lengths, traced.require_same_lengths)
# New tensors on a device that are computed from lengths.
offsets = _eager_or_traced(eager.offsets, traced.offsets)
segment_ids = _eager_or_traced(eager.segment_ids, traced.segment_ids)
positions = _eager_or_traced(eager.positions, traced.positions)
mask = _eager_or_traced(eager.mask, traced.mask)
# Flat values to other layouts and back.
to_padded = _eager_or_traced(eager.to_padded, traced.to_padded)
from_padded = _eager_or_traced(eager.from_padded, traced.from_padded)
from_mask = _eager_or_traced(eager.from_mask, traced.from_mask)
# The rows of sequences that are not empty, where there is one for each sequence.
drop_empty = _eager_or_traced(eager.drop_empty, traced.drop_empty)
# Sequences that an index selects; the number of all sequences is read only if it is needed.
chosen = _eager_or_traced(eager.chosen, traced.chosen)
# Steps of each sequence; `rows` are the chosen sequences, None for all.
slice_steps = _eager_or_traced(eager.slice_steps, traced.slice_steps)
pick_steps = _eager_or_traced(eager.pick_steps, traced.pick_steps)
take_steps = _eager_or_traced(eager.take_steps, traced.take_steps)
join_steps = _eager_or_traced(eager.join_steps, traced.join_steps)
# `how` is a key of `reductions.REDUCTIONS`.
reduce = _eager_or_traced(eager.reduce, traced.reduce)
# A row for each sequence to a row for each step.
expand = _eager_or_traced(eager.expand, traced.expand)
