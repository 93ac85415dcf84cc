"""Which encoder handles which type of layer: registration, dispatch by type and bases, and entry points."""

import functools
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

import attrs
from torch import Tensor, nn

from seqbatch._batch import SequenceBatch, is_nothing
from seqbatch._checks.advice import advice_for
from seqbatch._checks.arguments import require_function, require_layer
from seqbatch._checks.grammar import complaint, describe, type_name
from seqbatch._checks.layout_arguments import require_bool
from seqbatch._checks.tracing import refuse_layer_in_a_graph
from seqbatch.errors import SeqbatchTypeError, UnsupportedLayerError

ENTRY_POINTS = "seqbatch.encoders"

Layer = TypeVar("Layer", bound=nn.Module)
S = TypeVar("S")
Encoder = Callable[[Layer, SequenceBatch], SequenceBatch]
RecurrentEncoder = Callable[[Layer, SequenceBatch, S | None], tuple[SequenceBatch, S]]
CrossAttention = Callable[[Layer, SequenceBatch, SequenceBatch], SequenceBatch]
_MakeInput = Callable[[Any, SequenceBatch], SequenceBatch | None]
_Registered = TypeVar("_Registered")


@attrs.frozen(eq=False)  # because types that share a function differ in `is_run_as`
class RegisteredEncoder:
    """The functions of an encoder, as they were registered: what they return is not checked yet.

    Args:
        keeps_state: returns True if a layer keeps a state.
        run: runs a layer on a batch and a state, and returns a batch and a state; not called if no layer keeps one.
        outputs: runs a layer on a batch from the initial state, when only the outputs are needed; None if `run` does.
        subject: the call of `outputs`, for errors.
        is_stepwise: whether every step is treated by itself, so that it does not matter where a sequence is cut.
        shortcut: does what `run` does, but faster, or returns None if anything about the call is unusual.
    """

    keeps_state: Callable[[Any], bool]
    run: Callable[..., Any]
    outputs: Callable[[Any, SequenceBatch], Any] | None
    subject: str
    is_stepwise: bool = False
    shortcut: Callable[[Any, SequenceBatch, Any], tuple[SequenceBatch, Any] | None] | None = None


def _always(layer: object) -> bool:
    return True


# By type of layer.
_entries: dict[type, RegisteredEncoder] = {}
_cross_attentions: dict[type, CrossAttention[Any]] = {}
_empty_inputs: dict[type, _MakeInput] = {}
_empty_memories: dict[type, _MakeInput] = {}

# By type of layer, whether PyTorch reads a Tensor of two axes as a batch of single steps, and not as one sequence.
_takes_rows: dict[type, Callable[[Any], bool]] = {}


def register_encoder(layer_type: type[Layer], *, stepwise: bool = False) -> Callable[[Encoder[Layer]], Encoder[Layer]]:
    """Register the function that runs a type of layer, and its subclasses, on a batch.

    A later registration for the same type takes the place of an earlier one, also of a built-in one.

    Args:
        layer_type: a subclass of `nn.Module`.
        stepwise: whether the layer treats every step by itself. `seqbatch.data.encode_chunks` runs only layers that are
            stepwise or carry a state, because for these it does not matter where a sequence is cut.
            `seqbatch.testing.check_encoder` checks it.

    Returns:
        a decorator for a function `(layer, batch) -> batch`, which it returns as it is.

    Raises:
        SeqbatchTypeError: `layer_type` is not such a class, `stepwise` is not a bool, or the decorated object is not a
            function.

    >>> class Double(nn.Module):
    ...     def forward(self, x):
    ...         return 2 * x
    >>> @register_encoder(Double, stepwise=True)
    ... def _(layer: Double, batch: SequenceBatch) -> SequenceBatch:
    ...     return batch.map(layer)
    >>> encode(Double(), [torch.tensor([1, 2]), torch.tensor([3])])
    [tensor([2, 4]), tensor([6])]
    """
    _require_layer_type(layer_type)
    require_bool("stepwise", stepwise)

    def register(function: Encoder[Layer]) -> Encoder[Layer]:
        require_function("encoder", function)
        kept = RegisteredEncoder(lambda layer: False, function, function, "encoder(layer, batch)", stepwise)
        _entries[layer_type] = kept
        return function

    return register


