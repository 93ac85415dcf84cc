"""encode and encode_with_state: run a layer on sequences in any layout, and return the same layout.

One call of `encode(nn.LSTM(...), [xs, ys])` takes eight steps, each in a file of its own, and enters none twice:

1. `registry.find_encoder` finds the encoder by the type of the layer;
2. `inputs.open_input` converts the sequences to a SequenceBatch;
3. the encoder, in `_encoders/recurrent`, checks input and state by `_encoders/_recurrent_checks`;
4. `_encoders/_recurrent_runs.run_without_empty` drops empty sequences;
5. `_engines/_choice.choose` chooses the engine;
6. its `run`, as in `_engines/native`, runs the layers of the stack, each by one call of `_kernels`;
7. `run_without_empty`, which has not returned yet, restores the states of empty sequences;
8. `results.require_outputs` checks what the encoder returns, and `encode` converts it back to the layout of the input.

While tracing, `_encoders/_recurrent_operators` takes step 4: its operators take steps 4 to 7 when the graph runs.

A stock recurrent layer or cell skips steps 3 to 7 if nothing about the call is unusual: the shortcut of its encoder,
`_encoders/recurrent_shortcut`, makes the same checks in compiled code.
"""

# mypy: disable-error-code="overload-overlap"
# Overloads overlap on purpose, and the first that matches is used. PackedSequence comes before tuple, because it is a
# subclass. Layers of PyTorch come before other Modules, because the type of state is known for these only.

from collections.abc import Sequence
from typing import Any, TypeVar, overload

from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence

from seqbatch._batch import SequenceBatch, is_nothing
from seqbatch._checks.exporters import unscriptable
from seqbatch._checks.grammar import complaint, describe, type_name
from seqbatch._checks.per_sample_gradients import require_no_samples
from seqbatch._encode.inputs import open_input, open_pair
from seqbatch._encode.registry import (
    RegisteredEncoder,
    empty_input,
    empty_pair,
    find_cross_attention,
    find_encoder,
)
from seqbatch._encode.results import require_outputs, require_pair
from seqbatch._state import ContainerState, LSTMState, RNNState, State
from seqbatch._torch import skipped_in_graphs
from seqbatch.errors import UnsupportedLayerError

T = TypeVar("T", bound=Tensor)
Same = TypeVar("Same", Tensor, SequenceBatch, PackedSequence)
Listed = list[T] | tuple[T, ...]
_OfLSTMState = nn.LSTM | nn.LSTMCell
_OfRNNState = nn.GRU | nn.RNN | nn.GRUCell | nn.RNNCell
_OfKnownState = _OfLSTMState | _OfRNNState | nn.Sequential
SameBatch = TypeVar("SameBatch", SequenceBatch, PackedSequence)
SeveralSequences = Sequence[Tensor] | PackedSequence
_AnySequences = Tensor | SeveralSequences


class _NotTheStateOfThisLayer:
    """The result type if the state has another type than the layer's, so that type checkers report any use of it.

    Without this type, the overload for any `nn.Module` would accept the call. There is no instance of it, because the
    call raises an error.
    """


class _TakesNoMemory:
    """The result type if a layer takes no memory and is given one, as `_NotTheStateOfThisLayer`."""


