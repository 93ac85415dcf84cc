"""The types of input that `encode` takes, and how the output is converted back to each."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from seqbatch import _ops
from seqbatch._batch import SequenceBatch, joined
from seqbatch._checks.arguments import require_steps
from seqbatch._checks.exporters import refuse_exporters
from seqbatch._checks.grammar import complaint, describe, type_name
from seqbatch._encode.registry import takes_rows
from seqbatch.errors import SeqbatchTypeError

Opened = tuple[SequenceBatch, Callable[[SequenceBatch], Any]]


def open_input(sequences: object, layer: nn.Module | None = None) -> Opened:
    """Convert any supported input to a batch, and return the function that converts a batch back to its type.

    If no layer is given, one Tensor is always one sequence.

    Raises:
        SeqbatchTypeError: the type is not supported, or it is one Tensor for a cell.
    """
    refuse_exporters()
    if isinstance(sequences, SequenceBatch):
        return sequences, lambda batch: batch
    if isinstance(sequences, PackedSequence):  # before tuple, because it is a subclass of that
        return _open_packed(sequences)
    if isinstance(sequences, Tensor):
        if sequences.is_nested:
            return SequenceBatch.from_nested(sequences), SequenceBatch.to_nested
        return _open_tensor(sequences, layer)
    if isinstance(sequences, (list, tuple)):
        return SequenceBatch.from_sequences(sequences), SequenceBatch.to_sequences
    must = "be a list or tuple of Tensors, a Tensor, a SequenceBatch, a PackedSequence or a nested Tensor"
    remedy = "Pass list(sequences)." if isinstance(sequences, Iterator) else ""
    raise complaint(SeqbatchTypeError, "sequences", must, type_name(sequences), remedy)


def open_pair(sequences: object, memory: object, layer: nn.Module) -> tuple[SequenceBatch, *Opened]:
    """Convert memory and sequences, both of any supported input, to batches of equal batch size.

    Returns:
        the memory, the sequences, and the function that converts a batch back to their type.

    Raises:
        SeqbatchTypeError: the type of either is not supported, or only one of them is one Tensor.
        SeqbatchValueError: they are not of equal batch size.
    """
    queries, close = open_input(sequences, layer)
    opened = open_input(_supported_memory(memory, _is_one(sequences)), layer)[0]
    _ops.require_batch_size("memory", opened.structure, queries.structure, "`sequences`")
    return opened, queries, close


def _is_one(sequences: object) -> bool:
    return isinstance(sequences, Tensor) and not sequences.is_nested


def _supported_memory(memory: object, is_one: bool) -> object:
    """Return the memory, a list as a batch, if it is of a supported type, and one Tensor for one Tensor, else raise."""
    if is_one and not _is_one(memory):
        raise complaint(SeqbatchTypeError, "memory", "be one Tensor, as `sequences`", type_name(memory))
    if is_one:
        return require_steps("memory", memory)
    if _is_one(memory):
        remedy = "Write [memory] for one sequence."
        raise complaint(SeqbatchTypeError, "memory", "be several sequences, as `sequences`", type_name(memory), remedy)
    if isinstance(memory, (Tensor, SequenceBatch, PackedSequence)):
        return memory
    if isinstance(memory, (list, tuple)):
        return joined("memory", memory)
    must = "be a list or tuple of Tensors, a SequenceBatch, a PackedSequence or a nested Tensor, as `sequences`"
    raise complaint(SeqbatchTypeError, "memory", must, type_name(memory))


def _open_tensor(sequence: Tensor, layer: nn.Module | None) -> Opened:
    steps = len(require_steps("sequences", sequence))
    if layer is not None and takes_rows(layer):
        must = f"be a list or a SequenceBatch, for {describe(layer)}"
        found = f"{type_name(sequence)}, which PyTorch's cells take for one step of each of many sequences"
        many = "SequenceBatch(sequences, [1] * len(sequences)) for one step of each"
        remedy = f"Write [sequences] for one sequence, or {many}."
        raise complaint(SeqbatchTypeError, "sequences", must, found, remedy)
    return SequenceBatch(sequence, [steps]), lambda batch: batch.values


def _open_packed(packed: PackedSequence) -> Opened:
    opened = SequenceBatch.from_packed(packed)

    def close(batch: SequenceBatch) -> PackedSequence:
        repacked = batch.to_packed()
        if batch.lengths != opened.lengths:
            return repacked
        # The order is the same, but the caller's indices may be None, for sequences that were sorted already.
        return PackedSequence(repacked.data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)

    return opened, close
