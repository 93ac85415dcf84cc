"""Refusal of stacked sequences, where a library rebuilds a batch from converted elements.

Libraries that know a batch only as a Sequence of Tensors iterate it, convert each Tensor, and call
`type(batch)(elements)` with a list. Lightning does so to convert dtypes, which is right. Two libraries stack:
`torch.utils.data.default_collate` stacks sequence i of all samples, and Lightning's `all_gather` stacks sequence i of
all processes. The number of batches would then be taken for the steps, without an error.

The call passes the elements alone. So each thread remembers the batch that it iterated last. Elements are refused if
each has the dtype and the shape of a sequence of that batch with one more axis in front.

This has two limits. If another batch is iterated in between, or this one is deleted, stacked sequences are not
recognized. To add an axis in front of each sequence on purpose, call `SequenceBatch.from_sequences`.
"""

from threading import local
from typing import Any
from weakref import ref

from seqbatch._checks.grammar import complaint
from seqbatch._torch import skipped_in_graphs
from seqbatch.errors import SeqbatchValueError

_last_iterated = local()


@skipped_in_graphs  # because a graph holds no reference to a batch
def remember_iterated(batch: Any) -> None:
    """Remember that this thread iterates a SequenceBatch, without keeping it alive."""
    _last_iterated.batch = ref(batch)


@skipped_in_graphs  # because no library rebuilds a batch in a graph
def require_not_stacked(elements: list[Any]) -> None:
    """Raise if elements are the sequences of the batch that this thread iterated last, each with an axis in front."""
    batch = getattr(_last_iterated, "batch", lambda: None)()
    found = [(getattr(one, "dtype", None), getattr(one, "shape", ())[1:]) for one in elements]
    if batch and found == [(batch.dtype, (length, *batch.feature_shape)) for length in batch.lengths]:
        remedy = "To join batches call SequenceBatch.concat; for sequences of such features call from_sequences."
        shape = ", ".join(["steps", *map(str, batch.feature_shape)])
        must = f"have shape ({shape}), as the sequences they are made of"
        raise complaint(SeqbatchValueError, "values[0]", must, tuple(elements[0].shape), remedy)