@overload
def encode(layer: nn.Module, sequences: Same, memory: None = None) -> Same: ...
@overload
def encode(layer: nn.Module, sequences: Listed[T], memory: None = None) -> list[Tensor]: ...
@overload
def encode(layer: _OfKnownState, sequences: _AnySequences, memory: _AnySequences) -> _TakesNoMemory: ...
@overload
def encode(layer: nn.Module, sequences: Tensor, memory: Tensor) -> Tensor: ...
@overload
def encode(layer: nn.Module, sequences: SameBatch, memory: SeveralSequences) -> SameBatch: ...
@overload
def encode(layer: nn.Module, sequences: Listed[T], memory: SeveralSequences) -> list[Tensor]: ...
@unscriptable
def encode(layer: nn.Module, sequences: Any, memory: Any = None) -> Any:
    """Run a layer on sequences of unequal length; each gets the result it would get alone.

    With `memory`, each sequence attends to the sequence of the same index in it, as a decoder does: it holds the
    queries, and memory the keys and values. It attends to zeros where that is empty.

    A subclass is run as its base is, so one whose own `forward` mixes steps needs its own encoder. A subclass of
    `nn.LSTM`, `nn.GRU` or `nn.RNN` may mix steps. It is called once for each length, on one Tensor of all sequences of
    this length. The Tensor is `(steps, batch, features)`, or as its `batch_first` says, and the state, if given, is in
    PyTorch's layout. It must treat each sequence by itself, and return the shapes that its base returns.

    Args:
        layer: a layer that has an encoder. Built in are `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells; convolution and
            pooling, which may change the lengths, over steps, or in two dimensions over steps and features;
            self-attention and transformers; norms; layers that treat every step by itself; those of `seqbatch.layers`;
            and `nn.Sequential` of these. With memory it is an `nn.MultiheadAttention`, `nn.TransformerDecoderLayer`,
            `nn.TransformerDecoder`, `Causal` of these decoders, `AdditiveAttention` or `DotProductAttention`.
            `register_encoder`, `register_recurrent` and `register_cross_attention` add others. Its own `batch_first`
            does not matter.
        sequences: a list or tuple of Tensors `(steps, *features)`, one such Tensor, a SequenceBatch, a
            PackedSequence, or a nested Tensor of jagged layout. One Tensor is one sequence. Cells, and containers of
            them, do not take it, because PyTorch calls them on one step of each of many sequences: write `[x]` or
            `SequenceBatch(x, [1] * len(x))`.
        memory: for a layer that attends to another batch: as many sequences, of any of these types; one Tensor if
            `sequences` is one Tensor.

    Returns:
        the outputs, in the same order and the same layout (a list for a tuple); gradients flow. Those in a list are
        views of one Tensor, as from `torch.split`: while gradients are recorded, modify a clone and not the view. A
        layer that returns its input, as `nn.Identity`, returns the caller's memory.

    Raises:
        SeqbatchTypeError: the layer is not an `nn.Module`; the sequences are of another type, or are one Tensor for a
            cell; ids for `nn.Embedding` are not int32 or int64; the encoder does not return a SequenceBatch; the
            layer's own `forward` does not take a Tensor; or memory is missing, of another type, or one Tensor for
            several.
        SeqbatchValueError: the sequences differ from each other, or from what the layer takes, in features, dtype or
            device; an id is out of the range of `nn.Embedding`; a softmax or `nn.GLU` works along the steps; the
            encoder returns another batch size; the layer's own `forward` returns other shapes; or memory has another
            batch size.
        UnsupportedLayerError: no encoder handles the layer, it is given memory and does not attend to it, it is an
            `nn.Sequential` with its own `forward`, or gradients per sample are computed for it, as by opacus, which
            would take each step for a sample.
        SeqbatchError: `torch.jit.trace`, `torch.jit.script` or `torch.onnx.export` runs the call.

    >>> xs, ys = torch.randn(10, 5), torch.randn(7, 5)
    >>> hs_x, hs_y = encode(nn.LSTM(5, 3, num_layers=2, bidirectional=True), [xs, ys])
    >>> hs_x.shape, hs_y.shape
    (torch.Size([10, 6]), torch.Size([7, 6]))
    """
    require_no_samples("layer", layer)
    if memory is not None:
        return _encode_over_memory(layer, sequences, memory)
    encoder = find_encoder(layer)
    batch, close = open_input(sequences, layer)
    if is_nothing(batch) and not encoder.keeps_state(layer):
        taken = empty_input(layer, batch)
        if taken is None:
            return close(batch)
        batch = taken
    try:
        if done := _run_shortcut(encoder, layer, batch, None):
            return close(done[0])
        if encoder.outputs is None:
            outputs, _ = require_pair(encoder.run(layer, batch, None), batch)
        else:
            outputs = require_outputs(encoder.outputs(layer, batch), batch, encoder.subject)
        return close(outputs)
    except Exception as error:
        _add_context(error, layer, batch)
        raise


def _encode_over_memory(layer: nn.Module, sequences: Any, memory: Any) -> Any:
    function = find_cross_attention(layer)
    source, queries, close = open_pair(sequences, memory, layer)
    pair = empty_pair(layer, queries, source)
    if pair is None:
        return close(queries)
    try:
        outputs = function(layer, *pair)
        return close(require_outputs(outputs, queries, "encoder(layer, queries, memory)", "queries"))
    except Exception as error:
        _add_context(error, layer, *pair)
        raise


