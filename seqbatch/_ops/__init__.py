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
# Checks of lengths: by their values, or at run time by the graph.
require_total = _eager_or_traced(eager.require_total, traced.require_total)
require_same_lengths = _eager_or_traced(eager.require_same_lengths, traced.require_same_lengths)
require_same_batch_size = _eager_or_traced(eager.require_same_batch_size, traced.require_same_batch_size)
# New tensors on a device that are computed from lengths.
offsets = _eager_or_traced(eager.offsets, traced.offsets)
segment_ids = _eager_or_traced(eager.segment_ids, traced.segment_ids)
positions = _eager_or_traced(eager.positions, traced.positions)
mask = _eager_or_traced(eager.mask, traced.mask)
# Flat values to other layouts and back.
to_padded = _eager_or_traced(eager.to_padded, traced.to_padded)
from_padded = _eager_or_traced(eager.from_padded, traced.from_padded)
from_mask = _eager_or_traced(eager.from_mask, traced.from_mask)
to_packed = _eager_or_traced(eager.to_packed, traced.to_packed)
from_packed = _eager_or_traced(eager.from_packed, traced.from_packed)
to_nested = _eager_or_traced(eager.to_nested, traced.to_nested)
from_nested = _eager_or_traced(eager.from_nested, traced.from_nested)
# `how` is a key of `reductions.REDUCTIONS`.
reduce = _eager_or_traced(eager.reduce, traced.reduce)