def register_recurrent(
    layer_type: type[Layer], *, when: Callable[[Layer], bool] | None = None, outputs: Encoder[Layer] | None = None
) -> Callable[[RecurrentEncoder[Layer, S]], RecurrentEncoder[Layer, S]]:
    """Register the function that runs a type of layer that carries a state, and its subclasses, on a batch.

    A later registration for the same type takes the place of an earlier one, also of a built-in one. The state may be
    anything; in the ContainerState of an `nn.Sequential`, `select`, `reset`, `detach` and `to` need its own.

    Args:
        layer_type: a subclass of `nn.Module`.
        when: `(layer) -> bool`, True if a layer of the type keeps a state; a container may not. By default each
            does.
        outputs: `(layer, batch) -> batch`, for `encode`, if the outputs alone can be computed faster. By default
            `encode` runs the decorated function and drops the state.

    Returns:
        a decorator for a function `(layer, batch, state or None) -> (batch, state)`, which it returns as it is.

    Raises:
        SeqbatchTypeError: `layer_type` is not such a class, or `when`, `outputs` or the decorated object is not a
            function.

    >>> class Running(nn.Module):
    ...     "Returns the number of steps so far, at each step."
    >>> @register_recurrent(Running)
    ... def _(layer: Running, batch: SequenceBatch, state: torch.Tensor | None) -> tuple[SequenceBatch, torch.Tensor]:
    ...     start = torch.zeros(batch.batch_size, dtype=torch.int64) if state is None else state
    ...     parts = [torch.arange(len(x)) + 1 + n for x, n in zip(batch, start)]
    ...     return batch.with_values(torch.cat(parts)), start + torch.tensor(batch.lengths)
    >>> encode_with_state(Running(), [torch.zeros(2), torch.zeros(1)])
    ([tensor([1, 2]), tensor([1])], tensor([2, 1]))
    """
    _require_layer_type(layer_type)
    keeps_state = _always if when is None else when
    require_function("when", keeps_state)
    if outputs is not None:
        require_function("outputs", outputs)

    def register(function: RecurrentEncoder[Layer, S]) -> RecurrentEncoder[Layer, S]:
        require_function("encoder", function)
        _entries[layer_type] = RegisteredEncoder(keeps_state, function, outputs, "outputs(layer, batch)")
        return function

    return register


def register_cross_attention(
    layer_type: type[Layer],
) -> Callable[[CrossAttention[Layer]], CrossAttention[Layer]]:
    """Register the function that runs a type of layer, and its subclasses, on a batch over another one, its memory.

    `encode(layer, queries, memory)` calls it, `encode(layer, queries)` does not: a layer may have an encoder for each.
    A later registration for the same type takes the place of an earlier one, also of a built-in one.

    Args:
        layer_type: a subclass of `nn.Module`.

    Returns:
        a decorator for a function `(layer, queries, memory) -> batch`, which it returns as it is. Both batches have the
        same batch size, and so must the result; any of their sequences may be empty.

    Raises:
        SeqbatchTypeError: `layer_type` is not such a class, or the decorated object is not a function.

    >>> class PlusMean(nn.Module):
    ...     def forward(self, query, memory):
    ...         return query + memory.mean(0)
    >>> @register_cross_attention(PlusMean)
    ... def _(layer: PlusMean, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:
    ...     return queries.map(lambda values: values + memory.mean()[queries.segment_ids])
    >>> encode(PlusMean(), [torch.zeros(2), torch.zeros(1)], [torch.ones(3), torch.tensor([2.0, 4.0])])
    [tensor([1., 1.]), tensor([3.])]
    """
    _require_layer_type(layer_type)

    def register(function: CrossAttention[Layer]) -> CrossAttention[Layer]:
        require_function("encoder", function)
        _cross_attentions[layer_type] = function
        return function

    return register