@overload
def encode_with_state(
    layer: _OfLSTMState, sequences: Same, state: LSTMState | None = None
) -> tuple[Same, LSTMState]: ...
@overload
def encode_with_state(
    layer: _OfLSTMState, sequences: Listed[T], state: LSTMState | None = None
) -> tuple[list[Tensor], LSTMState]: ...
@overload
def encode_with_state(layer: _OfRNNState, sequences: Same, state: RNNState | None = None) -> tuple[Same, RNNState]: ...
@overload
def encode_with_state(
    layer: _OfRNNState, sequences: Listed[T], state: RNNState | None = None
) -> tuple[list[Tensor], RNNState]: ...
@overload
def encode_with_state(
    layer: nn.Sequential, sequences: Same, state: ContainerState | None = None
) -> tuple[Same, ContainerState]: ...
@overload
def encode_with_state(
    layer: nn.Sequential, sequences: Listed[T], state: ContainerState | None = None
) -> tuple[list[Tensor], ContainerState]: ...
@overload
def encode_with_state(  # pyright: ignore[reportOverlappingOverload]
    layer: _OfKnownState, sequences: Same, state: State | Tensor | tuple[Any, ...]
) -> _NotTheStateOfThisLayer: ...
@overload
def encode_with_state(  # pyright: ignore[reportOverlappingOverload]
    layer: _OfKnownState, sequences: Listed[T], state: State | Tensor | tuple[Any, ...]
) -> _NotTheStateOfThisLayer: ...
@overload
def encode_with_state(layer: nn.Module, sequences: Same, state: Any = None) -> tuple[Same, Any]: ...
@overload
def encode_with_state(layer: nn.Module, sequences: Listed[T], state: Any = None) -> tuple[list[Tensor], Any]: ...
@unscriptable
def encode_with_state(layer: nn.Module, sequences: Any, state: Any = None) -> Any:
    """Run a layer that carries a state on sequences of unequal length, from an initial state to the final one.

    Args:
        layer: as for `encode`, but one that keeps a state; `nn.Sequential` does if a layer in it does.
        sequences: as for `encode`.
        state: the initial state, each sequence at its index; zeros by default. For `nn.LSTM` and `nn.LSTMCell` it is
            an LSTMState, for `nn.GRU`, `nn.RNN` and their cells an RNNState, for `nn.Sequential` a ContainerState.

    Returns:
        the outputs as from `encode`, and the state after the last step of each sequence, which may be passed in again.
        The state of an empty sequence is its initial state.

    Raises:
        SeqbatchTypeError: as `encode`, or the state is of another type than the layer's.
        SeqbatchValueError: as `encode`, or the state is of another shape, dtype or device than the layer and the
            sequences need.
        UnsupportedLayerError: as `encode`, or the layer keeps no state.
        SeqbatchError: as `encode`.

    >>> long = torch.randn(100, 5)
    >>> gru = nn.GRU(5, 3)
    >>> start, state = encode_with_state(gru, long[:60])
    >>> end, state = encode_with_state(gru, long[60:], state)
    >>> torch.testing.assert_close(torch.cat([start, end]), encode(gru, long))
    """
    require_no_samples("layer", layer)
    encoder = find_encoder(layer)
    if not encoder.keeps_state(layer):
        remedy = "Call encode."
        raise complaint(UnsupportedLayerError, "layer", "keep a state", f"{type_name(layer)}, which keeps none", remedy)
    batch, close = open_input(sequences, layer)
    try:
        if done := _run_shortcut(encoder, layer, batch, state):
            return close(done[0]), done[1]
        outputs, new_state = require_pair(encoder.run(layer, batch, state), batch)
        return close(outputs), new_state
    except Exception as error:
        _add_context(error, layer, batch)
        raise


def _run_shortcut(
    encoder: RegisteredEncoder, layer: nn.Module, batch: SequenceBatch, state: Any
) -> tuple[SequenceBatch, Any] | None:
    """Run a layer by the shortcut of its encoder; None if there is none, or if it leaves the call to the encoder."""
    if encoder.shortcut is None or is_compiling():  # because compiled code cannot be traced
        return None
    return encoder.shortcut(layer, batch, state)


@skipped_in_graphs  # because PyTorch shows the line of the model, and lengths are unknown while tracing
def _add_context(error: Exception, layer: nn.Module, *batches: SequenceBatch) -> None:
    error.add_note(f"while {describe(layer)} ran on {' and '.join(map(repr, batches))}")
