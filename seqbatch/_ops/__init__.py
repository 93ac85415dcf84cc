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


def _dispatch(eager: Callable[P, R], traced: Callable[P, R]) -> Callable[P, R]:
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return (traced if in_a_graph() else eager)(*args, **kwargs)

    return call


# Lengths, from an argument or from sizes of tensors. The first argument names what errors are about.
lengths_from = _dispatch(eager.lengths_from, traced.lengths_from)
lengths_of_sizes = _dispatch(eager.lengths_of_sizes, traced.lengths_of_sizes)
lengths_from_offsets = _dispatch(eager.lengths_from_offsets, traced.lengths_from_offsets)
joined_lengths = _dispatch(eager.joined_lengths, traced.joined_lengths)
# Checks of lengths: by their values, or at run time by the graph.
require_total = _dispatch(eager.require_total, traced.require_total)
require_same_lengths = _dispatch(eager.require_same_lengths, traced.require_same_lengths)
# New tensors on a device that are computed from lengths.
offsets = _dispatch(eager.offsets, traced.offsets)
segment_ids = _dispatch(eager.segment_ids, traced.segment_ids)
positions = _dispatch(eager.positions, traced.positions)
mask = _dispatch(eager.mask, traced.mask)
# Flat values to other layouts and back.
to_padded = _dispatch(eager.to_padded, traced.to_padded)
from_padded = _dispatch(eager.from_padded, traced.from_padded)
from_mask = _dispatch(eager.from_mask, traced.from_mask)
to_packed = _dispatch(eager.to_packed, traced.to_packed)
from_packed = _dispatch(eager.from_packed, traced.from_packed)
to_nested = _dispatch(eager.to_nested, traced.to_nested)
from_nested = _dispatch(eager.from_nested, traced.from_nested)
# `how` is a key of `reductions.REDUCTIONS`.
reduce = _dispatch(eager.reduce, traced.reduce)
