"""encode_chunks: run a layer that carries a state on sequences in chunks, with one chunk in memory at a time."""

# mypy: disable-error-code="overload-overlap"
# Overloads overlap on purpose, and the first that matches is used, as in `seqbatch.encode`.

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from seqbatch._batch import SequenceBatch
from seqbatch._checks.grammar import complaint, counted, describe, type_name
from seqbatch._encode import encode_with_state
from seqbatch._encode.inputs import open_input
from seqbatch._encode.registry import find_encoder, is_recurrent, is_run_as
from seqbatch._encoders._layer_checks import rounds_by_range
from seqbatch._state import ContainerState, LSTMState, RNNState
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError, UnsupportedLayerError
from seqbatch.layers import Residual, TwoWay

T = TypeVar("T", bound=Tensor)
Same = TypeVar("Same", Tensor, SequenceBatch, PackedSequence)
_Lists = Iterable[list[T]] | Iterable[tuple[T, ...]]

# Their statistics are those of the chunk if they keep no running ones.
_BATCH_NORMS = (nn.BatchNorm1d, nn.LazyBatchNorm1d, nn.BatchNorm2d, nn.LazyBatchNorm2d, nn.SyncBatchNorm)


@overload
def encode_chunks(
    layer: nn.LSTM | nn.LSTMCell, chunks: Iterable[Same], state: LSTMState | None = None
) -> Iterator[tuple[Same, LSTMState]]: ...
@overload
def encode_chunks(
    layer: nn.LSTM | nn.LSTMCell, chunks: _Lists[T], state: LSTMState | None = None
) -> Iterator[tuple[list[Tensor], LSTMState]]: ...
@overload
def encode_chunks(
    layer: nn.GRU | nn.RNN | nn.GRUCell | nn.RNNCell, chunks: Iterable[Same], state: RNNState | None = None
) -> Iterator[tuple[Same, RNNState]]: ...
@overload
def encode_chunks(
    layer: nn.GRU | nn.RNN | nn.GRUCell | nn.RNNCell, chunks: _Lists[T], state: RNNState | None = None
) -> Iterator[tuple[list[Tensor], RNNState]]: ...
@overload
def encode_chunks(
    layer: nn.Sequential, chunks: Iterable[Same], state: ContainerState | None = None
) -> Iterator[tuple[Same, ContainerState]]: ...
@overload
def encode_chunks(
    layer: nn.Sequential, chunks: _Lists[T], state: ContainerState | None = None
) -> Iterator[tuple[list[Tensor], ContainerState]]: ...
@overload
def encode_chunks(layer: nn.Module, chunks: Iterable[Same], state: Any = None) -> Iterator[tuple[Same, Any]]: ...
@overload
def encode_chunks(layer: nn.Module, chunks: _Lists[T], state: Any = None) -> Iterator[tuple[list[Tensor], Any]]: ...
def encode_chunks(layer: nn.Module, chunks: Iterable[Any], state: Any = None) -> Iterator[tuple[Any, Any]]:
    """Run a layer that carries a state on sequences in chunks; the results equal those of the whole sequences.

    It is for sequences that are too long for memory, or that have not ended yet. A chunk is read when it is needed, and
    only the state is kept. Gradients stop between chunks, which is truncated back-propagation through time. So training
    takes the memory of one chunk, and `torch.no_grad` takes less.

    It runs only layers that are known to return the same for chunks: recurrent ones of one direction, those that treat
    every step by itself, and containers of these. A layer of your own is one of them if it is registered by
    `register_encoder(..., stepwise=True)` or by `register_recurrent`, which is not checked. A layer quantized to int8
    is refused, unless it is a cell, because it rounds by the range of its input. In training mode, layers such as
    `nn.BatchNorm1d` and `LockedDropout` compute their statistics or mask for each chunk.

    Args:
        layer: as for `encode_with_state`, but of one direction and without windows, attention or pools over steps.
        chunks: any iterable of inputs of `encode_with_state`, each the next steps of the same sequences. A sequence
            that has ended is empty in later chunks. Split a long Tensor by its `split`.
        state: the initial state, as for `encode_with_state`.

    Returns:
        an iterator over one pair for each chunk, of the outputs, in the layout of the chunk, and the state after the
        chunk. Gradients flow within a chunk, and from the first chunk to the initial state.

    Raises:
        SeqbatchTypeError: the layer is not an `nn.Module`, or the chunks are not an iterable, or are one input.
        UnsupportedLayerError: no encoder handles the layer, it keeps no state, or its results for chunks may differ.
        SeqbatchError: when a chunk is read, as `encode_with_state`; also a SeqbatchValueError if it has another batch
            size than the first, and a SeqbatchTypeError if gradients are recorded and the state has no `detach`.

    >>> gru, long = nn.GRU(5, 3), torch.randn(1000, 5)
    >>> parts = [outputs for outputs, state in encode_chunks(gru, long.split(300))]
    >>> torch.testing.assert_close(torch.cat(parts), encode(gru, long))
    """
    if not is_recurrent(layer):
        remedy = "Call encode on the whole, or on each chunk if it treats every step by itself."
        raise complaint(UnsupportedLayerError, "layer", "keep a state", f"{type_name(layer)}, which keeps none", remedy)
    _require_no_borders("layer", layer)
    if isinstance(chunks, (Tensor, SequenceBatch, PackedSequence)) or not isinstance(chunks, Iterable):
        remedy = "Cut it by chunks.split(1000)." if isinstance(chunks, Tensor) else "For one chunk pass [chunk]."
        raise complaint(SeqbatchTypeError, "chunks", "be an iterable of chunks", type_name(chunks), remedy)
    return _encode_each(layer, chunks, state)