def register_shortcut(
    layer_type: type[nn.Module], shortcut: Callable[[Any, SequenceBatch, Any], tuple[SequenceBatch, Any] | None]
) -> None:
    """Register a shortcut of the encoder of a type; another encoder for the type takes the place of both."""
    _entries[layer_type] = attrs.evolve(_entries[layer_type], shortcut=shortcut)


def register_empty(
    layer_type: type[Layer],
    make: Callable[[Layer, SequenceBatch], SequenceBatch | None],
    *,
    of_memory: bool = False,
) -> None:
    """Register the batch on which a type of layer runs if the input is an empty list, whose features are unknown.

    If none is registered or `make` returns None, `encode` returns its input, because the features of the outputs are
    unknown too. With `of_memory` it is the memory to use in place of one made of an empty list.
    """
    (_empty_memories if of_memory else _empty_inputs)[layer_type] = make


def empty_input(layer: nn.Module, batch: SequenceBatch) -> SequenceBatch | None:
    """Return the batch to run a layer on in place of a batch without features; None if that is not known."""
    return _make_empty(_empty_inputs, _entries, layer, batch)


def empty_pair(
    layer: nn.Module, queries: SequenceBatch, memory: SequenceBatch
) -> tuple[SequenceBatch, SequenceBatch] | None:
    """Return the two batches to run a layer on, with features where one has none; None if these are not known."""
    made = _make_empty(_empty_inputs, _cross_attentions, layer, queries) if is_nothing(queries) else queries
    source = _make_empty(_empty_memories, _cross_attentions, layer, memory) if is_nothing(memory) else memory
    return None if made is None or source is None else (made, source)


def _make_empty(
    makers: dict[type, _MakeInput], encoders: dict[type, Any], layer: nn.Module, batch: SequenceBatch
) -> SequenceBatch | None:
    # Not beyond the class whose encoder runs it, because a base of that class may take other inputs.
    known = next(base for base in type(layer).__mro__ if base in makers or base in encoders)
    make = makers.get(known)
    return None if make is None else make(layer, batch)


def is_recurrent(layer: nn.Module) -> bool:
    """Return True if a layer keeps a state, so that `encode_with_state` takes it.

    Args:
        layer: any layer that has an encoder.

    Raises:
        SeqbatchTypeError: `layer` is not an `nn.Module`.
        UnsupportedLayerError: no encoder handles it.

    >>> is_recurrent(nn.LSTM(5, 3)), is_recurrent(nn.Linear(5, 3))
    (True, False)
    """
    entry = _find(_entries, _found_layer(layer))
    if entry is None and _takes_memory(layer):
        return False
    return find_encoder(layer).keeps_state(layer)


def find_encoder(layer: object) -> RegisteredEncoder:
    """Return the encoder of a layer, by its type or the nearest base; import plug-ins if there is none."""
    if (known := _entries.get(type(layer))) is not None:  # the fast path
        return known
    found = _found_layer(layer)
    entry = _find(_entries, found)
    if entry is None:
        raise missing_memory(found) if _takes_memory(found) else unsupported(found)
    return entry


def find_cross_attention(layer: object) -> CrossAttention[Any]:
    """Return the encoder of a layer that takes memory, as `find_encoder`."""
    found = _found_layer(layer)
    function = _find(_cross_attentions, found)
    if function is None:
        entry = _dispatch(_entries, type(found))
        if entry is None:
            raise unsupported(found, takes_memory=True)
        raise without_memory(found, _remedy_without_memory(found, entry))
    return function


def _remedy_without_memory(layer: nn.Module, entry: RegisteredEncoder) -> str:
    remedy = "Call encode(layer, sequences), where a list holds several sequences."
    if [*layer.children()]:
        remedy = "Call encode for each layer in it, with memory for those that attend to it."
    if entry.keeps_state(layer):  # because a state may have been passed in place of memory
        remedy += " To start from a state call encode_with_state(layer, sequences, state)."
    return remedy


