"""Building `Lengths` from arguments, and comparing two: by values, or while tracing by checks in the graph."""

import torch
from torch import Tensor

from seqbatch import _rows
from seqbatch._checks import complaint, integers, lengths_of, require_integers, same_lengths
from seqbatch._kept import outside_inference_mode
from seqbatch._lengths import Lengths
from seqbatch._modes import require_in_graph
from seqbatch._tracing import in_a_graph
from seqbatch.errors import SeqbatchValueError


def structure_of(subject: str, value: object) -> Lengths:
    """Build `Lengths` from an argument, else raise; while tracing, without reading the values."""
    if not in_a_graph():
        if isinstance(value, Tensor):
            value = outside_inference_mode(value.clone)  # first, because another thread may write to it meanwhile
            if measured := _rows.measure(value):
                return Lengths.measured(value, *measured)
        return Lengths(lengths_of(subject, value))
    if isinstance(value, Tensor):
        return Lengths.from_tensor(require_integers(subject, value).to("cpu", torch.int64, copy=True))
    return structure_of_sizes(tuple(integers(subject, value)))


def structure_of_sizes(sizes: tuple[int, ...]) -> Lengths:
    """Build `Lengths` from the sizes of tensors, which are SymInts while tracing."""
    if not in_a_graph():
        return Lengths(sizes)
    lengths = Lengths.from_tensor(torch.tensor(sizes, dtype=torch.int64, device="cpu"))
    lengths.sizes = sizes
    return lengths


def require_total(lengths: Lengths, steps: int) -> None:
    """Raise unless lengths add up to the steps of flat values; while tracing, add a check to the graph."""
    if in_a_graph():
        require_in_graph((lengths.tensor >= 0).all(), "`lengths` must be at least 0")
        require_in_graph(lengths.tensor.sum() == steps, "`lengths` must add up to the steps of `values`")
    elif lengths.total != steps:
        raise complaint(SeqbatchValueError, "lengths", f"add up to {steps}, the steps of `values`", lengths.total)


def require_same(subject: str, lengths: Lengths, like: Lengths) -> None:
    """Raise unless lengths are those of this batch; while tracing, add a check to the graph."""
    if lengths is like:
        return
    if in_a_graph():
        message = f"`{subject}` must have the lengths of this batch"
        torch._check(lengths.tensor.shape[0] == like.tensor.shape[0], lambda: message)
        require_in_graph((lengths.tensor == like.tensor).all(), message)
    else:
        same_lengths(subject, lengths.counts, like.counts)