def _encode_each(layer: nn.Module, chunks: Iterable[Any], state: Any) -> Iterator[tuple[Any, Any]]:
    size = None
    numbers = count()
    for chunk in chunks:  # not by `enumerate`, because it keeps a reference to the last chunk
        i = next(numbers)
        try:
            batch, close = open_input(chunk, layer)
            size = batch.batch_size if size is None else size
            if batch.batch_size != size:
                must = f"be of {counted(size, 'sequence')}, as chunks[0]"
                remedy = "Pass an empty sequence for one that has ended."
                raise complaint(SeqbatchValueError, f"chunks[{i}]", must, batch.batch_size, remedy)
            outputs, state = encode_with_state(layer, batch, state)
        except Exception as error:
            error.add_note(f"while chunks[{i}] was encoded")
            raise
        yield close(outputs), state
        state = _detach(state)
        # Deleted, so that the memory is free while the next chunk is read.
        del chunk, batch, close, outputs


def _detach(state: Any) -> Any:
    """Detach a state, so that no gradients flow through it."""
    if not torch.is_grad_enabled():
        return state
    try:
        return state.detach()
    except (AttributeError, SeqbatchTypeError) as error:  # of this state, or of one in a ContainerState
        must, remedy = "have detach, as RNNState, because gradients stop between chunks", "Call it under torch.no_grad."
        raise complaint(SeqbatchTypeError, "state", must, type_name(state), remedy) from error


def _require_no_borders(subject: str, layer: Any) -> None:
    """Raise unless a layer is known to return the same for chunks as for the whole."""
    if is_run_as(layer, nn.Sequential, nn.ModuleList):
        for i, child in enumerate(layer):
            _require_no_borders(f"{subject}[{i}]", child)
    elif is_run_as(layer, Residual):
        _require_no_borders(f"{subject}.layer", layer.layer)
    elif is_run_as(layer, TwoWay) or getattr(layer, "bidirectional", False):
        must = "be of one direction, because one that reads backward needs the last chunk first"
        remedy = "Call encode_with_state on the whole."
        raise complaint(UnsupportedLayerError, subject, must, describe(layer), remedy)
    elif rounds_by_range(layer):
        must = "not be quantized to int8, because it rounds its input by the range of the whole input"
        raise complaint(UnsupportedLayerError, subject, must, describe(layer), "Call encode_with_state on the whole.")
    elif is_run_as(layer, *_BATCH_NORMS) and layer.running_mean is None:
        must = "have running statistics, because those of a chunk are not those of the whole"
        raise complaint(UnsupportedLayerError, subject, must, describe(layer), "Call encode on the whole.")
    elif not is_recurrent(layer) and not find_encoder(layer).is_stepwise:
        must = "keep a state, or be known to treat every step by itself, so that chunks make no difference"
        remedy = "If every step is treated by itself, register the encoder by register_encoder(..., stepwise=True)."
        raise complaint(UnsupportedLayerError, subject, must, describe(layer), remedy)