def missing_memory(layer: nn.Module) -> SeqbatchTypeError:
    """Build the error for a layer that is run without the memory that it attends to."""
    remedy = "Call encode(layer, queries, memory)."
    return complaint(SeqbatchTypeError, "memory", f"be given, for {describe(layer)}", None, remedy)


def without_memory(layer: nn.Module, remedy: str, inside: str = "") -> UnsupportedLayerError:
    """Build the error for a layer that takes no memory and is given one; `inside` names the layer in it."""
    found = f"{type_name(layer)} {inside}".strip()
    return complaint(UnsupportedLayerError, "layer", "attend to memory", f"{found}, which takes none", remedy)


def _takes_memory(layer: object) -> bool:
    return _dispatch(_cross_attentions, type(layer)) is not None


def _found_layer(layer: object) -> nn.Module:
    """Return what is given to encode if it is a layer, else raise."""
    if isinstance(layer, nn.Module):
        return layer
    remedy = ""
    if isinstance(layer, (list, tuple, Tensor, SequenceBatch)):
        remedy = "Pass the layer before the sequences."
    elif callable(layer):
        remedy = "For a function that treats every step by itself call batch.map(function)."
    return require_layer("layer", layer, remedy)


def _find(encoders: dict[type, _Registered], layer: nn.Module) -> _Registered | None:
    """Return what is registered for a layer's type or its nearest base; import plug-ins if there is nothing."""
    found = _dispatch(encoders, type(layer))
    if found is None:
        refuse_layer_in_a_graph(layer, _not_known_yet)  # because imports cannot be traced
        _load_plugins()
        found = _dispatch(encoders, type(layer))
    return found


def _not_known_yet(layer: nn.Module) -> tuple[str, str]:
    return f"a layer of type {type(layer).__name__}, of which no encoder is known yet", ""


def register_rows(layer_type: type[nn.Module], when: Callable[[Any], bool] = _always) -> None:
    """Register a type of layer, and its subclasses, as one that PyTorch calls on a batch of single steps: a cell."""
    _takes_rows[layer_type] = when


def takes_rows(layer: nn.Module) -> bool:
    """Return True if PyTorch reads `(number, features)` as a batch of single steps, as for cells."""
    when = _dispatch(_takes_rows, type(layer))
    return when is not None and when(layer)


def _dispatch(encoders: dict[type, _Registered], layer_type: type) -> _Registered | None:
    """Return what is registered for a type or its nearest base.

    Not by `functools.singledispatch`, because `torch.compile` cannot trace that.
    """
    for base in layer_type.__mro__:
        if base in encoders:
            return encoders[base]
    return None


def is_run_as(layer: object, *layer_types: type[nn.Module]) -> bool:
    """Return True if the encoder of one of these types runs the layer, and not one of its own."""
    return find_encoder(layer) in [_dispatch(_entries, layer_type) for layer_type in layer_types]


def unsupported(
    layer: nn.Module, reason: str = "none is registered for it or its bases", *, takes_memory: bool = False
) -> UnsupportedLayerError:
    """Build the error for a layer without an encoder, with advice on what to use instead."""
    must, remedy = advice_for(layer, takes_memory)
    failed = "".join(f"\nThe plug-in {plugin} could not be imported: {error!r}" for plugin, error in _load_plugins())
    return complaint(UnsupportedLayerError, "layer", must, f"{type_name(layer)}: {reason}", f"{remedy}{failed}")


@functools.cache
def _load_plugins() -> tuple[tuple[str, Exception], ...]:
    """Import the plug-ins of installed packages, once; return the names and errors of those that failed."""
    failed = []
    for plugin in entry_points(group=ENTRY_POINTS):
        try:
            plugin.load()
        except Exception as error:  # whatever a plug-in raises must not keep the others from loading
            failed.append((f"{plugin.name} = {plugin.value}", error))
    return tuple(failed)


def _require_layer_type(layer_type: object) -> None:
    if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
        found = repr(layer_type) if isinstance(layer_type, type) else type_name(layer_type)
        raise complaint(SeqbatchTypeError, "layer_type", "be a subclass of nn.Module", found)
